"""Local worker processes: the same rows as one process gives, one thread each, and nothing lost or left behind when one dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sims.lab.files import RunError
from sims.lab.store import TrialStore
from sims.lab.sweep import run_trials, serial
from sims.lab.workers import THREAD_VARIABLES, local_executor
from sims.scaling.trials import head_trial

CONFIGS = [{"d": 6, "r": 2, "L": width, "seed": 0, "draw": k, "tolerance": 1e-6, "shares": [0.5]} for width in (8, 12) for k in range(3)]


def test_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    rows = [
        run_trials(TrialStore(tmp_path / str(k)), "head", CONFIGS, head_trial, executor=executor)
        for k, executor in enumerate((serial, local_executor(1), local_executor(2)))
    ]
    assert rows[0] == rows[1] == rows[2]
    assert [row["L"] for row in rows[0]] == [config["L"] for config in CONFIGS]
    assert {name: os.environ.get(name) for name in THREAD_VARIABLES} == before
    assert list(local_executor(2)(head_trial, [])) == []


def test_no_workers_are_refused() -> None:
    with pytest.raises(RunError, match="at least one worker: workers=0"):
        local_executor(0)


def defect(config: Mapping[str, Any]) -> Mapping[str, Any]:
    raise FloatingPointError("step 3: the loss is NaN") if config["i"] else ZeroDivisionError("a defect")


def test_one_process_records_numerical_failures_and_lets_defects_through() -> None:
    executor = local_executor(1)
    assert [outcome.failed for _, outcome in executor(defect, [{"i": 1}])] == ["step 3: the loss is NaN"]
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(executor(defect, [{"i": 0}]))


# A program of its own, because workers import the main module. Trial 0 waits until `go` lies in the folder, the others end at once.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from sims.lab.run import RunFolder, main_guard
from sims.lab.sweep import run_trials
from sims.lab.workers import local_executor

FOLDER = Path(sys.argv[1])

def trial(config):
    import numpy, scipy.linalg
    from threadpoolctl import threadpool_info
    if config["i"] == 4:
        raise FloatingPointError("inner step 3: the loss is NaN")
    if config["i"] == 0:
        (FOLDER.parent / "waiting").write_text(f"{os.getpid()} {os.getppid()}")
        while not (FOLDER.parent / "go").exists():
            time.sleep(0.02)
    return {"threads": max(pool["num_threads"] for pool in threadpool_info())}

@main_guard
def main():
    with RunFolder.open(FOLDER, {"a": 1}) as run:
        run_trials(run.store, "t", [{"i": i} for i in range(6)], trial, executor=local_executor(2))
    print("done")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
    main()
"""


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["i"]: row for row in TrialStore(folder).rows("t")}


def wait_for(condition: Any) -> None:
    """Returns when the condition holds; fails after a generous time, which only a hang takes."""
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("waited half a minute in vain")


def gone(process: int) -> bool:
    """Ended: no such process, or one that only waits for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("blow", ["worker killed", "program killed", "Ctrl-C"])
def test_what_was_finished_is_kept_when_a_process_dies(tmp_path: Path, blow: str) -> None:
    program, folder, waiting = tmp_path / "program.py", tmp_path / "run", tmp_path / "waiting"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        wait_for(lambda: len(waiting.read_text().split()) == 2 if waiting.exists() else process.poll() is not None)
        worker, parent = map(int, waiting.read_text().split())
        try:
            assert parent == process.pid
            wait_for(lambda: len(rows(folder)) == 5)
            if blow == "worker killed":
                os.kill(worker, signal.SIGKILL)
            elif blow == "program killed":
                process.kill()
                wait_for(lambda: gone(worker))
            else:
                os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
        finally:
            time.sleep(0.2)
            (tmp_path / "go").write_text("")  # after Ctrl-C the trial that has begun is waited for, and its result given up
        _, complaint = process.communicate(timeout=60)
    if blow == "worker killed":
        assert process.returncode == 2
        assert complaint == (
            "error: a worker process died (out of memory, or killed): finished trials are kept, the same command continues\n"
        )
    elif blow == "Ctrl-C":
        assert process.returncode == 130
        assert complaint == "interrupted: finished work is kept, the same command continues\n"
    wait_for(lambda: gone(worker))
    assert sorted(rows(folder)) == [1, 2, 3, 4, 5]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    found = rows(folder)
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert found[4]["failed"] == "inner step 3: the loss is NaN"
    assert {row["threads"] for i, row in found.items() if i != 4} == {1}
