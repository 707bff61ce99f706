"""From the rows of a scaling experiment to its exponents: what each law measures, what it is predicted to be, and the verdict.

    d                    exponent in d of M1* d, M1* the least M1 whose median risk (real heads) is <= level: 1; rivals 0 and 2
    L                    exponent in L of the least M2 that recovers a head on line inputs: 1; rivals 0 and 2
    L_functional_*       exponent in L of the least M2 whose risk is within `functional_ratio` of a real head's; reported
    r_common_mode        exponent in r of the least M1 with largest / median eigenvalue <= 3; rivals 1 and 3, and the local slope between
                         the two largest r has to lie within 0.2 of 2
    r_conditioning, r_reflected   the same for a condition number <= 10, plain and reflected sets
    r_risk               population risk within `risk_ratio` of the teacher's; the upper end must stay under 2.3
    additive             floats* = a r^2 d + b L + c. functional: the least M1 d + M2 whose median risk with a fresh start is <= level;
                         exact_head: M1* d + L, with the L labels that the L law finds for an exact head

Medians run over seeds or draws, and intervals over resamples of them, whole curves at a time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from sims import population
from sims.lab.laws import AdditiveFit, LawFit, SampledLaw, additive_fit, crossing, judge, ranked_median, sampled_law, slope
from sims.lab.report import with_interval
from sims.lab.run import RunError
from sims.lab.store import Row
from sims.scaling.experiment import CRITERIA, Scaling
from theory.spectrum import ASYMPTOTIC_EXPONENT

RISK_BOUND = 2.3
LOCAL_TOLERANCE = 0.2
RIVALS: dict[str, tuple[float, ...]] = {"common_mode": (1.0, 3.0), "conditioning": (), "reflected": ()}

Rows = dict[str, list[Row]]


@dataclass(frozen=True)
class Series:
    """What a law was fitted to: x, the statistic there (inf where censored), its 95 % interval, and the prediction if there is one."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...]
    predicted: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Laws:
    """All exponents of an experiment, the numbers behind them, and remarks on what else was asked."""

    fits: dict[str, LawFit]
    series: dict[str, Series]
    additive: dict[str, AdditiveFit]
    floats: list[dict[str, Any]]
    remarks: dict[str, str]


