"""SIGKILL at random moments of a distillation, an evaluation and the making of a cache: what lies on disk is sound, the same command
reaches the same result.

The moments are drawn over the time that the whole work takes; a process that is done before its moment starts the work anew, so that every
kill meets a process at work. Processes are forked from a server with their imports done (tests.realdata.processes), and the number that may
be needed is bounded. All of it is slow: `make test-slow`.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realdata.artefact import read_set
from realdata.checkpoint import read_checkpoint
from realdata.preprocess import read_transform
from tests.realdata.files import write_tree
from tests.realdata.processes import CONTEXT, decode_and_whiten, started
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


def finish(start: Callable[[], ForkServerProcess]) -> float:
    """Lets a process do its work undisturbed; seconds that it took."""
    began = time.monotonic()
    process = start()
    process.join(LONGEST)
    process.kill()
    assert process.exitcode == 0
    return time.monotonic() - began


def kill_at_random(start: Callable[[], ForkServerProcess], seconds: float, after: Callable[[], None], done: Callable[[], None]) -> None:
    """KILLS kills, `after` each of which the state on disk is looked at; `done` where a process was faster, and at the very end."""
    rng, kills = np.random.default_rng(0), 0
    for _ in range(MOST):
        process = start()
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
    finish(start)
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
    seconds, turn = finish(lambda: started([*words, str(tmp_path / "whole")])), [0]
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

    kill_at_random(lambda: started([*words, str(run())]), seconds, after, done)
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

    seconds, expected = finish(lambda: started(words)), result()

    def after() -> None:
        if target.exists():
            assert result() == expected

    def done() -> None:
        assert result() == expected

    kill_at_random(lambda: started(words), seconds, after, done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_making_a_cache(tmp_path: Path):
    """Decoded pictures and whitening matrix: what has its name is whole, at whatever moment of decoding, syncing, writing and naming."""
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    images = write_tree(tree, np.random.default_rng(0), each=40)["train"]

    def start() -> ForkServerProcess:
        process = CONTEXT.Process(target=decode_and_whiten, args=(tree, cache))
        process.start()
        return process

    def after() -> None:
        for folder in cache.glob("train-*"):
            assert np.array_equal(np.load(folder / "images.npy"), images)
            assert len(json.loads((folder / "index.json").read_text())["crc32"]) == 10
        for path in cache.glob("zca-*"):
            assert read_transform(path).tensors()["zca"].tobytes() == whitening

    def done() -> None:
        after()
        assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 2
        assert list(cache.glob(".train-*.tmp")) == []
        shutil.rmtree(cache)

    seconds = finish(start)
    whitening = read_transform(next(cache.glob("zca-*"))).tensors()["zca"].tobytes()
    done()
    kill_at_random(start, seconds, after, done)
