"""Workers: the same rows as one process gives, one thread each, and nothing lost or left behind when a process dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sims.lab import workers
from sims.lab.files import RunError
from sims.lab.store import TrialStore
from sims.lab.sweep import Sweep, run_sweeps, serial
from sims.lab.workers import executor_for
from sims.pipeline import Task
from sims.scaling.experiment import Scaling
from sims.scaling.trials import head_trial, risk_trial

SHARED = {"d": 6, "r": 2, "seed": 0, "tolerance": 1e-6, "shares": [0.5]}
CONFIGS = tuple(SHARED | {"L": width, "draw": k} for width in (8, 12) for k in range(3))
TASK = asdict(Task(**Scaling().task(8, 2, 16))) | {"seed": 0, "m1": [3, 5], "m2": [16], "backend": "numpy"}
SWEEPS = Sweep("head", head_trial, CONFIGS), Sweep("risk", risk_trial, tuple(TASK | {"draw": k} for k in range(3)))
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def test_two_workers_give_the_rows_of_one_and_leave_no_trace_here(tmp_path: Path) -> None:
    before = dict(os.environ)
    executors = serial, executor_for(1), executor_for(2)
    found = [run_sweeps(TrialStore(tmp_path / str(k)), SWEEPS, executor=executor) for k, executor in enumerate(executors)]
    assert found[0] == found[1] == found[2]
    assert [row["L"] for row in found[0]["head"]] == [config["L"] for config in CONFIGS]
    assert dict(os.environ) == before


def test_one_worker_or_nothing_to_do_starts_no_cluster() -> None:
    words = "list(executor_for(1)([])), list(executor_for(2)([])), 'distributed' in sys.modules"
    program = f"import sys; from sims.lab.workers import executor_for; print({words})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] [] False\n"


def test_what_cannot_work_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="at least one worker: workers=0"):
        executor_for(0)
    monkeypatch.setattr(workers, "PATIENCE", 1)
    for address in ("tcp://127.0.0.1:1", "nowhere", "ftp://127.0.0.1:8786"):
        with pytest.raises(RunError, match=f"no Dask scheduler answers at '{address}'"):
            list(executor_for(1, address)([(head_trial, CONFIGS[0])]))
    monkeypatch.setattr(workers, "find_spec", lambda _: None)
    for asked in ((2, None), (1, "tcp://127.0.0.1:1")):
        with pytest.raises(RunError, match="need the cluster extra"):
            executor_for(*asked)
    executor_for(1)


def defect(config: Mapping[str, Any]) -> Mapping[str, Any]:
    raise FloatingPointError("step 3: the loss is NaN") if config["i"] else ZeroDivisionError("a defect")


def test_one_process_records_numerical_failures_and_lets_defects_through() -> None:
    executor = executor_for(1)
    assert [outcome.failed for _, outcome in executor([(defect, {"i": 1})])] == ["step 3: the loss is NaN"]
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(executor([(defect, {"i": 0})]))


# A program of its own, because workers import the main module. Trial 0 waits until `go` lies in the folder; 4 fails numerically; with
# `killer` there 1 kills its worker, with `defect` there 5 is a defect of ours.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from sims.lab.run import RunFolder, main_guard
from sims.lab.sweep import Sweep, run_sweeps
from sims.lab.workers import executor_for

FOLDER, BESIDE = Path(sys.argv[1]), Path(sys.argv[1]).parent
SCHEDULER = sys.argv[2] if len(sys.argv) > 2 else None

def trial(config):
    import numpy, scipy.linalg
    from threadpoolctl import threadpool_info
    if config["i"] == 4:
        raise FloatingPointError("inner step 3: the loss is NaN")
    if config["i"] == 1 and (BESIDE / "killer").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if config["i"] == 5 and (BESIDE / "defect").exists():
        raise ZeroDivisionError("a defect")
    if config["i"] == 0:
        (BESIDE / "waiting").write_text(f"{os.getpid()} {os.getppid()} .")
        while not (BESIDE / "go").exists():
            time.sleep(0.02)
    return {"threads": max(pool["num_threads"] for pool in threadpool_info())}

@main_guard
def main():
    with RunFolder.open(FOLDER, {"a": 1}) as run:
        sweep = Sweep("t", trial, tuple({"i": i} for i in range(7)))
        run_sweeps(run.store, [sweep], executor=executor_for(1 if SCHEDULER else 2, SCHEDULER))
    print("done")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
    main()
"""

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in THREADS}
ENVIRONMENT["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["i"]: row for row in TrialStore(folder).rows("t")}


def wait_for(condition: Any) -> None:
    """Returns when the condition holds; fails after a generous time, which only a hang takes."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("waited a minute in vain")


def gone(process: int) -> bool:
    """Ended: no such process, or one that only waits for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def started(tmp_path: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The program with trial 0 waiting and all others stored, and the process of the worker that waits, with its parent's."""
    (tmp_path / "program.py").write_text(PROGRAM)
    waiting = tmp_path / "waiting"
    with subprocess.Popen(command(tmp_path, *more), env=ENVIRONMENT, **PIPES) as process:
        try:
            wait_for(lambda: (waiting.exists() and waiting.read_text().endswith(".")) or process.poll() is not None)
            wait_for(lambda: len(rows(tmp_path / "run")) == 6 or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            yield process, [int(word) for word in waiting.read_text().split()[:2]]
        finally:
            (tmp_path / "go").write_text("")
            process.kill()


def command(tmp_path: Path, *more: str) -> list[str]:
    return [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "run"), *more]


def finishes(tmp_path: Path, *more: str) -> None:
    """The same command again ends what was begun, in silence."""
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / "trials").iterdir()}
    (tmp_path / "go").write_text("")
    done = subprocess.run(command(tmp_path, *more), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    complete(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "trials").iterdir() if path.name in kept} == kept


