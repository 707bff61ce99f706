"""From the rows of a comparison to its answer: paired log ratios of risks, least M1 over r, and the verdict on each expectation.

l(cell, M1)   log(reflected risk / plain risk), one value a draw; the pair shares its task, samples, start, biases and test inputs
interval      Student's, 95 %, over draws. Means over several cells or M1 are taken within a draw first: cells of one size share draws
least M1      where the median risk over draws first comes to `ratio` x the full-data teacher's median, or the median condition number
              of the rows on S* to that of `sims.population.THRESHOLDS`; censored where it does not
conjecture    M1 of order r is enough for a reflected set. By each criterion, from the interval [low, high] of the exponent: HOLDS where
              low <= 1 and high < 2, BREAKS where low > 1 and high >= 2, else UNDECIDED; beside it the exponent of the closed forms at
              the same sizes, where there are any. And place by place at the largest M1 <= ENOUGH r: HOLDS where the mean of
              log(risk / full-data teacher's) lies under log NEAR with its interval, BREAKS where it lies above, else UNDECIDED; the plain
              set beside it. Rule and M1 as they stand were set after first results had been seen (CHANGELOG)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sims.heads import PENALTIES
from sims.lab.laws import Interval, SampledLaw, crossing, mean_interval, sampled_law, slope
from sims.lab.store import Row
from sims.lab.sweep import rows_at, sound
from sims.population import THRESHOLDS, least_points_law, predicted_points, predicted_risk_points
from sims.reflected.experiment import ENOUGH, Reflected
from theory.head_risk import HeadFit
from theory.multi_index import HermiteLink, make_link
from theory.retrained import common_share, map_spread, retrained_spectrum, row_off_fraction
from theory.spectrum import criteria

SETS = ("plain", "reflected")
NEAR = 1.5  # times the teacher's risk


@dataclass(frozen=True)
class Pair:
    """One task of the comparison: medians over draws, and the paired log ratio of risks at each M1."""

    task: dict[str, Any]
    m1: tuple[int, ...]
    draws: tuple[int, ...]
    log_ratio: Float[np.ndarray, "n G"]
    excess: dict[str, Float[np.ndarray, "n G"]]  # log(risk / full-data teacher's)
    teacher: float
    risk: dict[str, Float[np.ndarray, "G"]]
    conditioning: dict[str, Float[np.ndarray, "G"]]
    off: dict[str, Float[np.ndarray, "G"]]
    predicted: dict[str, list[float | None]]  # condition numbers; None out of the range of the prediction
    predicted_off: dict[str, list[float]]

    @property
    def ratios(self) -> list[tuple[float, Interval]]:
        """Mean log ratio with its interval at each M1."""
        return [mean_interval(column) for column in self.log_ratio.T]


@dataclass(frozen=True)
class Expectation:
    """A stated expectation with what was measured."""

    text: str
    value: float
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class Place:
    """One task under the conjecture: risk over the teacher's at M1 of order r."""

    task: str
    m1: int
    factor: float
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class Found:
    """Everything the report tells."""

    pairs: list[Pair]
    least: dict[str, SampledLaw]
    conditioned: dict[str, SampledLaw]  # least M1 by conditioning
    gain: SampledLaw  # least M1 of the plain over that of the reflected set
    expectations: list[Expectation]
    predicted: dict[str, dict[str, float | None]]  # exponents of the closed forms at the sizes of the least M1: criterion, set


