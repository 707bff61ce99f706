"""Run folders: one configuration, one process, clear words when that is not so."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from sims.lab.environment import environment
from sims.lab.run import RunError, RunFolder, main_guard, stored_config
from sims.lab.store import TrialStore

CONFIG = {"preset": "demo", "d": [16, 32], "link": {"name": "quadratic", "noise": 0.0}, "seed": None}


def test_a_new_folder_tells_what_runs_and_where(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "deep" / "run", CONFIG, backend="numpy", seed=7) as run:
        assert tomllib.loads((run.path / "config.toml").read_text()) == {
            "preset": "demo",
            "d": [16, 32],
            "link": {"name": "quadratic", "noise": 0.0},
        }
        record = json.loads((run.path / "env.json").read_text())
        assert record["seed"] == 7
        assert record["backend"] == "numpy"
        assert {"numpy", "scipy", "pyarrow", "distillation-laws"} <= record["versions"].keys()
        assert {"started", "commit", "modified", "python", "platform", "cpu", "cpus"} <= record.keys()
        assert run.write("figures/law.csv", "x,y\n").read_text() == "x,y\n"
        run.store.put("risk", {"d": 16}, {"v": 1.0})
        assert TrialStore(run.path).has("risk", {"d": 16})


def test_the_same_configuration_resumes_and_each_start_is_on_record(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        with RunFolder.open(tmp_path / "run", CONFIG, seed=seed):
            pass
    record = json.loads((tmp_path / "run" / "env.json").read_text())
    assert [record["seed"], *(later["seed"] for later in record["resumed"])] == [1, 2, 3]
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder.open(tmp_path / "run", CONFIG, resume=False)


def test_a_reader_takes_the_lock_and_leaves_the_record(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, CONFIG, seed=1):
        pass
    before = (tmp_path / "env.json").read_bytes()
    with RunFolder.open(tmp_path, CONFIG, record=False), pytest.raises(RunError, match="in use by another run"):
        RunFolder.open(tmp_path, CONFIG)
    assert (tmp_path / "env.json").read_bytes() == before


def test_another_configuration_is_refused_with_the_names_that_differ(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, CONFIG | {"workers": 2}):
        pass
    before = (tmp_path / "config.toml").read_text()
    other = {"preset": "demo", "d": [16, 64], "link": {"name": "quadratic", "noise": 0.1}, "workers": 4, "r": 3}
    with pytest.raises(RunError) as caught:
        RunFolder.open(tmp_path, other, free=("workers",))
    assert str(caught.value) == (
        f"{tmp_path} holds another configuration (d = [16, 32] there, [16, 64] asked, link.noise = 0.0 there, 0.1 asked, "
        "r = unset there, 3 asked): choose another --out"
    )
    assert (tmp_path / "config.toml").read_text() == before
    with RunFolder.open(tmp_path, CONFIG | {"workers": 9}, free=("workers",)):  # the refusal let go of the lock
        pass


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="not empty and is no run folder"):
        RunFolder.open(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="choose another --out"):
        RunFolder.open(tmp_path / "thesis.tex", CONFIG)


def test_a_run_that_died_while_its_folder_was_made_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    (tmp_path / ".config.toml.xy.tmp").write_text("prese")
    (tmp_path / "env.json.tmp").write_text("")
    with RunFolder.open(tmp_path, CONFIG):
        assert not (tmp_path / ".config.toml.xy.tmp").exists()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / ".law.csv.xy.tmp").write_text("d,")
    with RunFolder.open(tmp_path, CONFIG):
        assert list((tmp_path / "figures").iterdir()) == []


def test_a_damaged_configuration_or_record(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, CONFIG):
        pass
    (tmp_path / "env.json").write_text("{")
    with RunFolder.open(tmp_path, CONFIG, seed=5):
        assert json.loads((tmp_path / "env.json").read_text())["seed"] == 5
    assert stored_config(tmp_path)["d"] == [16, 32]
    with pytest.raises(RunError, match="is no run folder"):
        stored_config(tmp_path / "absent")
    (tmp_path / "config.toml").write_text("preset = ")
    with pytest.raises(RunError, match=r"config\.toml cannot be read"):
        RunFolder.open(tmp_path, CONFIG)


@pytest.mark.parametrize(("call", "number"), [("mkdir", errno.EROFS), ("open", errno.EACCES)])
def test_a_read_only_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(path: object, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(RunError, match=r"cannot write .*run.* choose an --out that you may write to"):
            RunFolder.open(tmp_path / "run", CONFIG)


HOLDER = """
import sys, time
from sims.lab.run import RunFolder
run = RunFolder.open(sys.argv[1], {"a": 1})
print("held", flush=True)
time.sleep(60)
"""

SWEEP = """
import os, signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands it down ignored
from pathlib import Path
from sims.lab.run import RunFolder, main_guard
from sims.lab.sweep import Sweep, run_sweeps

