"""Which window encodes S* in fewer outer steps? Each windowed method beside RaT-BPTT, task by task, at equal outer steps.

    ratio       method / rat-bptt of a number after k outer steps (sims.unroll.paired); all steps: the mean over the measured k > 0 of the
                logarithm is taken within a task first

Methods share tasks, first sets, fresh networks and the mean length of the window. Numbers are off-S* energies, angles and risks: small is
good. The comparison is ours: the AT-BPTT paper (arXiv:2510.04838) has images alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sims.lab.store import Row
from sims.lab.sweep import rows_at, sound
from sims.unroll.experiment import Unroll
from sims.unroll.paired import Ratio, log_ratios, ratio_of

REFERENCE = "rat-bptt"
OTHERS = ("at-bptt", "t-bptt", "bptt")
MEASURES = ("off_row_increments", "angle_points", "risk_erased", "risk_trained")
EXPECTED = (
    "at-bptt / rat-bptt: every ratio between 0.9 and 1.1. The stages move the window, but the meta-gradient through any window points into "
    "S* and the span of the points in expectation (derived here; that nothing else tells the two apart is a conjecture)",
    "t-bptt / rat-bptt: above 1 for the risks at the last step, since a window that never moves leaves the rest of the run unseen",
    "bptt / rat-bptt: below 1 for the risk of the set alone, at three times the steps differentiated",
)
"""What was expected before the run."""


def compare(config: Unroll, rows: Sequence[Row]) -> Mapping[str, list[Ratio]]:
    """By method, the ratios of every measure after each measured outer step and over all, at the middle d and M1 and the first r.

    Empty unless the run has at-bptt beside rat-bptt, sets on the way, and enough tasks for an interval.
    """
    if not {REFERENCE, "at-bptt"} <= set(config.method) or min(config.seeds, config.checkpoints) < 2:
        return {}
    by_task = {method: _curves(config, rows, method) for method in (REFERENCE, *OTHERS) if method in config.method}
    base = by_task.pop(REFERENCE)
    return {method: _ratios(config, curves, base) for method, curves in by_task.items()}


def _curves(config: Unroll, rows: Sequence[Row], method: str) -> dict[int, Row]:
    found = rows_at(rows, method=method, d=config.base_d, r=config.r[0], M1=config.M1[len(config.M1) // 2])
    return {row["draw"]: row for row in sound(found)}


def _ratios(config: Unroll, one: Mapping[int, Row], other: Mapping[int, Row]) -> list[Ratio]:
    tasks = sorted(one.keys() & other.keys())
    if len(tasks) < 2:
        return []
    steps = one[tasks[0]]["curve_step"]
    later = [k for k, step in enumerate(steps) if step > 0]
    found: list[Ratio] = []
    for name in MEASURES:
        curves = [np.array([of[task][f"curve_{name}"] for task in tasks], float)[:, later] for of in (one, other)]
        logs = log_ratios(name, *curves)
        found += [ratio_of(name, steps[k], column) for k, column in zip(later, logs.T, strict=True)]
        found.append(ratio_of(name, None, logs.mean(axis=1)))
    return found
