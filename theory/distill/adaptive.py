"""The adaptive window of AT-BPTT: where an unroll is cut by the size of its gradients, how long by how fast that size changes.

    g_t          ||d inner loss / d theta|| at inner step t = 0 .. T - 1, the profile of a run
    positions    t_i = first + i,  i = 0 .. T - M;  first = M - 1 where t is the window's last step (END), 0 where it is its first (START)
    early        P(t) ~ exp(+z_t / temperature)      z: g standardised over the positions, or g itself (as in the paper)
    middle       P(t) = 1 / (T - M + 1)              RaT-BPTT
    late         P(t) ~ exp(-z_t / temperature)
    length       W(t) = round(M - d + 2 d eta_t),  eta_t in [0, 1] rises with Delta_t = |g_t - g_{t-1}|;  Delta_0 = Delta_1
    END          stop = max(t + 1, W), start = stop - W
    START        start = min(t, T - W), stop = start + W

Positions and lengths after AT-BPTT (Li et al., arXiv:2510.04838, dynamic truncation position and adaptive window size). Derived here:

- The positions are those where a window of the base length M fits, in either placement. A uniform draw then is RaT-BPTT's, and with d = 0
  no two positions share a window; the edge rules above move a window only by what its length exceeds M.
- Standardised scores. Gradient norms fall by orders of magnitude along a run, so that with raw norms a temperature of 1 is nearly one-hot
  early and nearly uniform late. How selective a law is, its effective number of positions exp(entropy) tells.
- eta by rank, by range or by sigmoid. A softmax over t, which sums to 1, would leave W = M - d nearly everywhere.
- Temperature 1. Temperature, scores, eta, placement and profile were each moved from the defaults on CIFAR-10 in a small setting: held-out
  images told none of them apart (docs/results.md), so these reasons are the defaults' only ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.special import entr, expit
from scipy.stats import rankdata

from theory.distill.problem import Diverged
from theory.distill.stages import Stage
from theory.distill.truncation import Window

Profile: TypeAlias = tuple[float, ...]


def standardised(x: np.ndarray) -> np.ndarray:
    """(x - mean) / standard deviation; zeros for a constant x. Depends on x >= 0 only up to scale and shift."""
    if x.max() == x.min():
        return np.zeros(x.shape)
    x = x / x.max()  # before squares, which large norms would overflow
    return (x - x.mean()) / x.std() if x.std() > 0 else np.zeros(x.shape)


def _rank(x: np.ndarray) -> np.ndarray:
    """Rank among the others over their number, ties in their middle."""
    return (rankdata(x) - 1.0) / (len(x) - 1) if len(x) > 1 else np.full(1, 0.5)


def _range(x: np.ndarray) -> np.ndarray:
    """Place between the smallest and the largest; the middle for a constant x."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else np.full(x.shape, 0.5)


SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"standardised": standardised, "norms": lambda g: g}
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"rank": _rank, "range": _range, "sigmoid": lambda x: expit(standardised(x))}
PLACEMENTS = ("end", "start")
PROFILES = ("previous", "current")


def softmax(score: np.ndarray, temperature: float) -> np.ndarray:
    """exp(score / temperature), normalised; the largest exponent is 0, so nothing overflows."""
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((score - score.max()) / temperature)
    return weights / weights.sum()