def trial(config):
    with open(Path(sys.argv[1]) / "calls.log", "a") as log:
        log.write(f"{config['i']}\\n")
    if config["i"] == int(sys.argv[2]):
        os.fsync = lambda _: (print("stuck", flush=True), time.sleep(60))
    return {"v": 0.1 * config["i"]}

@main_guard
def main():
    with RunFolder.open(sys.argv[1], {"a": 1}) as run:
        run_sweeps(run.store, [Sweep("risk", trial, tuple({"i": i} for i in range(4)))])

main()
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() != "", process.communicate()[1]
    return process


def test_two_runs_on_one_folder_and_a_killed_holder(tmp_path: Path) -> None:
    with start(HOLDER, str(tmp_path)) as holder:
        try:
            with pytest.raises(RunError, match=rf"in use by another run \(process {holder.pid}\)"):
                RunFolder.open(tmp_path, {"a": 1})
        finally:
            holder.kill()
    with RunFolder.open(tmp_path, {"a": 1}), pytest.raises(RunError, match="in use"):
        RunFolder.open(tmp_path, {"a": 1})


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_stopped_while_it_writes_goes_on_where_it_was(tmp_path: Path, blow: signal.Signals) -> None:
    folder = tmp_path / "run"
    with start(SWEEP, str(folder), "2") as process:
        process.send_signal(blow)
        _, complaint = process.communicate(timeout=30)
    if blow is signal.SIGINT:
        assert process.returncode == 130
        assert complaint == "interrupted: finished work is kept, the same command continues\n"
    assert [row["i"] for row in sorted(TrialStore(folder).rows("risk"), key=lambda row: row["i"])] == [0, 1]
    leftovers = list((folder / "trials").glob(".*.tmp"))
    assert len(leftovers) == (1 if blow is signal.SIGKILL else 0)
    done = subprocess.run([sys.executable, "-c", SWEEP, str(folder), "-1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "calls.log").read_text().split() == ["0", "1", "2", "2", "3"]  # only the unfinished trial ran twice
    rows = {row["i"]: row["v"] for row in TrialStore(folder).rows("risk")}
    assert rows == {i: 0.1 * i for i in range(4)}
    assert not list((folder / "trials").glob(".*.tmp"))


@dataclass(frozen=True)
class Sizes:
    r: int
    d: int

    def __post_init__(self) -> None:
        if self.r > self.d:
            raise ValueError(f"r = {self.r} exceeds d = {self.d}:\n take r <= d")


def refuse() -> None:
    raise RunError("no such place")


def misconfigure() -> None:
    Sizes(r=3, d=2)


def overflow() -> None:
    raise FloatingPointError("inner step 12: the loss is NaN")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("program", "status", "line"),
    [
        (refuse, 2, "error: no such place\n"),
        (misconfigure, 2, "error: r = 3 exceeds d = 2: take r <= d\n"),
        (overflow, 1, "error: inner step 12: the loss is NaN\n"),
        (interrupt, 130, "interrupted: finished work is kept, the same command continues\n"),
    ],
)
def test_programs_speak_plainly(program, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_guard(program)()
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_defects_keep_their_traceback_and_results_pass_through() -> None:
    @main_guard
    def defect() -> None:
        raise ValueError("operands could not be broadcast")

    with pytest.raises(ValueError, match="broadcast"):
        defect()
    assert main_guard(lambda x: x + 1)(2) == 3


def test_environment_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sims.lab.environment.shutil.which", lambda _: None)
    record = environment("cupy: device", 3)
    assert (record["commit"], record["modified"]) == (None, None)
    assert record["backend"] == "cupy: device"
    json.dumps(record, allow_nan=False)
    assert time.strptime(record["started"], "%Y-%m-%dT%H:%M:%S+00:00")
