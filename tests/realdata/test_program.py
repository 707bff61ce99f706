"""`python -m realdata` as a user meets it: results, interruption at any moment, bad input, numerical failure."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from torch._dynamo.utils import counters

from realdata import data, distill
from realdata.__main__ import Distill, main
from realdata.artefact import read_set
from realdata.checkpoint import FILE, read_checkpoint
from realdata.compiled import compiler_here
from realdata.config import PRESETS, DistillConfig, as_settings, stored_config
from sims.lab.files import RunError, toml_text
from sims.lab.options import options, preset_options
from tests.realdata.files import write_mnist
from theory.distill.curvature import LowRankHessian
from theory.distill.inner_optim import Adam

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 600, "test": 200}
TINY = ["--preset", "dev-tiny", "--threads", "1", "--checkpoint-every", "1"]


def command(root: Path, out: Path, *more: str) -> list[str]:
    return ["distill", "--dataset", "mnist", "--root", str(root), "--out", str(out), *TINY, *more]


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], counts=COUNTS))
        main(command(root, out))
    return out


def results(out: Path) -> dict[str, bytes]:
    """What two runs of one configuration must share: the artefact, the curve, the stored state apart from its working time."""
    files = [*(out / "distilled").iterdir(), out / "figures" / "curve.csv", out / "figures" / "curve.png"]
    return {path.name: path.read_bytes() for path in files}


def refused(words: list[str], capfd: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one line that `words` end in."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("distil ", "evaluate:"))]
    assert caught.value.code == status, lines
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def test_a_run_leaves_what_it_promises(finished: Path):
    assert {path.name for path in (finished / "distilled").iterdir()} == {
        "data.safetensors",
        "transform.safetensors",
        "card.md",
        "config.toml",
        "grid.png",
        "SHA256SUMS",
    }
    distilled = read_set(finished)
    assert distilled.images.shape == (10, 1, 28, 28)
    assert np.array_equal(distilled.labels, np.arange(10))
    assert read_set(finished / "distilled").config == distilled.config
    lines = (finished / "figures" / "curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["outer_step", "0", "2", "4", "6"]
    summary = json.loads((finished / "summary.json").read_text())
    best = max(summary["held_out"][name]["mean"] for name in ("first", "best", "last"))
    assert summary["held_out"]["best"]["mean"] == best
    assert json.loads((finished / "env.json").read_text())["seed"] == 0
    card = (finished / "distilled" / "card.md").read_text()
    assert "rat-bptt" in card
    assert "warps: rotate" in card


def test_the_best_set_is_the_one_that_was_measured_best(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Accuracies by script, two networks a point: step 2 wins over 0, 4 and, as the earlier of equals, over 6."""
    script = iter([0.1, 0.1, 0.4, 0.6, 0.3, 0.3, 0.5, 0.5])
    monkeypatch.setattr(distill, "accuracy", lambda *_: next(script, 0.0))
    main(command(root, tmp_path / "run"))
    main(command(root, tmp_path / "short", "--outer-steps", "2"))
    state, short = (read_checkpoint(tmp_path / name, torch.device("cpu")) for name in ("run", "short"))
    assert state is not None
    assert short is not None
    assert [(point.step, point.mean) for point in state.curve] == [(0, 0.1), (2, 0.5), (4, 0.3), (6, 0.5)]
    assert state.curve[1].std == pytest.approx(0.02**0.5)
    assert state.best_point.step == 2
    assert torch.equal(torch.from_numpy(read_set(tmp_path / "run").images), short.outer.s[0])
    assert not torch.equal(state.outer.s[0], short.outer.s[0])


def test_the_same_command_again_does_nothing_twice(finished: Path, root: Path, capfd: pytest.CaptureFixture[str]):
    before, checkpoint = results(finished), (finished / FILE).stat().st_mtime_ns
    main(command(root, finished))
    assert results(finished) == before
    assert (finished / FILE).stat().st_mtime_ns == checkpoint
    assert "distilled set:" in capfd.readouterr().out


