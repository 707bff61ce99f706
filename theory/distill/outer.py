"""The outer update of the distilled data: norm clip, optimiser step, projection, running average.

The optimisers are those of `inner_optim`, applied to S or, one each, to its leaves. The clip bounds the meta-gradient by a multiple of its
own running norm:

    e_1 = n_1;  e_k = decay e_{k-1} + (1 - decay) n_k;  g <- g min(1, factor e_k / n_k),   n_k = ||g_k||

(released RaT-BPTT code: decay 0.9, factor 2, the average fed before clipping). Fed as it is, one spike of size n raises the average for
many steps; so n_k enters the average as min(n_k, spike e_{k-1}), a guard derived here (spike = inf recovers the released rule). An average
of 0 would hold every later n_k at 0: it counts as none yet, and the next norm starts it. n_k is taken over images and learned labels
jointly, and both are scaled; the released RaT-BPTT code clips the images alone and leaves the gradient of the labels as it is.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from array_api_compat import array_namespace

from theory.distill.inner_optim import Slots
from theory.distill.leaves import Leaves, norm, scale, zip_map
from theory.distill.problem import Diverged


@runtime_checkable
class OuterOptimiser(Protocol):
    """What the outer loop asks of an optimiser: every InnerOptimiser is one."""

    def init(self, theta: Leaves) -> Slots:
        """The slots before the first step."""
        ...

    def step(self, theta: Leaves, slots: Slots, t: int, g: Leaves) -> tuple[Leaves, Slots]:
        """(S after step t, new slots)."""
        ...


@dataclass(frozen=True)
class PerLeaf:
    """Each leaf of S by its own optimiser, in the order of the leaves; slots[i] are those of leaf i.

    In the released codes: MTT and FTD momentum 0.5 for images and step size, DATM momentum 0.9 for the label logits, at a rate each.
    """

    optimisers: tuple[OuterOptimiser, ...]

    def init(self, theta: Leaves) -> Slots:
        if len(theta) != len(self.optimisers):
            raise ValueError(f"need one outer optimiser a leaf of S: {len(self.optimisers)} optimisers, {len(theta)} leaves")
        return tuple(tuple(a for (a,) in one.init((x,))) for one, x in zip(self.optimisers, theta, strict=True))

    def step(self, theta: Leaves, slots: Slots, t: int, g: Leaves) -> tuple[Leaves, Slots]:
        parts = zip(self.optimisers, theta, slots, g, strict=True)
        done = [one.step((x,), tuple((a,) for a in own), t, (part,)) for one, x, own, part in parts]
        return tuple(x for (x,), _ in done), tuple(tuple(a for (a,) in own) for _, own in done)


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
        """(clipped g, new average); `average` is None before the first step, and 0 until the first gradient that is not 0."""
        n = norm(g)
        if not n < float("inf"):
            raise Diverged(f"meta-gradient norm is {n}")
        average = n if not average else self.decay * average + (1.0 - self.decay) * min(n, self.spike * average)
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
