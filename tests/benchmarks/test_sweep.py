"""Sweep efficiency: the time of local workers, once they are up, against one worker's time over their number, and what starting costs.

efficiency = T(1) / (W T(W))          target: T(W) <= 1.15 T(1) / W for a sweep of a minute or more, one BLAS thread a worker
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import pytest

from sims.lab.sweep import Outcome
from sims.lab.workers import executor_for
from sims.scaling.experiment import Scaling, sweeps

TARGET = 1.15


def warm_up(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Long enough for every worker to take one, with what the trials import."""
    import sims.scaling.trials  # noqa: F401

    time.sleep(0.3)
    return {}


def times(workers: int, share: int) -> tuple[float, float, dict[int, Outcome]]:
    """(seconds until the first trial is back, seconds of the sweep after the workers are up, what the trials gave)."""
    risk = sweeps(Scaling(seeds=share), "numpy")[1]
    first = [(warm_up, {"i": i}) for i in range(3 * workers)]
    began, back, warm, ready, found = time.perf_counter(), 0.0, 0, 0.0, {}
    for i, outcome in executor_for(workers)(first + [(risk.fn, config) for config in risk.configs]):
        back = back or time.perf_counter() - began
        warm += i < len(first)
        if i >= len(first):
            found[i - len(first)] = outcome
        ready = ready if ready or warm < len(first) else time.perf_counter()
    return back, time.perf_counter() - ready, found


@pytest.mark.parametrize("workers", sorted({2, len(os.sched_getaffinity(0))} - {1}))
def test_sweep_efficiency(benchmark: Any, workers: int) -> None:
    """About 70 s on one core; a machine that does other work meanwhile shows in the figure."""
    share = 5 * max(1, workers // 2)
    _, one, alone = times(1, share)
    start, many, shared = benchmark.pedantic(lambda: times(workers, share), rounds=1)
    assert shared == alone, "the number of workers enters no result"
    ratio = workers * many / one
    benchmark.extra_info |= {
        "workers": workers,
        "one": round(one, 2),
        "many": round(many, 2),
        "ratio": round(ratio, 3),
        "start": round(start, 2),
    }
    print(
        f"\n{workers} workers: {many:.1f} s after they are up, one worker {one:.1f} s: {ratio:.2f} / W of its time "
        f"(target {TARGET}: {'reached' if ratio <= TARGET else 'missed'}); first trial back after {start:.1f} s"
    )