KILLED = """
import os, signal, sys
from dataclasses import replace
from realdata import data, distill
from realdata.__main__ import Distill, main
data.SOURCES["mnist"] = replace(data.SOURCES["mnist"], counts={counts})
write = distill.write_checkpoint

def write_and_die(folder, state):
    if state.outer.step == {step} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, state)
    if state.outer.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)

distill.write_checkpoint = write_and_die
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("step", "before"), [(3, False), (4, True)], ids=["after a checkpoint", "a measured step lost"])
def test_killed_and_run_again_the_result_is_bit_identical(root: Path, finished: Path, tmp_path: Path, step: int, before: bool):
    program = KILLED.format(counts=COUNTS, step=step, before=before)
    done = subprocess.run([sys.executable, "-c", program, *command(root, tmp_path / "run")], capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "run" / "distilled").exists()
    state = read_checkpoint(tmp_path / "run", torch.device("cpu"))
    assert state is not None
    assert state.outer.step == 3
    main(command(root, tmp_path / "run"))
    assert results(tmp_path / "run") == results(finished)


def test_interrupted_and_run_again(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    original = distill.distil

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for record in original(*arguments):
            yield record
            if record.step == 2:
                raise KeyboardInterrupt

    words = command(root, tmp_path / "run", "--checkpoint-every", "100")
    with monkeypatch.context() as patch:
        patch.setattr(distill, "distil", interrupted)
        assert "the same command continues" in refused(words, capfd, 130)
    state = read_checkpoint(tmp_path / "run", torch.device("cpu"))
    assert state is not None
    assert state.outer.step == 3
    main(words)
    assert results(tmp_path / "run") == results(finished)


def test_a_run_begun_before_an_option_came_goes_on_at_its_default(
    root: Path, tmp_path: Path, finished: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "distilled")
    older = tomllib.loads((out / "config.toml").read_text())
    del older["by_patch"], older["sketch"]
    (out / "config.toml").write_text(toml_text(older))
    assert "by_patch = unset there, True asked" in refused(command(root, out, "--by-patch"), capfd)
    main(command(root, out))
    assert results(out) == results(finished)


@pytest.mark.skipif(not compiler_here(torch.device("cpu")), reason="no C++ compiler")
def test_nothing_is_compiled_in_a_step_that_is_timed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, graphs = distill._loop, []

    def loop(*arguments: Any) -> Any:
        graphs.append(counters["stats"]["unique_graphs"])
        state = original(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        return state

    monkeypatch.setattr(distill, "_loop", loop)
    before = counters["stats"]["unique_graphs"]
    main(command(root, tmp_path / "run", "--compiled", "--chunk", "16"))
    assert before < graphs[0] == graphs[1]


AT = ["--method", "at-bptt", "--adaptive.spread", "1", "--adaptive.early-gain", "100", "--adaptive.middle-gain", "100"]


@pytest.mark.parametrize("profile", ["previous", "current"])
def test_at_bptt_goes_on_with_its_stage_and_profile(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str):
    """No gain is fast enough, so each of the three measurements after the first moves the stage; stopped before and after one."""
    more = [*AT, "--adaptive.profile", profile, "--project", "--hessian-rank", "1", "--outer-steps", "6"]
    main(command(root, tmp_path / "whole", *more))
    original = distill.distil

    def stopped_at(step: int) -> Callable[..., Iterator[Any]]:
        def records(*arguments: Any) -> Iterator[Any]:
            for record in original(*arguments):
                if record.step == step:
                    raise KeyboardInterrupt
                yield record

        return records

    words, stages = command(root, tmp_path / "run", *more), []
    with monkeypatch.context() as patch:
        for step in (2, 3):
            patch.setattr(distill, "distil", stopped_at(step))
            with pytest.raises(SystemExit):
                main(words)
            state = read_checkpoint(tmp_path / "run", torch.device("cpu"))
            assert state is not None
            assert state.outer.profile is not None
            assert len(state.outer.profile) == 4
            stages.append((state.outer.step, state.outer.stage.stage.value))
    main(words)
    assert stages == [(2, "middle"), (3, "middle")]
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    whole, again = (read_checkpoint(tmp_path / name, torch.device("cpu")) for name in ("whole", "run"))
    assert whole is not None
    assert again is not None
    assert (whole.outer.profile, whole.outer.stage) == (again.outer.profile, again.outer.stage)
    assert whole.outer.stage.stage.value == "late"
    assert whole.outer.stage.accuracy == pytest.approx(100 * whole.curve[-1].mean), "gains are in points"
    norms = torch.linalg.vector_norm(whole.outer.s[0].flatten(1), dim=1)
    assert torch.allclose(norms, torch.ones(10))


@pytest.mark.parametrize("project", [False, True])
def test_an_outer_update_that_overflows_is_blamed_and_the_last_finite_set_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], project: bool
):
    """Two good updates, then one at 1e38 times the rate."""
    step = Adam.step

    def jumping(adam: Adam, theta: Any, slots: Any, t: int, g: Any) -> Any:
        images = theta[0].shape == (10, 1, 28, 28)
        return step(replace(adam, lr=1e38) if images and t == 2 else adam, theta, slots, t, g)

    more = ["--curve-every", "6", *(["--project"] if project else [])]
    main(command(root, tmp_path / "short", *more, "--outer-steps", "2"))
    monkeypatch.setattr(Adam, "step", jumping)
    line = refused(command(root, tmp_path / "run", *more), capfd, 1)
    assert line.startswith("error: outer step 2: outer update diverged: ||S|| = inf after it; lower the outer step size; ")
    assert "the set after 2 steps is kept in the checkpoint: choose another --out with a lower --outer-lr (now 0.0" in line
    state, short = (read_checkpoint(tmp_path / name, torch.device("cpu")) for name in ("run", "short"))
    assert state is not None
    assert short is not None
    assert state.outer.step == 2
    assert torch.equal(state.outer.s[0], short.outer.s[0])


def test_an_outer_rate_that_overflows_at_once_is_blamed(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    line = refused(command(root, tmp_path / "run", "--outer-lr", "1e38"), capfd, 1)
    assert line.startswith("error: outer step 0: outer update diverged: ||S|| = inf")
    assert "the set after 0 steps is kept" in line
    assert "--outer-lr (now 1e+38)" in line
    state = read_checkpoint(tmp_path / "run", torch.device("cpu"))
    assert state is not None
    assert state.outer.step == 0
    assert torch.isfinite(state.outer.s[0]).all()


def test_learned_labels_and_partial_batches(root: Path, tmp_path: Path):
    more = ["--ipc", "2", "--batch-per-class", "1", "--learn-labels", "--method", "bptt", "--init", "real", "--transform", "zca"]
    main(command(root, tmp_path / "run", *more, "--outer-steps", "2"))
    distilled = read_set(tmp_path / "run")
    assert distilled.images.shape == (20, 1, 28, 28)
    assert distilled.labels.shape == (20, 10)
    assert np.allclose(distilled.labels.sum(axis=1), 1.0, atol=1e-6)
    assert np.array_equal(distilled.labels.argmax(axis=1), np.repeat(np.arange(10), 2))
    main(["evaluate", str(tmp_path / "run"), "--root", str(root), "--seeds", "1", "--lengths", "2", "--baselines", "means"])
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_data_verify_tells_good_from_bad(root: Path, capfd: pytest.CaptureFixture[str]):
    line = refused(["data", "verify", str(root), "--dataset", "mnist"], capfd)
    assert "4 of 6 rows of mnist are not in order" in line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--dataset", "mmnist"], "unknown data set 'mmnist': choose one of"),
        (["--root", "/nowhere"], "/nowhere is no folder"),
        (["--window", "5"], "between 1 and horizon=4 steps: length=5"),
        (["--ipc", "0"], "ipc=0"),
        (["--ipc", "1000", "--init", "real"], "ipc=1000"),
        (["--ipc", "2", "--batch-per-class", "3"], "batch_per_class=3"),
        (["--method", "magic"], "unknown method 'magic'"),
        (["--preset", "fast"], "unknown preset 'fast': choose one of"),
        (["--real-batch", "601"], "real_batch=601"),
        (["--network.depth", "9"], "depth 9 halves 28x28 images to nothing"),
        (["--network.norm", "spectral"], "unknown norm 'spectral'"),
        (["--outer-lr", "nan"], "outer_lr=nan"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--method", "at-bptt"], "base=2, spread=10, horizon=4"),
        (["--window-start", "1"], "leave out --window-start"),
        (["--by-patch", "--project"], "leave one out"),
        ([*AT, "--outer-steps", "4"], "total=2 with patiences 1 and 1"),
        ([*AT, "--adaptive.profile", "probe"], "unknown profile 'probe'"),
        (["--hessian-rank", "-1"], "rank=-1"),
        (["--sketch.max-age", "0"], "max_age=0"),
        (["--sketch.max-drift", "nan"], "max_drift=nan"),
        (["--chunk", "0"], "chunk=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--starts", "0"], "starts=0"),
        ([*AT, "--adaptive.profile", "current", "--starts", "2"], "starts=2, use --starts 1"),
        (["--method", "mtt", "--inner", "sgd", "--starts", "2"], "starts=2, use --starts 1"),
    ],
)
def test_bad_settings_end_in_one_line(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], words: str):
    assert words in refused(command(root, tmp_path / "run", *more), capfd)
    assert not (tmp_path / "run").exists()


def test_bad_places_end_in_one_line(root: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "another configuration (seed = 0 there, 7 asked)" in refused(command(root, finished, "--seed", "7"), capfd)
    assert "already holds a run" in refused(command(root, finished, "--no-resume"), capfd)
    words = ["evaluate", str(tmp_path), "--root", str(root)]
    assert "SHA256SUMS is missing" in refused(words, capfd)
    words[1] = str(finished)
    assert "unknown baseline 'forgetting'" in refused([*words, "--baselines", "forgetting"], capfd)
    assert "networks=0" in refused([*words, "--seeds", "0"], capfd)


def test_damage_is_named(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    main(command(root, out, "--outer-steps", "1"))
    (out / FILE).write_bytes(b"junk")
    card = out / "distilled" / "card.md"
    card.write_text(card.read_text() + "x")
    assert "card.md does not match its checksum" in refused(["evaluate", str(out), "--root", str(root)], capfd)
    (out / "distilled" / "SHA256SUMS").unlink()
    assert f"{FILE} is damaged" in refused(command(root, out, "--outer-steps", "1"), capfd)
    whole = (out / "transform.safetensors").read_bytes()
    for damaged in (b"junk", whole[:-1] + bytes([whole[-1] ^ 1])):
        (out / "transform.safetensors").write_bytes(damaged)
        assert "transform.safetensors is damaged" in refused(command(root, out, "--outer-steps", "1"), capfd)
    cut = tmp_path / "cut"
    write_mnist(cut, np.random.default_rng(0), counts=(COUNTS["train"], COUNTS["test"]))
    os.truncate(cut / "train-images-idx3-ubyte", 1000)
    line = refused(command(cut, tmp_path / "other"), capfd)
    assert f"{cut / 'train-images-idx3-ubyte'} announces" in line


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_every_preset_is_a_valid_configuration_that_stores_and_returns(preset: str):
    words = ["--dataset", "mnist", *preset_options(PRESETS, preset), "--root", "r", "--out", "o"]
    config = tyro.cli(Distill, args=words, console_outputs=False).config
    assert config != DistillConfig(config.dataset)
    # What is written beside the set reads back as the same configuration.
    assert stored_config(tomllib.loads(toml_text(as_settings(config))), preset) == config


def test_the_sketch_of_a_low_rank_hessian_is_told_by_its_options_and_older_runs_have_the_default_one():
    words = ["--dataset", "mnist", "--hessian-rank", "3", "--sketch.oversample", "1", "--sketch.power", "0", "--sketch.max-age", "5"]
    config = tyro.cli(DistillConfig, args=[*words, "--sketch.max-drift", "0.5"], console_outputs=False)
    assert config.hessian() == LowRankHessian(3, 1, 0, 5, 0.5)
    settings = tomllib.loads(toml_text(as_settings(config)))
    assert stored_config(settings, "here") == config
    assert settings.pop("sketch") == {"oversample": 1, "power": 0, "max_age": 5, "max_drift": 0.5}
    assert stored_config(settings, "here").hessian() == LowRankHessian(3)


def test_settings_become_options_and_unknown_ones_are_refused():
    settings = {"network": {"width": 3}, "learn_labels": False, "lengths": [1, 2], "init": "real"}
    assert options(settings) == ["--network.width", "3", "--no-learn-labels", "--lengths", "1", "2", "--init", "real"]
    with pytest.raises(RunError, match="place holds settings"):
        stored_config({"dataset": "mnist", "colour": "red"}, "place")