def run_to_its_end(tmp_path: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """The program with trial 0 free to go and one fault asked for."""
    (tmp_path / "program.py").write_text(PROGRAM)
    for name in (fault, "go"):
        (tmp_path / name).write_text("")
    return subprocess.run(command(tmp_path), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def complete(tmp_path: Path) -> None:
    found = rows(tmp_path / "run")
    assert sorted(found) == list(range(7))
    assert found[4]["failed"] == "inner step 3: the loss is NaN"
    assert {row["threads"] for i, row in found.items() if i != 4} == {1}


in_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@in_proc
def test_the_trials_of_a_killed_worker_run_again_elsewhere(tmp_path: Path) -> None:
    with started(tmp_path) as (process, (worker, parent)):
        assert parent == process.pid
        (tmp_path / "waiting").unlink()
        os.kill(worker, signal.SIGKILL)
        wait_for((tmp_path / "waiting").exists)
        (tmp_path / "go").write_text("")
        out, complaint = process.communicate(timeout=60)
    assert (process.returncode, out, complaint) == (0, "done\n", "")
    complete(tmp_path)


@in_proc
def test_a_killed_program_leaves_no_worker_and_loses_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as (process, (worker, _)):
        process.kill()
        wait_for(lambda: gone(worker))
    finishes(tmp_path)


@in_proc
def test_an_interrupt_ends_long_trials_at_once_and_in_one_line(tmp_path: Path) -> None:
    with started(tmp_path) as (process, (worker, _)):
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
        _, complaint = process.communicate(timeout=60)  # trial 0 would wait for ever
        assert gone(worker)
    assert process.returncode == 130
    assert complaint == "interrupted: finished work is kept, the same command continues\n"
    finishes(tmp_path)


def test_a_trial_that_kills_every_worker_is_named_after_all_others_are_stored(tmp_path: Path) -> None:
    done = run_to_its_end(tmp_path, "killer")
    assert done.returncode == 2
    assert done.stderr == (
        "error: 3 worker processes died (out of memory?) on trial {'i': 1}; all other trials are stored, the same command tries "
        "this one again\n"
    )
    assert sorted(rows(tmp_path / "run")) == [0, 2, 3, 4, 5, 6]
    (tmp_path / "killer").unlink()
    finishes(tmp_path)


def test_a_defect_in_a_worker_keeps_its_traceback(tmp_path: Path) -> None:
    done = run_to_its_end(tmp_path, "defect")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: a defect\n")
    assert "distributed." not in done.stderr
    assert 5 not in rows(tmp_path / "run")


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A scheduler and two workers started by hand, as docs/scale.md tells: (address, scheduler process)."""
    file, logs = folder / "scheduler.json", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}
    by_hand = ["scheduler", "--port", "0", "--no-dashboard"], ["worker", "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    processes: list[subprocess.Popen[str]] = []
    try:
        for words in by_hand:
            full = [sys.executable, "-m", "dask", *words, "--scheduler-file", str(file), "--local-directory", str(folder)]
            full = full if words[0] == "worker" else full[:-2]
            processes.append(subprocess.Popen(full, env=ENVIRONMENT, **logs))
            wait_for(lambda: file.exists() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], processes[0]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


@in_proc
def test_a_cluster_started_by_hand_serves_one_run_after_another(tmp_path: Path) -> None:
    with cluster(tmp_path) as (address, scheduler):
        with started(tmp_path, address) as (process, (worker, _)):
            process.kill()
        assert not gone(worker), "the workers of a cluster outlive the run"
        finishes(tmp_path, address)
        (tmp_path / "go").unlink()
        (tmp_path / "waiting").unlink()
        for file in (tmp_path / "run" / "trials").iterdir():
            file.unlink()
        with started(tmp_path, address) as (process, _):
            scheduler.kill()
            _, complaint = process.communicate(timeout=60)
        assert (process.returncode, complaint) == (2, f"error: {workers.LOST}\n")
