"""From the rows of the practical algorithms to exponents: the least floats at which a method's sets reach a level, over d and over r.

    floats*     M1* times the floats of a point (d, and its label where it is learned); M1* from the median over draws, first crossing
    head        test risk <= level_head with a head on the erased rows; the head's L floats are a constant beside floats*
    alone       test risk <= level_alone of a network trained on the set alone: nothing else is stored
    angle       largest principal angle of the rows' increment to S* <= level_angle

A trial that failed numerically has reached no level. Expectations are written down here, before a run, with their source.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from sims.lab.laws import LEAST_POINTS, LawFit, SampledLaw, crossing, judge, sampled_law
from sims.lab.store import Row
from sims.lab.sweep import rows_at
from sims.unroll.experiment import Unroll
from sims.unroll.methods import METHODS, Given

CRITERIA = {"head": "risk_erased", "alone": "risk_trained", "angle": "angle_row_increments"}
R_BOUND = 2.3  # the slope in r of a method that keeps the law r^2 d + L ends below it

EXPECTED = (
    "in d, every method that encodes S*: exponent 1, 0 and 2 excluded (stated in the paper: memory of order r^2 d + L)",
    "in r, every such method: the interval ends below 2.3 (the paper's r^2 d as an upper bound); the idealised step, whose points are "
    "random in S*, between 1 and 2 at these r (derived here from its common mode)",
    "in r, performance matching through many steps with learned labels: nearer to 1, since points and labels can be arranged, r "
    "directions of S* need r d - r^2 floats, and two points a direction serve both signs of its label (derived here, a conjecture)",
    "a random real subset: no level reached on the grid, since of order d^2 samples are needed (derived here: energy d^2/N off S*)",
)
"""What was expected before the run."""


@dataclass(frozen=True)
class Law:
    """One exponent: of floats* over `axis` (d or r) for a method and a criterion."""

    method: str
    criterion: str
    axis: str
    fit: LawFit
    found: SampledLaw


def level(config: Unroll, criterion: str) -> float:
    """What the criterion has to reach."""
    return float(getattr(config, f"level_{criterion}"))


def curves(config: Unroll, rows: Sequence[Row], criterion: str, **where: object) -> Float[np.ndarray, "n G"]:
    """The criterion over the grid of M1, a row a draw; infinite where the trial failed."""
    groups = [sorted(rows_at(rows, M1=m1, **where), key=lambda row: row["draw"]) for m1 in config.M1]
    columns = [[_value(row, CRITERIA[criterion]) for row in group] for group in groups]
    return np.array(columns, float).T


def _value(row: Row, name: str) -> float:
    return math.inf if row["failed"] is not None else float(row[name])


def point_floats(config: Unroll, method: str, d: int) -> int:
    """Stored floats of a point."""
    constant = method == "one-step" or (not isinstance(METHODS[method], Given) and not config.recipe.learn_labels)
    return d if constant else d + 1


def least_floats(config: Unroll, criterion: str, factor: int) -> Callable[[np.ndarray], float]:
    """The statistic of a stack of curves: floats of the least M1 whose median reaches the level."""
    return partial(_least, np.array(config.M1, float), level(config, criterion), factor)


def _least(grid: np.ndarray, at: float, factor: int, stack: np.ndarray) -> float:
    return factor * crossing(grid, np.median(stack, axis=0), at).rank


def measure(config: Unroll, rows: Sequence[Row], resamples: int = 1000) -> list[Law]:
    """Every exponent that the configuration has at least three x for; none with fewer than two seeds."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    axes = {"d": [(d, config.r[0]) for d in config.d], "r": [(config.base_d, r) for r in config.r]}
    found = []
    for method in config.method:
        for criterion in CRITERIA:
            for axis, cells in axes.items():
                if len(cells) >= LEAST_POINTS and config.seeds > 1 and method != "full-data":
                    found.append(_law(config, rows, method, criterion, axis, cells, rng, resamples))
    return found


def _law(
    config: Unroll,
    rows: Sequence[Row],
    method: str,
    criterion: str,
    axis: str,
    cells: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    resamples: int,
) -> Law:
    x = [d if axis == "d" else r for d, r in cells]
    draws = [curves(config, rows, criterion, method=method, d=d, r=r) for d, r in cells]
    statistics = [least_floats(config, criterion, point_floats(config, method, d)) for d, _ in cells]
    law = sampled_law(x, draws, statistics, rng=rng, resamples=resamples)
    if axis == "d":
        return Law(method, criterion, axis, judge(law.slope, predicted=1.0, asymptotic=1.0, rivals=(0.0, 2.0)), law)
    return Law(method, criterion, axis, judge(law.slope, bound=R_BOUND), law)


def reaches(laws: Sequence[Law], method: str, criterion: str) -> str:
    """In words, how floats* grows in this criterion beside r^2 d: "d: linear, r: below r^2" keeps the law with room.

    d: linear where 1 lies in the interval, else flatter or steeper; r: below r^2, r^2 (2 in the interval, which ends below R_BOUND),
    steeper, or undecided where the interval is too wide for either.
    """
    fits = {law.axis: law.fit for law in laws if (law.method, law.criterion) == (method, criterion)}
    return ", ".join(f"{axis}: {_word(axis, fit)}" for axis, fit in fits.items()) or "not asked"


def _word(axis: str, fit: LawFit) -> str:
    if fit.interval is None:
        return "no fit"
    (low, high), at = fit.interval, 1.0 if axis == "d" else 2.0
    if high < at:
        return "flatter" if axis == "d" else "below r^2"
    if low > at:
        return "steeper"
    if axis == "d":
        return "linear" if high < 2.0 else "undecided"
    return "r^2" if high < R_BOUND else "undecided"
