"""AT-BPTT's windows: a law of positions, lengths within bounds, and a stage clock that reaches every stage for every horizon.

    P(t) = exp(+-z_t/temperature) / sum_i exp(+-z_i/temperature) early and late, 1/(T - W_0 + 1) between;  z = (g - mean g)/std g
    shifting g, or scaling it, changes nothing;  equal g give the uniform law
    W = W_0 - d + 2 d eta, rounded, eta in [0, 1] rising with |g_t - g_{t-1}|:   W_0 - d <= W <= W_0 + d,  0 <= start < stop <= T
    W_0 is the same after any number of draws
    X = ceil(share total) slow measurements in a row end a stage; at 5 % and 1/24, the shares by default, and for every total >= 3 a flat
    accuracy passes early -> middle -> late before the last of `total` measurements, and never goes back

Stated in AT-BPTT (arXiv:2510.04838): early law in z = g, uniform middle law (over the starts of windows here, over steps there), the bounds
on W, M = 1.5 points and X = 5 %. N = 1 point is that of its released code. Derived here: the late law (the paper prefers small g, its minus
sign is inferred; the code mirrors positions instead), standardised z (with z = g the law is checked too, but depends on the scale), what
eta is, Y = 1/24 of the total, and that the clock ends in the late stage for every total, which the released code's does not. Checked
against sums written out with Python's own numbers: no NumPy, no SciPy, the shares as fractions, and the stages by looking for
the first run of slow measurements.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness, frequency, refuses
from theory.distill.adaptive import AdaptiveWindow, latest
from theory.distill.problem import Diverged
from theory.distill.stages import Stage, StageClock, StageState

TOLERANCE = 1e-9
DRAWS = 100
STAGES = (Stage.EARLY, Stage.MIDDLE, Stage.LATE)
SIGNS = {Stage.EARLY: 1.0, Stage.MIDDLE: 0.0, Stage.LATE: -1.0}
DEFAULT_SHARES = Fraction(1, 20), Fraction(1, 24)


def scores(g: Sequence[float], standardised: bool) -> list[float]:
    """z."""
    mean, deviation = statistics.fmean(g), statistics.pstdev(g)
    return [(one - mean) / (deviation or 1.0) for one in g] if standardised else list(g)


def law(z: Sequence[float], temperature: float, sign: float) -> list[float]:
    """exp(sign z/temperature), normalised: 1/P_t = sum_i exp(sign (z_i - z_t)/temperature), where a term may be beyond the floats."""
    return [1.0 / math.fsum(math.exp(min(sign * (other - one) / temperature, 700.0)) for other in z) for one in z]


def etas(change: Sequence[float], how: str) -> list[float]:
    """eta in [0, 1], by the share of smaller changes, by place in their range, or by a sigmoid of their scores."""
    low, high, n = min(change), max(change), len(change)
    if how == "rank":
        return [sum((b < a) + 0.5 * (b == a) for b in change) / (n - 1) - 0.5 / (n - 1) if n > 1 else 0.5 for a in change]
    if how == "range":
        return [(a - low) / (high - low) if high > low else 0.5 for a in change]
    return [1.0 / (1.0 + math.exp(-z)) for z in scores(change, True)]


def margin(
    rng: np.random.Generator,
    sizes: list[int],
    how: list[str],
    temperature: float,
    total: int,
    shares: list[int],
    sample: int,
    standardised: bool = True,
    flat: bool = True,
) -> float:
    """sizes: W_0 - d - 1, d, T - W_0 - d; how: change, placement; shares: X and Y in thousandths of `total`; standardised: z is; flat: the
    accuracy stops rising.
    """
    low, d, room = sizes
    base, horizon = low + d + 1, low + 2 * d + 1 + room
    g = tuple(rng.exponential(size=horizon).tolist())

    def policy_of(z: str) -> AdaptiveWindow:
        return AdaptiveWindow(horizon, base, d, temperature, z, how[0], how[1])

    policy, raw = policy_of("standardised" if standardised else "norms"), policy_of("norms")
    seen = slice(base - 1, None) if how[1] == "end" else slice(0, horizon - base + 1)
    exact = min(
        closeness(one.at(stage, g).probabilities, law(scores(g[seen], own), temperature, SIGNS[stage]), TOLERANCE)
        for one, own in ((policy, True), (raw, False))
        for stage in STAGES
    )
    moved = policy.at(Stage.EARLY, tuple(3.0 * one + 2.0 for one in g)).probabilities
    scaled = closeness(moved, policy.at(Stage.EARLY, g).probabilities, 1e-6)
    equal = closeness(policy.at(Stage.LATE, (1.0,) * horizon).probabilities, 1.0 / (horizon - base + 1), TOLERANCE)

    change = [abs(b - a) for a, b in pairwise(g)]
    change = ([*change[:1], *change] or [0.0])[seen]
    lengths = policy.at(Stage.EARLY, g).lengths
    rounded = at_most(np.abs(lengths - (base - d + 2.0 * d * np.array(etas(change, how[0])))), 0.5, TOLERANCE)
    rising = at_most(-np.diff(lengths[np.argsort(change)], prepend=0), 0.0, TOLERANCE)
    drawn = min(draws(rng, policy, g, stage, base, d) for stage in STAGES)
    kept = policy == policy_of(policy.scores) and policy.base == base
    right = kept and clock(rng, total, [Fraction(n, 1000) for n in shares], flat)
    return min(exact, scaled, equal, rounded, rising, drawn, 1.0 if right and corners() and refusals() else -9.0)


def draws(rng: np.random.Generator, policy: AdaptiveWindow, g: tuple[float, ...], stage: Stage, base: int, d: int) -> float:
    """Windows of one stage after another: all within bounds, and the likeliest one as often as the law says."""
    placed = policy.at(stage, g)
    windows = [placed.window(i) for i in range(len(placed.probabilities))]
    mode = windows[int(np.argmax(placed.probabilities))]
    chance = float(sum(p for w, p in zip(windows, placed.probabilities, strict=True) if w == mode))
    drawn = [placed.draw(rng) for _ in range(DRAWS)]
    inside = all(0 <= w.start < w.stop <= policy.horizon and base - d <= w.length <= base + d for w in (*windows, *drawn))
    return min(frequency(drawn.count(mode), DRAWS, chance), 1.0 if inside else -9.0)


def first_run(gains: Sequence[float], below: float, patience: int, start: int) -> int | None:
    """The number of the measurement at which `patience` gains in a row, the first of them at `start` or later, are below the threshold."""
    ends = (j for j in range(start + patience, len(gains) + 1) if all(gain < below for gain in gains[j - patience : j]))
    return next(ends, None)


def switches(machine: StageClock, accuracies: Sequence[float]) -> tuple[list[int], list[Stage]]:
    """At which measurement each next stage begins, and the stages met."""
    state, at, met = StageState(), [], [Stage.EARLY]
    for j, accuracy in enumerate(accuracies):
        state = machine.advance(state, accuracy)
        if state.stage is not met[-1]:
            at.append(j)
            met.append(state.stage)
    return at, met


def clock(rng: np.random.Generator, total: int, shares: list[Fraction], flat: bool) -> bool:
    """Patiences, the way through the stages on a flat accuracy and on a random one; at the shares drawn and at the default ones."""
    fine = True
    for usual, pair in ((False, shares), (True, DEFAULT_SHARES)):
        x, y = (max(1, math.ceil(share * total)) for share in pair)
        if x + y >= total:  # refused: the late stage would not begin in time
            fine = fine and not usual
            continue
        machine = StageClock(total) if usual else StageClock(total, early_share=float(pair[0]), middle_share=float(pair[1]))
        fine = fine and (machine.early_patience, machine.middle_patience) == (x, y)
        rise = 0.0 if flat else 2.0
        fine = fine and switches(machine, [50.0 + rise * j for j in range(total + 1)]) == ([x, x + y], list(STAGES)) and x + y < total
        gains = rng.uniform(-1.0, 2.5, size=total).tolist()
        accuracies = [50.0, *(50.0 + np.cumsum(gains)).tolist()]
        gains = [b - a for a, b in pairwise(accuracies)]
        middle = first_run(gains, 1.5, x, 0)
        late = None if middle is None else first_run(gains, 1.0, y, middle)
        expected = [j for j in (middle, late) if j is not None]
        fine = fine and switches(machine, accuracies) == (expected, list(STAGES[: 1 + len(expected)]))
    return fine


def corners() -> bool:
    """Defaults, constant and huge profiles, a run of one step, and a gain that is just fast enough."""
    usual = AdaptiveWindow(4, 2) == AdaptiveWindow(4, 2, 0, 1.0, "standardised", "rank", "end", "previous")
    usual = usual and StageClock(100) == StageClock(100, 1.5, 1.0, 0.05, 1 / 24) and StageState() == StageState(Stage.EARLY, 0, None)
    flat = [AdaptiveWindow(5, 3, 1, change=how).at(Stage.MIDDLE, (2.0,) * 5).lengths.tolist() for how in ("rank", "range", "sigmoid")]
    blind = AdaptiveWindow(5, 3, 1).at(Stage.EARLY, None)
    one = AdaptiveWindow(1, 1).at(Stage.LATE, (7.0,))
    even = flat == [[3, 3, 3]] * 3 and blind.lengths.tolist() == [3, 3, 3] and np.ptp(blind.probabilities) == 0.0
    even = even and one.lengths.tolist() == [1] and one.probabilities.tolist() == [1.0]
    steep = [AdaptiveWindow(4, 2).at(Stage.EARLY, tuple(size * g for g in (4.0, 3.0, 1.0, 2.0))) for size in (1.0, 1e200)]
    huge = closeness(steep[1].probabilities, steep[0].probabilities, TOLERANCE) > 0
    seen = latest([(1.0, 2.0), (3.0, 4.0)], None) == (2.0, 3.0) and latest([(1.0, 2.0)], (9.0, 9.0, 7.0)) == (1.0, 2.0, 7.0)
    machine = StageClock(100, early_share=0.07, middle_share=0.001)
    patient = (machine.early_patience, machine.middle_patience) == (7, 1)
    steady = all(
        machine.advance(StageState(stage, 0, 1.0), 1.0 + gain) == StageState(stage, 0, 1.0 + gain)
        for stage, gain in ((Stage.EARLY, 1.5), (Stage.MIDDLE, 1.0))
    )
    return usual and even and huge and seen and patient and steady


def refusals() -> bool:
    """What no window and no clock may be, and what they just may."""
    taken = (AdaptiveWindow(4, 2, 1), AdaptiveWindow(3, 2, 1), AdaptiveWindow(1, 1, 0), StageClock(3, early_share=0.3, middle_share=0.3))
    bad = [{"spread": -1}, {"spread": 2}, {"horizon": 2, "spread": 1}, {"temperature": 0.0}, {"temperature": math.inf}]
    bad += [{name: "other"} for name in ("scores", "change", "placement", "profile")]
    refused = all(refuses(AdaptiveWindow, **{"horizon": 9, "base": 2, **one}) for one in bad)
    clocks: list[dict[str, Any]] = [{"early_gain": math.inf}, {"middle_gain": math.nan}]
    clocks += [{name: share} for name in ("early_share", "middle_share") for share in (0.0, 1.0)]
    clocks += [{"early_share": 0.5, "middle_share": 0.5}, {"early_share": 0.9, "middle_share": 0.2}]
    refused = refused and all(refuses(StageClock, 20, **one) for one in clocks)
    policy, profiles = taken[0], ((1.0,) * 3, (1.0, -1.0, 1.0, 1.0))
    refused = refused and all(refuses(policy.at, Stage.EARLY, g) for g in profiles)
    policy.at(Stage.EARLY, (0.0, 1.0, 1.0, 1.0))
    lost = refuses(policy.at, Stage.EARLY, (1.0, math.inf, 1.0, 1.0), kind=Diverged)
    return refused and lost and refuses(taken[-1].advance, StageState(), math.nan, kind=Diverged)


def symbolic() -> Iterator[Identity]:
    z, w, tau, c, base, d, eta = sp.symbols("z w tau c W_0 d eta", positive=True)
    law = sp.exp(z / tau) / (sp.exp(z / tau) + sp.exp(w / tau))
    yield Identity("a shift of the scores changes nothing", sp.simplify(law.subs({z: z + c, w: w + c}, simultaneous=True)), law)
    yield Identity("tau -> c tau with z -> c z changes nothing", law.subs({z: c * z, w: c * w, tau: c * tau}, simultaneous=True), law)
    yield Identity("tau -> infinity is uniform", sp.limit(law, tau, sp.oo), sp.Rational(1, 2))
    yield Identity("late is early of -z", 1 - law, sp.exp(-z / tau) / (sp.exp(-z / tau) + sp.exp(-w / tau)))
    length = base - d + 2 * d * eta
    yield Identity("the middle of the range is the base window", length.subs(eta, sp.Rational(1, 2)), base)
    total, share = sp.Symbol("total"), sum(sp.Rational(one.numerator, one.denominator) for one in DEFAULT_SHARES)
    crossing = sp.solve(2 + share * total - total, total)[0]  # X + Y <= 2 + share total, below total beyond it
    yield Identity("the default shares fit into every total > 240/109", crossing, sp.Rational(240, 109))


LEMMA = Lemma(
    number=17,
    name="adaptive-windows",
    latex=(
        r"P(t) = \frac{e^{\pm z_t/\tau}}{\sum_i e^{\pm z_i/\tau}},\qquad W_0 - d \le W \le W_0 + d,\qquad "
        r"0 \le \mathrm{start} < \mathrm{stop} \le T,\qquad X = \lceil\mathrm{share}\cdot\mathrm{total}\rceil"
    ),
    plain="AT-BPTT draws from a softmax, keeps its window in bounds, and its stage clock reaches every stage for every horizon.",
    source=Source(
        "stated",
        "Li et al., arXiv:2510.04838: early and middle laws, bounds, M and X; N from its released code; the late sign, 1/24, standardised "
        "scores and the rest derived here",
    ),
    assumptions={
        "standardised_scores": "scores are standardised (for the law in z and its independence of scale)",
        "flat_accuracy": "the accuracy stops rising (for the clock's reach)",
    },
    instances={
        "sizes": st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 8)),
        "how": st.tuples(st.sampled_from(["rank", "range", "sigmoid"]), st.sampled_from(["end", "start"])),
        "temperature": st.integers(2, 40).map(lambda n: n / 10),
        "total": st.integers(3, 700),
        "shares": st.tuples(st.integers(1, 400), st.integers(1, 400)),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("standardised_scores", "raw norms", {"standardised": st.just(False), "sizes": st.just([1, 1, 8])}),
        Control("flat_accuracy", "it rises by 2 points a measurement", {"flat": st.just(False)}),
    ),
    examples=80,
    code=("theory.distill.adaptive", "theory.distill.stages"),
)
