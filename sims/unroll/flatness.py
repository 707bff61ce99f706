"""Does flatness change how much of S* is encoded? Sets made along flat experts beside sets made along plain ones, task by task.

    mtt, ftd    the same task, start, recipe and floats; experts of equal training loss (sims.unroll.experts), flat ones for ftd
    ratio       ftd / mtt of a number (sims.unroll.paired): below 1, flat experts give the smaller one
    all M1      the mean over M1 is taken within a task first, so that tasks stay the independent draws
    floats*     the ratio of the least floats at which the median over tasks reaches the level of sims.unroll.laws, tasks resampled in pairs

Numbers are off-S* energies, angles and risks: small is good. The comparison is ours; the papers on FTD have no row that isolates flatness.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sims.lab.laws import Interval, percentile_interval
from sims.lab.store import Row
from sims.lab.sweep import rows_at, sound
from sims.unroll.experiment import Unroll
from sims.unroll.experts import QUALITIES
from sims.unroll.laws import CRITERIA, curves, least_floats, point_floats
from sims.unroll.paired import Ratio, log_ratios, ratio_of

PAIR = ("mtt", "ftd")
MEASURES = ("off_row_increments", "angle_row_increments", "risk_erased", "risk_trained")
EXPECTED = (
    "experts: losses equal within 2 %, flat ones of less sharpness (what flat training is for)",
    "sets: every interval holds 1, since both kinds of expert descend the same real loss, whose expected gradient in the rows lies in S* "
    "and the span of the rows wherever the network stands (derived here; that nothing else tells the two apart is a conjecture)",
)
"""What was expected before the run."""


def asked(config: Unroll) -> bool:
    """Whether the run has both kinds of expert and enough tasks for an interval."""
    return set(PAIR) <= set(config.method) and config.seeds > 1


def compare(config: Unroll, rows: Sequence[Row]) -> list[Ratio]:
    """Every ratio at the middle d and the first r; pairs of which a trial failed are left out."""
    found: list[Ratio] = []
    for name in (*QUALITIES, *MEASURES):
        logs = {m1: _logs(config, rows, name, m1) for m1 in config.M1}
        found += [ratio_of(name, m1, np.array(list(of.values()))) for m1, of in logs.items() if len(of) > 1 and len(config.M1) > 1]
        whole = [np.mean([of[draw] for of in logs.values()]) for draw in range(config.seeds) if all(draw in of for of in logs.values())]
        found += [ratio_of(name, None, np.array(whole))] if len(whole) > 1 else []
    return found


def _logs(config: Unroll, rows: Sequence[Row], name: str, m1: int) -> dict[int, float]:
    """By draw, log(ftd / mtt)."""
    groups = (sound(rows_at(rows, method=m, d=config.base_d, r=config.r[0], M1=m1)) for m in PAIR)
    plain, flat = ({row["draw"]: row for row in group} for group in groups)
    tasks = [k for k in plain if k in flat]
    one, other = (np.array([group[k][name] for k in tasks], float) for group in (flat, plain))
    return dict(zip(tasks, log_ratios(name, one, other).tolist(), strict=True))


def floats_ratio(config: Unroll, rows: Sequence[Row], criterion: str, resamples: int = 1000) -> tuple[float | None, Interval | None]:
    """(floats* of ftd / floats* of mtt, its interval), None where a level is not reached inside the grid or too seldom in the resamples."""
    d, r = config.base_d, config.r[0]
    stacks = [curves(config, rows, criterion, method=method, d=d, r=r) for method in PAIR]
    least = [least_floats(config, criterion, point_floats(config, method, d)) for method in PAIR]
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1,)))

    def ratio(pick: np.ndarray) -> float:
        plain, flat = (f(stack[pick]) for f, stack in zip(least, stacks, strict=True))
        return flat / plain if min(plain, flat) > 0.0 and max(plain, flat) < math.inf else math.nan

    at = ratio(np.arange(config.seeds))
    if math.isnan(at):
        return None, None
    return at, percentile_interval(np.array([ratio(rng.integers(0, config.seeds, config.seeds)) for _ in range(resamples)]))[0]


def as_json(config: Unroll, rows: Sequence[Row], ratios: Sequence[Ratio]) -> Mapping[str, Any]:
    """The entry `flatness` of summary.json."""
    floats = {criterion: floats_ratio(config, rows, criterion) for criterion in CRITERIA} if len(config.M1) > 1 else {}
    return {
        "ratios": [vars(ratio) | {"verdict": ratio.verdict} for ratio in ratios],
        "floats": {criterion: {"ratio": at, "interval": interval} for criterion, (at, interval) in floats.items()},
        "expected": list(EXPECTED),
    }
