"""AT-BPTT's windows: a law of positions, lengths within bounds, and a stage clock that reaches every stage for every horizon.

    P(t) ~ exp(+-z_t/temperature), or uniform:   P >= 0, sum P = 1;   early g_a > g_b => P_a >= P_b;  P_late(z) = P_early(-z)
    shifting g, or scaling it, changes nothing (standardised scores);  equal g give the uniform law
    W_0 - d <= W <= W_0 + d,  0 <= start < stop <= T,  W rises with |g_t - g_{t-1}|
    a flat accuracy passes early -> middle -> late before the last of `total` measurements, and never goes back

Stated in AT-BPTT (arXiv:2510.04838): the laws, the bounds and the thresholds; derived here: that the clock ends in the late stage for every
total (patiences are shares rounded up, counters compared with >=), which the released code does not.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.stages import Stage, StageClock, StageState

TOLERANCE = 1e-9


def margin(
    rng: np.random.Generator,
    sizes: list[int],
    how: list[str],
    temperature: float,
    total: int,
    sample: int,
    standardised: bool = True,
    flat: bool = True,
    spread: bool = True,
) -> float:
    """sizes: W_0 - d - 1, d, T - W_0 - d; how: change, placement; standardised: scores are; flat: the accuracy is; spread: W may vary."""
    low, d, room = sizes
    base, horizon = low + d + 1, low + 2 * d + 1 + room
    scores = "standardised" if standardised else "norms"
    policy = AdaptiveWindow(horizon, base, d, temperature, scores, how[0], how[1])
    g = rng.exponential(size=horizon)
    early, middle, late = (policy.at(stage, tuple(g)) for stage in (Stage.EARLY, Stage.MIDDLE, Stage.LATE))
    laws = [one.probabilities for one in (early, middle, late)]
    sums = min(closeness([law.sum() for law in laws], 1.0, TOLERANCE), at_most(0.0, np.concatenate(laws), TOLERANCE))
    sums = min(sums, closeness(laws[1], 1.0 / len(laws[1]), TOLERANCE))
    first = base - 1 if how[1] == "end" else 0
    seen = g[first : first + len(laws[0])]
    order = np.argsort(seen)
    ordered = min(rises(laws[0][order]), rises(-laws[2][order]))
    mirrored = closeness(laws[0] * laws[2], (laws[0] * laws[2])[0], TOLERANCE, (laws[0] * laws[2])[0])
    moved = policy.at(Stage.EARLY, tuple(3.0 * g + 2.0)).probabilities
    scaled = closeness(moved, laws[0], 1e-6)
    equal = closeness(policy.at(Stage.LATE, (1.0,) * horizon).probabilities, 1.0 / len(laws[0]), TOLERANCE)

    delta = np.abs(np.diff(g, prepend=0.0))
    delta[0] = delta[1] if horizon > 1 else 0.0
    change = delta[first : first + len(laws[0])]
    rising = rises(early.lengths[np.argsort(change)])
    windows = [early.window(i) for i in range(len(laws[0]))] + [late.draw(rng), middle.draw(rng)]
    reach = d if spread else 0
    inside = all(0 <= w.start < w.stop <= horizon and base - reach <= w.length <= base + reach for w in windows)
    return min(sums, ordered, mirrored, scaled, equal, rising, 1.0 if inside and clock(rng, total, flat) else -9.0)


def rises(x: np.ndarray) -> float:
    """No entry is below the one before it."""
    return at_most(np.diff(x, prepend=x[0]) * -1.0, 0.0, TOLERANCE)


def clock(rng: np.random.Generator, total: int, flat: bool) -> bool:
    """Every stage in its order, none twice, the last before the measurements end."""
    if total < 3:
        return True
    machine, state = StageClock(total, early_share=0.3, middle_share=0.2), StageState()
    seen = [state.stage]
    for j in range(total + 1):
        state = machine.advance(state, 50.0 if flat else 50.0 + 2.0 * j)
        seen.append(state.stage)
    stages = [one for one, before in zip(seen[1:], seen, strict=False) if one is not before]
    back = machine.advance(StageState(Stage.LATE, 0, 0.0), float(rng.uniform(0.0, 100.0))).stage
    waits = seen.count(Stage.EARLY) == 1 + machine.early_patience + (0 if flat else total)
    reset = machine.advance(StageState(Stage.EARLY, machine.early_patience - 1, 0.0), machine.early_gain).slow == 0
    return stages == [Stage.MIDDLE, Stage.LATE] and back is Stage.LATE and seen[-2] is Stage.LATE and waits and reset


def symbolic() -> Iterator[Identity]:
    z, w, tau, c, base, d, eta = sp.symbols("z w tau c W_0 d eta", positive=True)
    law = sp.exp(z / tau) / (sp.exp(z / tau) + sp.exp(w / tau))
    yield Identity("a shift of the scores changes nothing", sp.simplify(law.subs({z: z + c, w: w + c}, simultaneous=True)), law)
    yield Identity("tau -> c tau with z -> c z changes nothing", law.subs({z: c * z, w: c * w, tau: c * tau}, simultaneous=True), law)
    yield Identity("tau -> infinity is uniform", sp.limit(law, tau, sp.oo), sp.Rational(1, 2))
    length = base - d + 2 * d * eta
    yield Identity("the shortest window", length.subs(eta, 0), base - d)
    yield Identity("the longest window", length.subs(eta, 1), base + d)


LEMMA = Lemma(
    number=17,
    name="adaptive-windows",
    latex=(
        r"P(t) \propto e^{\pm z_t/\tau},\ \sum_t P(t) = 1,\qquad W_0 - d \le W \le W_0 + d,\qquad "
        r"0 \le \mathrm{start} < \mathrm{stop} \le T"
    ),
    plain="AT-BPTT draws from a distribution, keeps its window in bounds, and its stage clock reaches every stage for every horizon.",
    source=Source("stated", "Li et al., arXiv:2510.04838; the clock's reach is derived here"),
    assumptions={
        "standardised_scores": "scores are standardised (for the independence of scale)",
        "flat_accuracy": "the accuracy stops rising (for the clock)",
        "spread": "lengths may vary by d",
    },
    instances={
        "sizes": st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 8)),
        "how": st.tuples(st.sampled_from(["rank", "range", "sigmoid"]), st.sampled_from(["end", "start"])),
        "temperature": st.integers(2, 40).map(lambda n: n / 10),
        "total": st.integers(5, 400),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("standardised_scores", "raw norms", {"standardised": st.just(False), "sizes": st.just([1, 1, 8])}),
        Control("flat_accuracy", "it rises by 2 points a measurement", {"flat": st.just(False)}),
        Control("spread", "base length alone", {"spread": st.just(False), "sizes": st.just([3, 3, 8])}),
    ),
    examples=80,
    code=("theory.distill.adaptive", "theory.distill.stages"),
)