def measure(config: Reflected, rows: dict[str, list[Row]], resamples: int = 1000) -> Found:
    """Pairs, least M1 and verdicts from the stored rows."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    pairs = [_pair(cell, rows["pair"]) for cell in config.cells()]
    groups = [_sound(cell, rows["least"]) for cell in config.least_cells()]
    rs = [cell["r"] for cell in config.least_cells()]
    # One array a draw: teacher beside both curves, so that a resample keeps the pair and the level it is held against together.
    stacks = [np.array([[[row["teacher"]] * len(row["m1"]), *(row[f"risk_{name}"] for name in SETS)] for row in group]) for group in groups]
    grids = [np.asarray(group[0]["m1"], float) for group in groups]

    def least(grid: np.ndarray, k: int) -> Callable[[np.ndarray], float]:
        return lambda stack: crossing(grid, np.median(stack[:, k], axis=0), config.ratio * float(np.median(stack[:, 0, 0]))).rank

    def gain(grid: np.ndarray) -> Callable[[np.ndarray], float]:
        def both(stack: np.ndarray) -> float:
            plain, reflected = (least(grid, k)(stack) for k in (1, 2))
            return plain / reflected if math.isfinite(plain) and math.isfinite(reflected) else math.inf

        return both

    laws = {
        name: sampled_law(rs, stacks, [least(grid, k) for grid in grids], rng=rng, resamples=resamples) for k, name in enumerate(SETS, 1)
    }
    conditioned = {}
    for name in SETS:
        curves = [np.array([row[f"conditioning_{name}"] for row in group]) for group in groups]
        conditioned[name] = least_points_law(rs, [group[0]["m1"] for group in groups], curves, THRESHOLDS["conditioning"], rng, resamples)
    gained = sampled_law(rs, stacks, [gain(grid) for grid in grids], rng=rng, resamples=resamples)
    return Found(pairs, laws, conditioned, gained, expectations(config, pairs), predicted_exponents(config))


def _sound(cell: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    return sound(rows_at(rows, **cell), f"trials at {label(cell)}", 2)


def _pair(cell: dict[str, Any], rows: Sequence[Row]) -> Pair:
    group = _sound(cell, rows)
    grid = tuple(group[0]["m1"])

    def median(name: str) -> np.ndarray:
        return np.median([row[name] for row in group], axis=0)

    return Pair(
        cell,
        grid,
        tuple(row["draw"] for row in group),
        np.log(np.array([row["risk_reflected"] for row in group]) / np.array([row["risk_plain"] for row in group])),
        {name: np.log(np.array([[risk / row["teacher"] for risk in row[f"risk_{name}"]] for row in group])) for name in SETS},
        float(np.median([row["teacher"] for row in group])),
        {name: median(f"risk_{name}") for name in SETS},
        {name: median(f"conditioning_{name}") for name in SETS},
        {name: median(f"off_{name}") for name in SETS},
        predicted_conditioning(cell, grid),
        predicted_off(cell, grid),
    )


def predicted_conditioning(task: dict[str, Any], grid: Sequence[int]) -> dict[str, list[float | None]]:
    """Condition numbers on S* at finite N, d, L, J and M1 (theory.retrained), where the link's |A| is a multiple of the identity."""
    link = make_link(task["link"], task["r"])
    out: dict[str, list[float | None]] = {name: [] for name in SETS}
    for m in grid:
        spectrum = retrained_spectrum(link, task["noise"], *_sizes(task), m) if _even(link) else None
        found = None if spectrum is None else criteria(spectrum)
        for name, criterion in zip(SETS, ("conditioning", "reflected"), strict=True):
            out[name].append(None if found is None else float(found[criterion]))
    return out


def predicted_off(task: dict[str, Any], grid: Sequence[int]) -> dict[str, list[float]]:
    """Share of the retrained rows' energy off S* (theory.retrained)."""
    link = make_link(task["link"], task["r"])
    return {name: [row_off_fraction(link, task["noise"], *_sizes(task), m, name == "reflected") for m in grid] for name in SETS}


def predicted_exponents(config: Reflected) -> dict[str, dict[str, float | None]]:
    """Slopes of the predicted least M1 over the r of the law, those left out for which there is none; None where fewer than two are left.

    conditioning: theory.retrained, in the task's own sizes. risk: theory.head_risk, a quadratic target in the population limit, penalties
    1e-6, 1e-4 and 1e-2 of the grid.
    """
    cells = config.least_cells()
    out: dict[str, dict[str, float | None]] = {"risk": {}, "conditioning": {}}
    for name, criterion in zip(SETS, ("conditioning", "reflected"), strict=True):
        out["conditioning"][name] = _exponent(cells, [_predicted_points(cell, criterion) for cell in cells])
        fits = [HeadFit(cell["L"], cell["head_samples"], PENALTIES[8:17:4], cell["row_norm"]) for cell in cells]
        risks = [predicted_risk_points(c["r"], config.ratio, fit, name == "reflected") for c, fit in zip(cells, fits, strict=True)]
        out["risk"][name] = _exponent(cells, risks)
    return out


def _predicted_points(task: dict[str, Any], criterion: str) -> float | None:
    link, (d, n, k) = make_link(task["link"], task["r"]), _sizes(task)
    if not _even(link):
        return None
    return predicted_points(task["r"], criterion, common_share(d, k), map_spread(link, task["noise"], d, n, k))


def _even(link: HermiteLink) -> bool:
    """Whether |A| is a multiple of the identity."""
    square = link.hessian @ link.hessian
    return np.allclose(square, square[0, 0] * np.eye(link.r))


def _exponent(cells: Sequence[dict[str, Any]], least: Sequence[float | None]) -> float | None:
    known = [(cell["r"], m) for cell, m in zip(cells, least, strict=True) if m is not None and math.isfinite(m)]
    return slope(*np.array(known, float).T) if len(known) > 1 else None


