"""The memory of the distilled set over d, r and L, and which formula fits it.

floats*     functional: over the grid of M2, the least M1 d + M2 whose median risk with a fresh start is <= level
            exact_head: M1* d + L, with the L labels that the L law finds for an exact head
fit         floats* = a r^2 d + b L + c, relative least squares (sims.lab.laws.additive_fit)
rivals      the same with another first term: r d, r^3 d, r^2 d^2, r^2 d log d, r^2 d log r, r^2. A rival is excluded when the
            logarithm of its residual over the fit's is above 0 in 97.5 % of the resamples
log power   gamma of a r^2 d (log d)^gamma + b L + c with the least residual: 0 where there is no logarithm
break-even  the L at which the fit equals the L (d + 2) floats of the weights: of order a r^2, so that r^2 << L is where to distil
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sims.lab.laws import AdditiveFit, Interval, additive_fit, crossing, percentile_interval
from sims.scaling.experiment import Scaling
from sims.scaling.rows import Rows, curves, sound_at
from theory import memory

KINDS = ("functional", "exact_head")
LEADING: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "r^2 d": lambda r, d: r * r * d,
    "r d": lambda r, d: r * d,
    "r^3 d": lambda r, d: r**3 * d,
    "r^2 d^2": lambda r, d: r * r * d * d,
    "r^2": lambda r, d: r * r,
    "r^2 d log d": lambda r, d: r * r * d * np.log(d),
    "r^2 d log r": lambda r, d: r * r * d * np.log(r),
}
LAW = "r^2 d"
POWERS = np.linspace(-3.0, 3.0, 25)


@dataclass(frozen=True)
class Rival:
    """Another first term: root mean square of its relative residuals, and log(its residual / the law's) with its interval."""

    term: str
    error: float
    excess: float
    interval: Interval | None

    @property
    def excluded(self) -> bool:
        """Whether the law fits better beyond doubt."""
        return self.interval is not None and self.interval[0] > 0


@dataclass(frozen=True)
class Additive:
    """One kind of floats*: its fit, its rivals, the power of a logarithm, and the break-even width by (d, r)."""

    fit: AdditiveFit
    rivals: tuple[Rival, ...]
    log_power: float | None
    log_interval: Interval | None
    break_even: dict[tuple[int, int], tuple[float, Interval | None]]


def measure_floats(
    scaling: Scaling, rows: Rows, rng: np.random.Generator, resamples: int
) -> tuple[dict[str, Additive], list[dict[str, Any]]]:
    """Both kinds of floats* with everything fitted to them, and the numbers behind."""
    tasks = scaling.tasks()
    groups = [sound_at(rows, "risk", d=d, r=r, L=width) for d, r, width in tasks]
    draws = [(curves(group, lambda row: row["fresh"]), curves(group, lambda row: row["real"])) for group in groups]

    def both(again: bool) -> np.ndarray:
        values = []
        for task, (fresh, real) in zip(tasks, draws, strict=True):
            index = rng.integers(0, len(fresh), len(fresh)) if again else np.arange(len(fresh))
            values.append((_functional_floats(scaling, task, fresh[index])[0], _exact_floats(scaling, task, real[index])))
        return np.array(values)

    best, table = both(False), np.array([both(True) for _ in range(resamples)])
    found = {name: fit_floats(tasks, best[:, k], table[:, :, k]) for k, name in enumerate(KINDS)}
    listed = []
    for (d, r, width), (fresh, _), (functional, exact) in zip(tasks, draws, best, strict=True):
        m2 = _functional_floats(scaling, (d, r, width), fresh)[1]
        reached = math.isfinite(functional)
        entry = {"functional": functional if reached else None, "M2": m2 if reached else None}
        entry |= {"exact_head": exact if math.isfinite(exact) else None, "at_start": bool(exact == -math.inf)}
        listed.append({"d": d, "r": r, "L": width, "weights": memory.weights(width, d).floats, **entry})
    return found, listed


def fit_floats(tasks: Sequence[tuple[int, int, int]], best: Float[np.ndarray, "T"], table: Float[np.ndarray, "R T"]) -> Additive:
    """Everything that is fitted to floats* at (d, r, L), with intervals from the resamples in `table`."""
    d, r, width = (np.array([task[k] for task in tasks], float) for k in range(3))

    def terms(name: str, leading: np.ndarray) -> dict[str, np.ndarray]:
        return {name: leading, "L": width, "1": np.ones_like(d)}

    models = {name: terms(name, f(r, d)) for name, f in LEADING.items() if np.any(f(r, d))}
    powers = [terms(LAW, r * r * d * np.log(d) ** power) for power in POWERS]
    fit = additive_fit(models[LAW], best, table)
    if not fit.coefficients:
        return Additive(fit, (), None, None, {})
    errors = np.array([_errors(models, y) for y in (best, *table)])
    logs = np.log(np.maximum(errors, 1e-12)) - np.log(np.maximum(errors[:, :1], 1e-12))
    rivals = [
        Rival(name, float(errors[0, k]), float(logs[0, k]), percentile_interval(logs[1:, k])[0])
        for k, name in enumerate(models)
        if name != LAW
    ]
    least = np.array([_least_power(powers, y) for y in (best, *table[: len(table) // 2])])
    widths = {pair: np.array([_break_even(additive_fit(models[LAW], y), *pair) for y in (best, *table)]) for pair in _pairs(tasks)}
    crossings = {pair: (float(values[0]), percentile_interval(values[1:])[0]) for pair, values in widths.items() if np.isfinite(values[0])}
    return Additive(fit, tuple(rivals), float(least[0]), percentile_interval(least[1:])[0], crossings)


def _errors(models: Mapping[str, Mapping[str, np.ndarray]], y: np.ndarray) -> list[float]:
    errors = [additive_fit(terms, y).error for terms in models.values()]
    return [math.nan if error is None else error for error in errors]


def _least_power(powers: Sequence[Mapping[str, np.ndarray]], y: np.ndarray) -> float:
    errors = [additive_fit(terms, y).error for terms in powers]
    return math.nan if errors[0] is None else float(POWERS[int(np.argmin(np.array(errors, float)))])


def _pairs(tasks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((d, r) for d, r, _ in tasks))


def _break_even(fit: AdditiveFit, d: int, r: int) -> float:
    """L with a r^2 d + b L + c = L (d + 2); NaN where the labels alone cost as much as the weights."""
    if not fit.coefficients:
        return math.nan
    a, b, c = fit.coefficients.values()
    return (a * r * r * d + c) / (d + 2 - b) if d + 2 > b else math.nan


def _functional_floats(scaling: Scaling, task: tuple[int, int, int], fresh: np.ndarray) -> tuple[float, int]:
    d, r, width = task
    m2s = scaling.m2_grid(width)
    risk = np.median(fresh, axis=0).reshape(-1, len(m2s))
    return min((_crossing_m1(scaling.m1_grid(r), risk[:, k], scaling.level) * d + m2, m2) for k, m2 in enumerate(m2s))


def _exact_floats(scaling: Scaling, task: tuple[int, int, int], real: np.ndarray) -> float:
    d, r, width = task
    return _crossing_m1(scaling.m1_grid(r), np.median(real, axis=0), scaling.level) * d + width


def _crossing_m1(grid: Sequence[int], risk: np.ndarray, level: float) -> float:
    """M1*; infinite where the level is not reached, -infinite where the start of the grid reaches it."""
    return crossing(np.asarray(grid, float), risk, level).rank
