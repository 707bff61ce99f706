"""What all sweeping commands share, on a program of three trials: where it runs enters nothing, a rebuilt report leaves the record."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sims.command import Facts, Program, Rows, Run, Runtime, execute, rebuild
from sims.lab.environment import environment
from sims.lab.files import RunError
from sims.lab.run import RunFolder, stored_config
from sims.lab.sweep import Sweep, serial
from sims.measures.command import PROGRAM as MEASURE


@dataclass(frozen=True)
class Toy:
    """Settings of the toy."""

    n: int = 3  # trials
    seed: int = 0  # root seed


def trial(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"square": config["i"] ** 2}


def finish(folder: RunFolder, config: Toy, rows: Rows, facts: Facts) -> None:
    folder.write("summary.json", json.dumps({"sum": sum(row["square"] for row in rows["toy"]), **asdict(facts)}))


def sweeps(config: Toy, backend: str) -> tuple[Sweep, ...]:
    return (Sweep("toy", trial, tuple({"i": i} for i in range(config.n))),)


TOY = Program("toy", Toy, "Squares.", "none", sweeps, finish)


def test_where_a_run_is_done_enters_neither_its_folder_nor_its_trials(tmp_path: Path) -> None:
    for name, runtime in (("here", Runtime("numpy")), ("local", Runtime("numpy", workers=2))):
        execute(TOY, Run(Toy(), tmp_path / name, runtime=runtime))
    here, local = (sorted((tmp_path / name / "trials").iterdir()) for name in ("here", "local"))
    assert [(path.name, path.read_bytes()) for path in here] == [(path.name, path.read_bytes()) for path in local]
    assert stored_config(tmp_path / "here") == stored_config(tmp_path / "local")
    assert json.loads((tmp_path / "local" / "summary.json").read_text())["sum"] == 5


def test_a_program_without_a_device_records_numpy_and_refuses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sims.command.backend_name", lambda asked: "cupy" if asked in ("auto", "cupy") else asked)
    monkeypatch.setattr("sims.command.runtime_words", lambda asked: "cupy: device" if asked in ("auto", "cupy") else asked)
    for device, backend, words in ((True, "cupy", "cupy: device"), (False, "numpy", "numpy")):
        out = tmp_path / backend
        execute(replace(TOY, device=device), Run(Toy(), out, runtime=Runtime("auto")))
        assert stored_config(out)["backend"] == json.loads((out / "summary.json").read_text())["backend"] == backend
        assert json.loads((out / "env.json").read_text())["backend"] == words
    with pytest.raises(RunError, match="toy runs on NumPy alone: leave out --backend cupy"):
        execute(replace(TOY, device=False), Run(Toy(), tmp_path / "refused", runtime=Runtime("cupy")))
    assert not (tmp_path / "refused").exists()
    assert not MEASURE.device


def test_cores_are_known_where_the_system_tells_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    asked: list[int] = []
    monkeypatch.setattr("sims.command.executor_for", lambda workers, scheduler: asked.append(workers) or serial)
    Runtime("numpy", workers=0).executor()
    assert asked == [6]
    assert environment()["cpus_usable"] == 6


def test_a_rebuilt_report_leaves_the_record_of_starts(tmp_path: Path) -> None:
    run = Run(Toy(), tmp_path / "run", runtime=Runtime("numpy"))
    execute(TOY, run)
    before = (tmp_path / "run" / "env.json").read_bytes()
    (tmp_path / "run" / "summary.json").write_text("{}")
    rebuild({"toy": TOY}, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["trials"] == 3
    assert (tmp_path / "run" / "env.json").read_bytes() == before
    execute(TOY, run)
    assert len(json.loads((tmp_path / "run" / "env.json").read_text())["resumed"]) == 1


def test_a_runtime_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers=-1"):
        Runtime(workers=-1)
    with pytest.raises(ValueError, match="exclude each other: workers=4, scheduler='tcp://a:1'"):
        Runtime(workers=4, scheduler="tcp://a:1")
    monkeypatch.setattr("sims.lab.workers.find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"cluster extra: pip install 'distillation-laws\[cluster\]'"):
        execute(TOY, Run(Toy(), tmp_path / "run", runtime=Runtime("numpy", workers=2)))
    assert not (tmp_path / "run").exists()
    execute(TOY, Run(Toy(), tmp_path / "run", runtime=Runtime("numpy")))