def latest(norms: Sequence[Profile], before: Profile | None) -> Profile:
    """The last norm seen at each step: the mean over runs of equal length as far as they went, and what was known `before` beyond."""
    now = tuple(float(x) for x in np.mean(norms, axis=0))
    return now if before is None else (*now, *before[len(now) :])


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class AdaptiveWindow:
    """AT-BPTT's choice of a window, once stage and profile are known. `base` (M) and `spread` (d) never change.

    `profile` says which run's norms choose:
    "previous": those of the outer step before, from another start and an S one update older, as a probe's would be. The window is known
      before the run, so states are kept for its W steps alone and nothing runs after it. Norms beyond its stop stay those last seen.
    "current": those of the run that is differentiated. All T steps run and keep their states until the window is known: T / W times
      the stored floats, and T - stop plain steps more; the window then also depends on the noise of the run it cuts.
    The default is the cheaper one, and its norms are nearly the same: those of runs from different starts had a mean rank correlation of
    0.91 to 0.93 (ConvNet-3 of width 32, one CIFAR-10 image a class, T = 100, Adam; 5 starts) and 0.93 over 60 outer steps of a two-layer
    student; 0.5 with sub-batches of 4 of its 12 points, whose norms are mostly noise from one draw to the next.
    """

    horizon: int
    base: int
    spread: int = 0
    temperature: float = 1.0
    scores: str = "standardised"
    change: str = "rank"
    placement: str = "end"
    profile: str = "previous"

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise ValueError(f"the spread of window lengths must be >= 0: spread={self.spread}")
        if self.base - self.spread < 1 or self.base + self.spread > self.horizon:
            raise ValueError(
                f"an adaptive window needs 1 <= base - spread and base + spread <= horizon: "
                f"base={self.base}, spread={self.spread}, horizon={self.horizon}"
            )
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be positive and finite: temperature={self.temperature}")
        _one_of("scores", self.scores, tuple(SCORES))
        _one_of("change", self.change, tuple(CHANGES))
        _one_of("placement", self.placement, PLACEMENTS)
        _one_of("profile", self.profile, PROFILES)

    def at(self, stage: Stage, profile: Profile | None) -> "PlacedWindow":
        """The policy of one outer step. Without a profile (None) all positions are alike: uniform, of base length."""
        g = np.zeros(self.horizon) if profile is None else np.asarray(profile, dtype=np.float64)
        if g.shape != (self.horizon,):
            raise ValueError(f"the profile needs one gradient norm a step: {g.size} given, horizon={self.horizon}")
        if not np.all(np.isfinite(g)):
            t = int(np.argmin(np.isfinite(g)))
            raise Diverged(f"the gradient norm at inner step {t} is {g[t]}")
        if np.any(g < 0):
            raise ValueError(f"gradient norms must be >= 0: {g.min()}")
        delta = np.abs(np.diff(g))
        delta = np.concatenate([delta[:1], delta]) if delta.size else np.zeros(1)
        count = self.horizon - self.base + 1
        first = self.base - 1 if self.placement == "end" else 0
        score = SCORES[self.scores](g[first : first + count])
        eta = CHANGES[self.change](delta[first : first + count])
        match stage:
            case Stage.EARLY:
                probabilities = softmax(score, self.temperature)
            case Stage.MIDDLE:
                probabilities = np.full(count, 1.0 / count)
            case Stage.LATE:
                probabilities = softmax(-score, self.temperature)
        lengths = np.floor(self.base - self.spread + 2.0 * self.spread * eta + 0.5).astype(int)
        return PlacedWindow(self, stage, probabilities, lengths)


@dataclass(frozen=True, eq=False)
class PlacedWindow:
    """A window policy for one outer step: the law of the position, and the length at each."""

    policy: AdaptiveWindow
    stage: Stage
    probabilities: np.ndarray
    lengths: np.ndarray

    @property
    def horizon(self) -> int:
        """T."""
        return self.policy.horizon

    @property
    def effective_positions(self) -> float:
        """exp(entropy) of the law: how many equally likely positions would leave as much open; in [1, T - M + 1]."""
        return float(np.exp(np.sum(entr(self.probabilities))))

    def window(self, i: int) -> Window:
        """The window at position i of 0 .. T - M."""
        length = int(self.lengths[i])
        stop = max(i + self.policy.base, length) if self.policy.placement == "end" else min(i + length, self.horizon)
        return Window(stop - length, stop)

    def draw(self, rng: np.random.Generator) -> Window:
        """One window; in the middle stage by the one draw that RandomWindow makes, so that both agree bit for bit where d = 0."""
        count = len(self.probabilities)
        if self.stage is Stage.MIDDLE:
            return self.window(int(rng.integers(0, count)))
        return self.window(int(rng.choice(count, p=self.probabilities)))
