"""`python -m sims scaling` and `report` as a user meets them: results, interruption at any moment, bad input."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sims.__main__ import main
from sims.lab import sweep as lab_sweep
from sims.lab.files import toml_text
from sims.lab.store import TrialStore
from sims.scaling import laws as scaling_laws
from sims.scaling.experiment import LEAST_R, Scaling, sweeps
from tests.sims.programs import no_trial, refused

TINY = Scaling(
    d=(4, 6, 8),
    L=(8, 12, 16),
    r=(5, 6, 7),
    r_risk=(2, 3, 4),
    r_real=(3,),
    r_rows=(2, 3, 4),
    rows_d=6,
    rows_L=16,
    rows_samples=8.0,
    rows_diversity=2.0,
    rows_seeds=2,
    baseline_seeds=1,
    seeds=2,
    spectrum_draws=14,
    risk_draws=1,
    head_seeds=2,
    base_d=6,
    base_L=8,
    L_real=8,
    samples=8.0,
    diversity=2.0,
    level=0.6,
    m1_low=1.0,
    m1_high=3.0,
    m2_shares=(0.5, 1.0, 2.0),
    head_L=(8, 12, 16),
    head_samples=100,
    validation=60,
    test=60,
)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """The program with 40 resamples instead of 1000: the intervals are held against planted rows elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling_laws, "measure", partial(scaling_laws.measure, resamples=40))
        yield


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(toml_text(dataclasses.asdict(TINY)))
    return path


def command(preset: Path, out: Path, *more: str) -> list[str]:
    return ["scaling", "--preset", str(preset), "--workers", "1", "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("scaling") / "whole"
    main(command(preset, out))
    return out


def summary(out: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads((out / "summary.json").read_text()).items() if name != "seconds"}


def test_a_run_leaves_what_it_promises(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert {"config.toml", "env.json", "trials", "summary.json", "report.md", "figures"} <= names
    plan = sweeps(TINY, "numpy")
    count = sum(len(sweep.configs) for sweep in plan)
    assert len(list((finished / "trials").glob("*.parquet"))) == count
    assert summary(finished)["trials"] == count
    assert summary(finished)["failed"] == 0
    assert json.loads((finished / "env.json").read_text())["backend"] == "numpy"
    assert {path.suffix for path in (finished / "figures").iterdir()} == {".png", ".pdf", ".csv"}


def test_the_same_command_again_runs_no_trial(preset: Path, finished: Path, capfd: pytest.CaptureFixture[str]):
    before, seconds = summary(finished), json.loads((finished / "summary.json").read_text())["seconds"]
    with no_trial():
        main(command(preset, finished))
    assert summary(finished) == before
    assert json.loads((finished / "summary.json").read_text())["seconds"] >= seconds, "the work of the first start still counts"
    out = capfd.readouterr().out
    assert "| law | exponent [95 %] |" in out
    assert f"report: {finished / 'report.md'}" in out


KILLED = """
import os, signal, sys
from sims.__main__ import main
from sims.lab.store import TrialStore
put, left = TrialStore.put, [int(sys.argv[1])]

def put_and_die(*arguments, **more):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return put(*arguments, **more)

TrialStore.put = put_and_die
main(sys.argv[2:])
"""


def test_killed_and_run_again_the_summary_is_the_same(preset: Path, finished: Path, tmp_path: Path):
    words = command(preset, tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", KILLED, "19", *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / "trials").glob("*.parquet")}
    assert len(kept) == 19
    main(words)
    assert summary(tmp_path / "run") == summary(finished)
    for folder in (tmp_path / "run", finished):
        stored = {path.name: path.read_bytes() for path in (folder / "trials").glob("*.parquet")}
        assert {name: stored[name] for name in kept} == kept, "finished trials are kept as they were, to the bit"
    for name in ("law.png", "risk-M1.csv", "law-d.csv"):
        assert (tmp_path / "run" / "figures" / name).read_bytes() == (finished / "figures" / name).read_bytes()


def test_interrupted_and_run_again(
    preset: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    attempt, left = lab_sweep.attempt, [11]

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return attempt(*arguments)

    words = command(preset, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(lab_sweep, "attempt", interrupted)
        assert "the same command continues" in refused(words, capfd, 130)
    assert len(list((tmp_path / "run" / "trials").glob("*.parquet"))) == 11
    assert "finish the run first" in refused(["report", str(tmp_path / "run")], capfd)
    main(words)
    assert summary(tmp_path / "run") == summary(finished)


def test_a_report_is_rebuilt_from_the_stored_trials(finished: Path, tmp_path: Path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "report.md").unlink()
    shutil.rmtree(out / "figures")
    main(["report", str(out)])
    for name in ("report.md", "summary.json", "figures/law.png", "figures/risk.pdf", "figures/law-r_risk.csv"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_trial_that_fails_is_named_and_left_out(preset: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    config = sweeps(TINY, "numpy")[1].configs[0]
    TrialStore(out).put("risk", config, {}, failed="inner run diverged")
    main(command(preset, out))
    assert summary(out)["failed"] == 1
    assert "1 failed" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--preset", "fast"], "unknown preset 'fast': choose one of demo, full, full-gpu, quick"),
        (["--preset", "/nowhere/x.toml"], "unknown preset '/nowhere/x.toml'"),
        (["--L", "31"], "L=[31]"),
        (["--L", "31", "64", "128"], "even width: L=31"),
        (["--r", "1", "6", "9"], f"r >= {LEAST_R}"),
        (["--base-r", "5", "--d", "4", "6", "8"], "r=5 > d=4"),
        (["--samples", "0"], "samples=0.0"),
        (["--link", "septic"], "unknown link 'septic'"),
        (["--seed", "-1"], "seed=-1"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--workers", "-2"], "workers=-2"),
    ],
)
def test_bad_settings_end_in_one_line(preset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], words: str):
    assert words in refused(command(preset, tmp_path / "run", *more), capfd)
    assert not (tmp_path / "run").exists()


def test_bad_places_end_in_one_line(preset: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "another configuration (scaling.seed = 0 there, 7 asked)" in refused(command(preset, finished, "--seed", "7"), capfd)
    (tmp_path / "thesis.tex").write_text("x")
    assert "is no run folder" in refused(command(preset, tmp_path), capfd)
    assert "is no run folder" in refused(["report", str(tmp_path)], capfd)
    assert "at least one run folder" in refused(["report"], capfd)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text('program = "distil"\n')
    assert "holds no run of this program (program='distil')" in refused(["report", str(other)], capfd)
    (other / "config.toml").write_text('program = "scaling"\n[scaling]\ncolour = "red"\n')
    assert "holds settings that this version does not know" in refused(["report", str(other)], capfd)


def test_a_backend_without_its_device_is_refused(
    preset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sims.arrays.cupy_device", lambda: None)
    line = refused(command(preset, tmp_path / "run", "--backend", "cupy"), capfd)
    assert "backend 'cupy' needs CuPy and a CUDA device" in line


def test_every_option_is_explained(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["scaling", "--help"])
    assert caught.value.code == 0
    text = " ".join(capfd.readouterr().out.split())
    for field in dataclasses.fields(Scaling):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "input dimensions of the d sweep" in text
