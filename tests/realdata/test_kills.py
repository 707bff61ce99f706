"""SIGKILL at random moments of a distillation and of an evaluation: what lies on disk is sound, the same command reaches the same result.

The moments are drawn over the time that the whole work takes; a process that is done before its moment starts the work anew, so that every
kill meets a process at work. Processes are forked from a server with their imports done (tests.realdata.processes), and the number that may
be needed is bounded. Cache building has the like in test_cache.py. All of it is slow: `make test-slow`.
"""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realdata.artefact import read_set
from realdata.checkpoint import read_checkpoint
from tests.realdata.processes import CONTEXT, started
from tests.realdata.sets import NAME, distilled_set, write_arrays, write_run

pytestmark = pytest.mark.slow
KILLS = 20
MOST = 10 * KILLS  # processes
LONGEST = 120.0  # seconds of one that is left alone


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """The server has its imports done before anything is timed."""
    process = CONTEXT.Process(target=int)
    process.start()
    process.join()


def finish(words: list[str]) -> float:
    """Carries the command out undisturbed; seconds that it took."""
    began = time.monotonic()
    process = started(words)
    process.join(LONGEST)
    process.kill()
    assert process.exitcode == 0
    return time.monotonic() - began


def kill_at_random(words: Callable[[], list[str]], seconds: float, after: Callable[[], None], done: Callable[[], None]) -> None:
    """KILLS kills, `after` each of which the state on disk is looked at; `done` where a process was faster, and at the very end."""
    rng, kills = np.random.default_rng(0), 0
    for _ in range(MOST):
        process = started(words())
        process.join(rng.uniform(0.0, seconds))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            after()
        else:
            assert process.exitcode == 0
            done()
        if kills == KILLS:
            break
    assert kills == KILLS
    finish(words())
    done()


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*sorted((run / "distilled").iterdir()), run / "figures" / "curve.csv")}


@pytest.mark.parametrize("method", ["rat-bptt", "at-bptt"])
def test_distillation(tmp_path: Path, method: str):
    write_arrays(tmp_path / "data", np.random.default_rng(0))
    settings = ["--dataset", NAME, "--root", str(tmp_path / "data"), "--preset", "dev-tiny", "--threads", "1", "--method", method]
    words = [
        "distill",
        *settings,
        "--adaptive.spread",
        "1",
        "--outer-steps",
        "60",
        "--curve-every",
        "4",
        "--checkpoint-every",
        "1",
        "--out",
    ]
    seconds, turn = finish([*words, str(tmp_path / "whole")]), [0]
    expected, last = contents(tmp_path / "whole"), [0]

    def run() -> Path:
        return tmp_path / f"run{turn[0]}"

    def after() -> None:
        state = read_checkpoint(run(), torch.device("cpu")) if run().exists() else None
        step = 0 if state is None else state.outer.step
        assert step >= last[0], "nothing finished is lost"
        last[0] = step
        if (run() / "distilled").exists():
            read_set(run())

    def done() -> None:
        assert contents(run()) == expected
        turn[0] += 1
        last[0] = 0

    kill_at_random(lambda: [*words, str(run())], seconds, after, done)
    assert list(tmp_path.glob("run*/**/*.tmp")) == []


def test_evaluation(tmp_path: Path):
    rng = np.random.default_rng(0)
    write_arrays(tmp_path / "data", rng)
    write_run(tmp_path / "run", distilled_set(rng, soft=True, ema=True))
    target = tmp_path / "result.json"
    words = ["evaluate", str(tmp_path / "run"), "--root", str(tmp_path / "data"), "--json", str(target), "--threads", "1", "--seeds", "2"]

    def result() -> Any:
        record = json.loads(target.read_text())
        target.unlink()
        return record["results"]

    seconds, expected = finish(words), result()

    def after() -> None:
        if target.exists():
            assert result() == expected

    def done() -> None:
        assert result() == expected

    kill_at_random(lambda: words, seconds, after, done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]