def _sizes(task: dict[str, Any]) -> tuple[int, int, int]:
    """d, N, K."""
    return task["d"], round(task["samples"] * task["d"] ** 2), task["L"] // 2 * task["J"]


def label(task: dict[str, Any]) -> str:
    """One line that names the task."""
    diversity = task["L"] * task["J"] / (task["r"] * task["d"])
    text = f"{task['link']}, r = {task['r']}, L = {task['L']}, LJ/rd = {diversity:.2g}, N/d^2 = {task['samples']:g}"
    text += f", noise {task['noise']:g}" if task["noise"] else ""
    return text + ("" if task["matching"] == "squared" else f", {task['matching']}")


def holds(law: SampledLaw) -> str:
    """The conjecture's verdict by the exponent of a least M1."""
    interval = law.slope.interval
    if interval is None:
        return "UNDECIDED"
    if interval[0] <= 1.0 and interval[1] < 2.0:
        return "HOLDS"
    return "BREAKS" if interval[0] > 1.0 and interval[1] >= 2.0 else "UNDECIDED"


def places(pairs: Sequence[Pair], name: str = "reflected") -> list[Place]:
    """The conjecture's verdict place by place, for one of the sets."""
    found = []
    for pair in pairs:
        k = max(k for k, m in enumerate(pair.m1) if m <= ENOUGH * pair.task["r"])
        mean, (low, high) = mean_interval(pair.excess[name][:, k])
        verdict = "HOLDS" if high <= math.log(NEAR) else "BREAKS" if low > math.log(NEAR) else "UNDECIDED"
        found.append(Place(label(pair.task), pair.m1[k], math.exp(mean), (math.exp(low), math.exp(high)), verdict))
    return found


def pooled(pairs: Sequence[Pair], low: float, high: float = math.inf) -> dict[int, float]:
    """Mean log ratio of a draw over the pairs and their M1 in [low, high] r, for the draws that all of them have."""
    draws = set.intersection(*(set(pair.draws) for pair in pairs))
    values: dict[int, float] = {}
    for draw in sorted(draws):
        parts = []
        for pair in pairs:
            chosen = [k for k, m in enumerate(pair.m1) if low * pair.task["r"] <= m <= high * pair.task["r"]]
            parts.append(float(np.mean(pair.log_ratio[pair.draws.index(draw)][chosen])))
        values[draw] = float(np.mean(parts))
    return values


def expectations(config: Reflected, pairs: Sequence[Pair]) -> list[Expectation]:
    """The expectations in the head of sims.reflected.experiment, each with its measured mean log ratio and PASS or FAIL."""
    base = config.cell(config.r)
    enough = [pair for pair in pairs if pair.task["samples"] > 1]
    out = [
        _sign("reflected better from M1 = 4 r on, mean over all tasks with N > d^2", pooled(enough, ENOUGH), -1),
        _sign("plain better at M1 = r, r > 1 (missing quadratic forms)", pooled([p for p in enough if p.task["r"] > 1], 1, 1), 1),
    ]
    for name, words in (("link", "link"), ("matching", "matching"), ("noise", "label noise")):
        for value in dict.fromkeys(pair.task[name] for pair in enough):
            same = [pair for pair in enough if pair.task[name] == value and (name == "link" or pair.task["link"] == config.link)]
            if name == "link" or value != base[name]:
                out.append(_sign(f"reflected better from M1 = 4 r on, {words} {value}", pooled(same, ENOUGH), -1))
    out += _trend(pairs, base, "samples", "the gain shrinks to nothing towards N = d^2: least N/d^2 less largest")
    out += _trend(pairs, base, "J", "the gain shrinks as L J grows: largest J less least", reverse=True)
    return out


def _sign(text: str, values: dict[int, float], sign: int) -> Expectation:
    mean, (low, high) = mean_interval(np.array(list(values.values())))
    return Expectation(text, mean, (low, high), "PASS" if (low > 0 if sign > 0 else high < 0) else "FAIL")


def _trend(pairs: Sequence[Pair], base: dict[str, Any], name: str, text: str, reverse: bool = False) -> list[Expectation]:
    """The mean log ratio at one end of an axis less that at the other, expected above 0; nothing where the axis was not varied."""
    axis = [pair for pair in pairs if {**pair.task, name: 0, "head_samples": 0} == {**base, name: 0, "head_samples": 0}]
    axis.sort(key=lambda pair: pair.task[name], reverse=reverse)
    if len(axis) < 2:
        return []
    first, last = (pooled([pair], ENOUGH) for pair in (axis[0], axis[-1]))
    return [_sign(text, {draw: first[draw] - last[draw] for draw in first.keys() & last.keys()}, 1)]