def measure(scaling: Scaling, rows: Rows, resamples: int = 1000) -> Laws:
    """Every law from the stored rows."""
    rng = np.random.default_rng(np.random.SeedSequence(scaling.seed, spawn_key=(0,)))
    fits, series, remarks = {}, {}, {}
    fits["d"], series["d"] = _d_law(scaling, rows, rng, resamples)
    fits["L"], series["L"] = _head_law(rows, rng, resamples)
    for init in ("same", "fresh"):
        fits[f"L_functional_{init}"], series[f"L_functional_{init}"] = _functional_law(scaling, rows, init, rng, resamples)
    for name in CRITERIA:
        fits[f"r_{name}"], series[f"r_{name}"], remark = _spectrum_law(rows, name, rng, resamples)
        if remark:
            remarks[f"r_{name}"] = remark
    for name, key in (("plain", "r_risk"), ("reflected", "r_risk_reflected")):
        fits[key], series[key] = _risk_law(scaling, rows, name, rng, resamples)
    additive, floats = _additive(scaling, rows, rng, resamples // 4)
    return Laws(fits, series, additive, floats, remarks)


def sound_at(rows: Rows, kind: str, **where: Any) -> list[Row]:
    """The rows of a kind at a place that did not fail; RunError where none is left."""
    there = [row for row in rows[kind] if all(row[name] == value for name, value in where.items())]
    sound = [row for row in there if row["failed"] is None]
    if not sound:
        place = ", ".join(f"{name} = {value}" for name, value in where.items())
        raise RunError(f"all {len(there)} {kind} trials at {place} failed, first: {there[0]['failed'] if there else 'none was run'}")
    return sound


def _curves(rows: Sequence[Row], values: Callable[[Row], Sequence[float]]) -> Float[np.ndarray, "n G"]:
    return np.array([values(row) for row in rows], dtype=np.float64)


def _least(grid: Sequence[int], level: float, factor: float = 1.0) -> Callable[[np.ndarray], float]:
    """The statistic of a stack of curves: factor times the grid point at which their median first reaches the level."""
    return lambda curves: factor * crossing(np.asarray(grid, float), np.median(curves, axis=0), level).rank


def _series(law: SampledLaw, predicted: Sequence[float | None] | None = None) -> Series:
    return Series(law.x, law.y, law.intervals, None if predicted is None else tuple(predicted))


def _d_law(scaling: Scaling, rows: Rows, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series]:
    grid = scaling.m1_grid(scaling.base_r)
    draws = [_curves(sound_at(rows, "risk", d=d, r=scaling.base_r, L=scaling.base_L), lambda row: row["real"]) for d in scaling.d]
    law = sampled_law(scaling.d, draws, [_least(grid, scaling.level, d) for d in scaling.d], rng=rng, resamples=resamples)
    return judge(law.slope, predicted=1.0, asymptotic=1.0, rivals=(0.0, 2.0)), _series(law)


def _head_law(rows: Rows, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series]:
    widths = sorted({row["L"] for row in rows["head"]})
    groups = [sound_at(rows, "head", L=width) for width in widths]
    draws = [np.array([math.inf if row["least"] is None else float(row["least"]) for row in group]) for group in groups]
    law = sampled_law(widths, draws, [ranked_median] * len(widths), rng=rng, resamples=resamples)
    return judge(law.slope, predicted=1.0, asymptotic=1.0, rivals=(0.0, 2.0)), _series(law, law.x)


def _functional_law(scaling: Scaling, rows: Rows, init: str, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series]:
    def relative(row: Row) -> list[float]:
        if init == "same":
            return [risk / row["real"][-1] for risk in row["same"]]
        count = len(row["m2"])
        return [risk / row["fresh_real"] for risk in row["fresh"][-count:]]

    draws = [_curves(sound_at(rows, "risk", d=scaling.base_d, r=scaling.base_r, L=width), relative) for width in scaling.L]
    statistics = [_least(scaling.m2_grid(width), scaling.functional_ratio) for width in scaling.L]
    law = sampled_law(scaling.L, draws, statistics, rng=rng, resamples=resamples)
    return judge(law.slope, asymptotic=1.0), _series(law)


def _spectrum_law(rows: Rows, name: str, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series, str | None]:
    rs = sorted({row["r"] for row in rows["spectrum"]})
    threshold = population.THRESHOLDS[name]
    groups = [sound_at(rows, "spectrum", r=r) for r in rs]
    curves = [_curves(group, lambda row: row[name]) for group in groups]
    law = population.least_points_law(rs, [group[0]["grid"] for group in groups], curves, threshold, rng, resamples)
    predicted = [population.predicted_points(r, name) for r in rs]
    exponent = slope(np.array(rs, float), np.array(predicted)) if all(predicted) else None
    fit = judge(law.slope, predicted=exponent, asymptotic=ASYMPTOTIC_EXPONENT[name], rivals=RIVALS[name])
    series = _series(law, predicted)
    if name != "common_mode":
        return fit, series, None
    limit = ASYMPTOTIC_EXPONENT[name]
    near = abs(law.local[-1] - limit) <= LOCAL_TOLERANCE
    local = with_interval(law.local[-1], law.local_intervals[-1])
    verdict = "PASS" if near else "FAIL"
    remark = f"local slope from r = {rs[-2]} to {rs[-1]}: {local}, within {LOCAL_TOLERANCE} of {limit:g}: {verdict}"
    return (replace(fit, verdict="FAIL") if fit.verdict == "PASS" and not near else fit), series, remark


def _risk_law(scaling: Scaling, rows: Rows, name: str, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series]:
    rs = sorted({row["r"] for row in rows["population-risk"]})
    groups = [sound_at(rows, "population-risk", r=r) for r in rs]
    draws = [_curves(group, lambda row: [risk / row["teacher"] for risk in row[name]]) for group in groups]
    statistics = [_least(group[0]["grid"], scaling.risk_ratio) for group in groups]
    law = sampled_law(rs, draws, statistics, rng=rng, resamples=resamples)
    return judge(law.slope, bound=RISK_BOUND, asymptotic=None), _series(law)


def _additive(
    scaling: Scaling, rows: Rows, rng: np.random.Generator, resamples: int
) -> tuple[dict[str, AdditiveFit], list[dict[str, Any]]]:
    """The fit of floats* for labels that reach the level and for labels that recover the head exactly, and the numbers behind both."""
    tasks = scaling.tasks()
    groups = [sound_at(rows, "risk", d=d, r=r, L=width) for d, r, width in tasks]
    draws = [(_curves(group, lambda row: row["fresh"]), _curves(group, lambda row: row["real"])) for group in groups]

    def both(again: bool) -> np.ndarray:
        values = []
        for task, (fresh, real) in zip(tasks, draws, strict=True):
            index = rng.integers(0, len(fresh), len(fresh)) if again else np.arange(len(fresh))
            values.append((_functional_floats(scaling, task, fresh[index])[0], _exact_floats(scaling, task, real[index])))
        return np.array(values)

    def at_start(exact: float, d: int, r: int, width: int) -> bool:
        return bool(exact == scaling.m1_grid(r)[0] * d + width)

    best, table = both(False), np.array([both(True) for _ in range(resamples)])
    d, r, width = (np.array([task[k] for task in tasks], float) for k in range(3))
    terms = {"r^2 d": r * r * d, "L": width, "1": np.ones_like(d)}
    fits = {name: additive_fit(terms, best[:, k], table[:, :, k]) for k, name in enumerate(("functional", "exact_head"))}
    listed = []
    for (d_, r_, width_), (fresh, _), (functional, exact) in zip(tasks, draws, best, strict=True):
        m2 = _functional_floats(scaling, (d_, r_, width_), fresh)[1]
        reached = math.isfinite(functional)
        entry = {"functional": functional if reached else None, "M2": m2 if reached else None}
        entry |= {"exact_head": exact if math.isfinite(exact) else None, "at_start": at_start(exact, d_, r_, width_)}
        listed.append({"d": d_, "r": r_, "L": width_, **entry})
    return fits, listed


def _functional_floats(scaling: Scaling, task: tuple[int, int, int], fresh: np.ndarray) -> tuple[float, int]:
    """(floats*, M2 there): over the grid of M2, the least M1* d + M2 whose median risk with a fresh start is <= level."""
    d, r, width = task
    m2s = scaling.m2_grid(width)
    risk = np.median(fresh, axis=0).reshape(-1, len(m2s))
    return min((_crossing_m1(scaling.m1_grid(r), risk[:, k], scaling.level) * d + m2, m2) for k, m2 in enumerate(m2s))


def _exact_floats(scaling: Scaling, task: tuple[int, int, int], real: np.ndarray) -> float:
    """M1* d + L: points for the level with a head on real samples, and the L labels that carry that head exactly."""
    d, r, width = task
    return _crossing_m1(scaling.m1_grid(r), np.median(real, axis=0), scaling.level) * d + width


def _crossing_m1(grid: Sequence[int], risk: np.ndarray, level: float) -> float:
    """M1*, infinite when the level is not reached; the start of the grid when it is reached there (an upper bound, see `at_start`)."""
    found = crossing(np.asarray(grid, float), risk, level)
    return found.rank if found.side == "above" else found.value
