"""The outer update of the distilled data: norm clip, optimiser step, projection, running average.

The optimisers are those of `inner_optim`, applied to S. The clip bounds the meta-gradient by a multiple of its own running norm:

    e_1 = n_1;  e_k = decay e_{k-1} + (1 - decay) n_k;  g <- g min(1, factor e_k / n_k),   n_k = ||g_k||

(released RaT-BPTT code: decay 0.9, factor 2, the average fed before clipping). Fed as it is, one spike of size n raises the average for
many steps; so n_k enters the average as min(n_k, spike e_{k-1}), a guard derived here (spike = inf recovers the released rule).
"""

from dataclasses import dataclass

from array_api_compat import array_namespace

from theory.distill.leaves import Leaves, norm, scale, zip_map
from theory.distill.problem import Diverged


@dataclass(frozen=True)
class NormClip:
    """Clip by the running average of the norm."""

    factor: float = 2.0
    decay: float = 0.9
    spike: float = 10.0

    def __post_init__(self) -> None:
        if not self.factor > 0 or not 0 <= self.decay < 1 or not self.spike >= 1:
            raise ValueError(
                f"NormClip needs factor > 0, 0 <= decay < 1, spike >= 1: factor={self.factor}, decay={self.decay}, spike={self.spike}"
            )

    def __call__(self, g: Leaves, average: float | None) -> tuple[Leaves, float]:
        """(clipped g, new average); `average` is None before the first step."""
        n = norm(g)
        if not n < float("inf"):
            raise Diverged(f"meta-gradient norm is {n}")
        average = n if average is None else self.decay * average + (1.0 - self.decay) * min(n, self.spike * average)
        bound = self.factor * average
        return (scale(bound / n, g) if n > bound else g), average


def ema(average: Leaves, s: Leaves, decay: float) -> Leaves:
    """decay * average + (1 - decay) * s, the running average of the distilled data (FTD, arXiv:2211.11004, section 3.4)."""
    return zip_map(lambda a, x: decay * a + (1.0 - decay) * x, average, s)


def on_sphere(s: Leaves, radius: float) -> Leaves:
    """S with every row of its first leaf (an image) scaled to Euclidean norm `radius`; a row of zeros has no direction and stays."""
    xp = array_namespace(s[0])
    rows = xp.reshape(s[0], (s[0].shape[0], -1))
    length = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    rows = rows * (radius / xp.where(length > 0, length, xp.ones_like(length)))
    return (xp.reshape(rows, s[0].shape), *s[1:])
