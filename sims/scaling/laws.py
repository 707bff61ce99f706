"""From the rows of a scaling experiment to its exponents: what each law measures, what it is predicted to be, and the verdict.

    d                    exponent in d of M1* d, M1* the least M1 whose median risk (real heads) is <= level: 1; rivals 0 and 2
    L                    exponent in L of the least M2 that recovers a head on line inputs: 1; rivals 0 and 2
    L_functional_*       exponent in L of the least M2 whose risk is within `functional_ratio` of a real head's; reported
    r_common_mode        exponent in r of the least M1 with largest / median eigenvalue <= 3; rivals 1 and 3, and the local slope between
                         the two largest r has to lie within 0.2 of 2
    r_conditioning, r_reflected   the same for a condition number <= 10, plain and reflected sets
    r_risk, r_risk_reflected   population risk within `risk_ratio` of the teacher's, predicted by theory.head_risk at these sizes (1 as
                         r -> infinity); the upper end must stay under 2.3
    r_rows_*             the same three criteria for rows retrained on real distilled points; predicted by theory.retrained at these sizes
    floats*              sims.scaling.additive

Medians run over seeds or draws, and intervals over resamples of them, whole curves at a time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sims import population
from sims.lab.laws import LawFit, SampledLaw, crossing, judge, ranked_median, sampled_law, slope
from sims.lab.report import number, with_interval
from sims.lab.store import Row
from sims.scaling.additive import Additive, measure_floats
from sims.scaling.experiment import CRITERIA, Scaling
from sims.scaling.rows import Rows, curves, sound_at
from theory import head_risk
from theory.multi_index import make_link
from theory.retrained import common_share, map_spread
from theory.spectrum import ASYMPTOTIC_EXPONENT

RISK_BOUND = 2.3
LOCAL_TOLERANCE = 0.2
RIVALS: dict[str, tuple[float, ...]] = {"common_mode": (1.0, 3.0), "conditioning": (), "reflected": ()}


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
    additive: dict[str, Additive]
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
        if missing := _missing(series[key]):
            remarks[key] = missing
    remarks["r_risk"] = "; ".join(text for text in (_limit_remark(rows), remarks.get("r_risk")) if text)
    for name in CRITERIA:
        fits[f"r_rows_{name}"], series[f"r_rows_{name}"] = _rows_law(scaling, rows, name, rng, resamples)
    additive, floats = measure_floats(scaling, rows, rng, resamples // 4)
    return Laws(fits, series, additive, floats, remarks)


def _least(grid: Sequence[int], level: float, factor: float = 1.0) -> Callable[[np.ndarray], float]:
    """The statistic of a stack of curves: factor times the grid point at which their median first reaches the level."""
    return lambda curves: factor * crossing(np.asarray(grid, float), np.median(curves, axis=0), level).rank


def _series(law: SampledLaw, predicted: Sequence[float | None] | None = None) -> Series:
    return Series(law.x, law.y, law.intervals, None if predicted is None else tuple(predicted))


def _d_law(scaling: Scaling, rows: Rows, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series]:
    grid = scaling.m1_grid(scaling.base_r)
    draws = [curves(sound_at(rows, "risk", d=d, r=scaling.base_r, L=scaling.base_L), lambda row: row["real"]) for d in scaling.d]
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

    draws = [curves(sound_at(rows, "risk", d=scaling.base_d, r=scaling.base_r, L=width), relative) for width in scaling.L]
    statistics = [_least(scaling.m2_grid(width), scaling.functional_ratio) for width in scaling.L]
    law = sampled_law(scaling.L, draws, statistics, rng=rng, resamples=resamples)
    return judge(law.slope, asymptotic=1.0), _series(law)


def _spectrum_law(rows: Rows, name: str, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series, str | None]:
    rs = sorted({row["r"] for row in rows["spectrum"]})
    threshold = population.THRESHOLDS[name]
    groups = [sound_at(rows, "spectrum", r=r) for r in rs]
    draws = [curves(group, lambda row: row[name]) for group in groups]
    law = population.least_points_law(rs, [group[0]["grid"] for group in groups], draws, threshold, rng, resamples)
    predicted = [population.predicted_points(r, name) for r in rs]
    fit = judge(law.slope, predicted=_exponent(rs, predicted), asymptotic=ASYMPTOTIC_EXPONENT[name], rivals=RIVALS[name])
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
    draws = [curves(group, lambda row: [risk / row["teacher"] for risk in row[name]]) for group in groups]
    statistics = [_least(group[0]["grid"], scaling.risk_ratio) for group in groups]
    law = sampled_law(rs, draws, statistics, rng=rng, resamples=resamples)
    predicted = [population.predicted_risk_points(r, scaling.risk_ratio, risk_fit(rows, r), name == "reflected") for r in rs]
    return judge(law.slope, predicted=_exponent(rs, predicted), bound=RISK_BOUND, asymptotic=head_risk.ASYMPTOTIC), _series(law, predicted)


def risk_fit(rows: Rows, r: int) -> head_risk.HeadFit:
    """How the heads of the population risk at r were fitted."""
    row = sound_at(rows, "population-risk", r=r)[0]
    return population.RiskTrial(**{f.name: row[f.name] for f in fields(population.RiskTrial)}).fit


def _exponent(rs: Sequence[int], predicted: Sequence[float | None]) -> float | None:
    """Slope of the predicted least M1 over r; None where one of them is not known or infinite."""
    known = [math.inf if value is None else value for value in predicted]
    return slope(np.array(rs, float), np.array(known)) if all(map(math.isfinite, known)) else None


def _missing(series: Series) -> str:
    """The places without a prediction; empty where there is none."""
    places = [number(x) for x, value in zip(series.x, series.predicted or (), strict=True) if value is None or math.isinf(value)]
    return f"no prediction at r = {', '.join(places)}, so none of the exponent" if places else ""


def _limit_remark(rows: Rows) -> str:
    """Rows of M1 -> infinity have A^2 u / |A u| for the teacher's A u: nothing is lost where |A| is a multiple of the identity."""
    rs = sorted({row["r"] for row in rows["population-risk"]})
    ratios = [float(np.median([row["limit"] / row["teacher"] for row in sound_at(rows, "population-risk", r=r)])) for r in rs]
    return "risk of infinitely many points over the teacher's: " + ", ".join(
        f"{number(x)} at r = {r}" for r, x in zip(rs, ratios, strict=True)
    )


def _rows_law(scaling: Scaling, rows: Rows, name: str, rng: np.random.Generator, resamples: int) -> tuple[LawFit, Series]:
    """Least M1 of a criterion for real rows; predicted where all r lie in the range of theory.retrained."""
    rs = sorted({row["r"] for row in rows["rows"]})
    groups = [sound_at(rows, "rows", r=r) for r in rs]
    draws = [curves(group, lambda row: row[f"rows_{name}"]) for group in groups]
    law = population.least_points_law(rs, [group[0]["grid"] for group in groups], draws, population.THRESHOLDS[name], rng, resamples)
    predicted = [_predicted_rows(scaling, r, name) for r in rs]
    return judge(law.slope, predicted=_exponent(rs, predicted), asymptotic=ASYMPTOTIC_EXPONENT[name]), _series(law, predicted)


def _predicted_rows(scaling: Scaling, r: int, name: str) -> float | None:
    task = scaling.rows_task(r)
    k = task.L // 2 * task.J
    spread = map_spread(make_link(task.link, r), task.noise, task.d, task.N, k)
    return population.predicted_points(r, name, common_share(task.d, k), spread)
