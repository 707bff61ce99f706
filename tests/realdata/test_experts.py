"""Experts: training by hand, folders that never mix, shards that are whole or refused, interruption at any moment, quality."""

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from realdata import data
from realdata.__main__ import main
from realdata.augment import Augment
from realdata.bridge import RealImages, Tensors
from realdata.experts import FlatConfig, Recipe, open_experts
from realdata.experts import run as run_experts
from realdata.experts.quality import Quality, mean_loss, measure
from realdata.experts.recipe import folder, key
from realdata.experts.shards import RESUME, read_snapshot, shard_path, write_snapshot
from realdata.experts.training import Trainer
from realdata.machine import Runtime
from realdata.networks import ConvNetConfig
from realdata.second_order import forward
from sims.lab.artefact import sealed
from sims.lab.files import RunError
from tests.strategies import generators
from theory.distill.leaves import flatten, unflatten
from theory.distill.trajectory import Experts, StartRange, TrajectoryMatching

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 300, "test": 40}
CPU = torch.device("cpu")
RECIPE = Recipe("mnist", network=ConvNetConfig(depth=2, width=3), transform="standardise", epochs=3, batch=100, lr=0.05, momentum=0.5)
QUALITY = Quality(measured=2, snapshots=2, images=20)
SMALL = ["--transform", "standardise", "--network.depth", "2", "--network.width", "3", "--epochs", "3", "--batch", "100", "--lr", "0.05"]
WORDS = ["experts", "--dataset", "mnist", *SMALL, "--momentum", "0.5", "--count", "2", "--threads", "1"]
MEASURED = ["--quality.measured", "2", "--quality.snapshots", "2", "--quality.images", "20"]


def words(root: Path, store: Path, *more: str) -> list[str]:
    return [*WORDS, *MEASURED, "--root", str(root), "--store", str(store), *more]


def only(store: Path) -> Path:
    """The one recipe's folder in a store."""
    (place,) = store.iterdir()
    return place


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], counts=COUNTS))
        main(words(root, store))
    return only(store)


def shards(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "shards").iterdir()}


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str], status: int = 2) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("experts ", "quality"))]
    assert caught.value.code == status, lines
    assert len(lines) == 1, lines
    return lines[0]


def toy(recipe: Recipe, rng: np.random.Generator, n: int = 30) -> Trainer:
    images, labels = torch.from_numpy(rng.standard_normal((n, 1, 28, 28))), torch.from_numpy(rng.integers(0, 10, n))
    return Trainer(recipe, RealImages(recipe.module(), images, labels, recipe.batch, Augment("none"), 16), torch.float64)


@pytest.mark.parametrize("flat", [None, ("euclidean", 0.3, 0.4), ("adaptive", 0.2, 0.0)])
def test_an_epoch_is_torch_s_own_training_on_every_image_once(flat: tuple[str, float, float] | None):
    """Momentum and weight decay by torch.optim.SGD, SAM and GSAM written out on flat vectors; float64."""
    config = FlatConfig() if flat is None else FlatConfig(flat[1], flat[2], flat[0])
    recipe = replace(RECIPE, batch=10, weight_decay=0.01, flat=config)
    trainer = toy(recipe, np.random.default_rng(0))
    real, first = trainer.real, trainer.start(0)
    theta = [torch.nn.Parameter(p.clone()) for p in first.theta]
    optimiser = torch.optim.SGD(theta, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    seen = []

    class Spied(RealImages):
        def loss_and_gradient(self, theta: Any, xi: Any) -> Any:
            seen.append(xi.rows)
            return super().loss_and_gradient(theta, xi)

    spied = Spied(real.module, real.images, real.labels, real.batch, real.augment, real.chunk)
    after = Trainer(recipe, spied, torch.float64).epoch(first)
    steps = seen[:: 1 if flat is None else 2]
    assert sorted(np.concatenate(steps)) == list(range(30))

    def gradient(at: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        at = at.detach().requires_grad_()
        loss = F.cross_entropy(forward(real.module, unflatten(at, first.theta), real.images[rows]), real.labels[rows])
        return torch.autograd.grad(loss, at)[0]

    for rows in steps:
        at = flatten(tuple(theta)).detach()
        direction = gradient(at, rows)
        if flat is not None:
            w = at if flat[0] == "adaptive" else torch.ones_like(at)
            climbed = gradient(at + flat[1] * w**2 * direction / (w * direction).norm(), rows)
            direction = climbed - flat[2] * (direction - (direction @ climbed) / (climbed @ climbed) * climbed)
        for p, part in zip(theta, unflatten(direction, first.theta), strict=True):
            p.grad = part.clone()
        optimiser.step()
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(after.theta, theta, strict=True))
    assert after.epoch == 1


def test_a_store_serves_segments_with_distinct_snapshots(finished: Path):
    experts = open_experts(finished, 2, CPU)
    assert isinstance(experts, Experts)
    assert (experts.count, experts.epochs) == (2, 3)
    runs = [[flatten(experts.snapshot(k, e)) for e in range(4)] for k in range(2)]
    everything = [snapshot for run in runs for snapshot in run]
    assert all((a - b).norm() > 1e-3 for i, a in enumerate(everything) for b in everything[:i])
    segment = TrajectoryMatching(experts, StartRange(2), 1).draw(np.random.default_rng(0))
    assert [p.shape for p in segment.start] == [p.shape for p in RECIPE.module().parameters()]
    with pytest.raises(ValueError, match="would end at epoch 4, the experts at 3"):
        TrajectoryMatching(experts, StartRange(3), 2)
    with pytest.raises(RunError, match="2 complete experts, 3 are asked for"):
        open_experts(finished, 3, CPU)


def test_an_expert_learns_and_is_the_same_whoever_trains_beside_it(root: Path, finished: Path, tmp_path: Path):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["mean"]["train_loss"][-1] < 0.8 * summary["mean"]["train_loss"][0]
    place = run_experts(RECIPE, 1, root, tmp_path, Runtime(threads=1), replace(QUALITY, measured=0))
    assert place.name == finished.name
    assert shards(place).items() <= shards(finished).items()
    assert not (finished / RESUME).exists()


KILLED = """
import os, signal, sys
from dataclasses import replace
from realdata import data
from realdata.__main__ import main
from realdata.experts import training
data.SOURCES["mnist"] = replace(data.SOURCES["mnist"], counts={counts})
write = training.{function}
calls = 0

def write_and_die(*args):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args)

training.{function} = write_and_die
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("function", "call"), [("write_snapshot", 7), ("write_under_way", 2)], ids=["before a shard", "before the record"])
def test_killed_and_run_again_the_shards_are_bit_identical(root: Path, finished: Path, tmp_path: Path, function: str, call: int):
    program = KILLED.format(counts=COUNTS, function=function, call=call)
    done = subprocess.run([sys.executable, "-c", program, *words(root, tmp_path)], capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert 0 < len(shards(only(tmp_path))) < 8
    main(words(root, tmp_path))
    assert shards(only(tmp_path)) == shards(finished)


def test_the_same_command_again_trains_and_measures_nothing(root: Path, finished: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any) -> Any:
        raise AssertionError("done twice")

    monkeypatch.setattr(Trainer, "epoch", never)
    monkeypatch.setattr("realdata.experts.quality.measure", never)
    main(words(root, finished.parent))


@pytest.mark.parametrize("pace", [0.5, 1.0, 2.4])
def test_an_epoch_takes_its_pace_in_passes_each_with_an_order_of_its_own(pace: float):
    """An epoch of 30 steps a pass: its first steps are those of any other pace, every pass sees every image once."""
    recipe = replace(RECIPE, batch=2, pace=pace)
    real, seen = toy(recipe, np.random.default_rng(3), 60).real, []

    class Spied(RealImages):
        def loss_and_gradient(self, theta: Any, xi: Any) -> Any:
            seen.append(tuple(xi.rows))
            return super().loss_and_gradient(theta, xi)

    trainer = Trainer(recipe, Spied(real.module, real.images, real.labels, real.batch, real.augment, real.chunk), torch.float64)
    after = trainer.epoch(trainer.start(0))
    assert (after.epoch, len(seen)) == (1, round(30 * pace))
    longer = replace(trainer, recipe=replace(recipe, pace=3.0))
    passes = list(itertools.islice(longer._path(longer.start(0), 0), 90))
    assert all(torch.equal(a, b) for a, b in zip(after.theta, passes[round(30 * pace) - 1][0], strict=True))
    orders = [sum(seen[-90:][i : i + 30], ()) for i in (0, 30, 60)]
    assert [sorted(order) for order in orders] == [list(range(60))] * 3
    assert len(set(orders)) == 3


@given(rng=generators, epoch=st.integers(0, 9999))
def test_a_snapshot_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, rng: np.random.Generator, epoch: int):
    """P11: any float32, subnormal, infinite or negative zero among them; the order of the parameters stays."""
    place, shapes = tmp_path_factory.mktemp("one"), ((3, 2), (5,), (1, 2, 2))
    bits = [rng.integers(0, 2**32, shape, dtype=np.uint32) for shape in shapes]
    theta = tuple(torch.from_numpy(b.view(np.float32)) for b in bits)
    write_snapshot(place, "key", 3, epoch, theta)
    found = read_snapshot(place, "key", shapes, 3, epoch, CPU)
    assert all(np.array_equal(b, p.numpy().view(np.uint32)) for b, p in zip(bits, found, strict=True))


def test_recipes_never_share_a_folder():
    changed = [
        replace(RECIPE, flat=FlatConfig(rho=0.1)),
        replace(RECIPE, flat=FlatConfig(rho=0.1, alpha=0.3)),
        replace(RECIPE, pace=1.2),
        replace(RECIPE, augment="none"),
        replace(RECIPE, transform="zca"),
        replace(RECIPE, network=ConvNetConfig(depth=2, width=4)),
        replace(RECIPE, lr=0.051),
        replace(RECIPE, seed=1),
        replace(RECIPE, held_out=0.2),
    ]
    places = {folder(Path("s"), recipe, "d") for recipe in [RECIPE, *changed]} | {folder(Path("s"), RECIPE, "e")}
    assert len(places) == len(changed) + 2
    assert {place.name.split("-")[1] for place in places} == {"plain", "flat"}


def test_damage_is_named_and_mended(root: Path, finished: Path, tmp_path: Path):
    place = run_experts(RECIPE, 2, root, tmp_path, Runtime(threads=1), replace(QUALITY, measured=0))
    experts, path = open_experts(place, 2, CPU), shard_path(place, 1, 2)
    good, header = path.read_bytes(), {"recipe": key(RECIPE, experts.data), "expert": 1, "epoch": 2}
    mend = "remove it and run the experts' command again"
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    other = sealed({"theta.0": np.zeros(3, np.float32)}, json.dumps(header | {"parts": {"theta": 1}}))
    wrong_place = shard_path(place, 1, 1).read_bytes()
    bad = {"damaged": good[: len(good) // 2], "not match its checksum": flipped, "another network": other, "another snapshot": wrong_place}
    for words, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(RunError, match=words) as caught:
            experts.snapshot(1, 2)
        assert mend in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(RunError, match="1 complete experts, 2 are asked for"):
        open_experts(place, 2, CPU)
    run_experts(RECIPE, 2, root, tmp_path, Runtime(threads=1), replace(QUALITY, measured=0))
    assert shards(place) == shards(finished)
    shard_path(place, 0, 1).unlink()
    with pytest.raises(RunError, match="misses expert 0"):  # expert 1 alone would be another run's experts
        open_experts(place, 1, CPU)


def test_quality_is_that_of_the_loss_itself():
    """Loss and accuracy by torch's own functions; lambda_max from the dense Hessian; sharpness not below one ascent."""
    recipe = replace(RECIPE, network=ConvNetConfig(depth=3, width=1, activation="sigmoid"), batch=12)
    trainer = toy(recipe, np.random.default_rng(1), 12)
    theta, real = trainer.start(0).theta, trainer.real
    found = measure(real, 10, (real.images, real.labels), theta, Quality(images=12, radius=0.05))

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward(real.module, unflatten(flat, theta), real.images), real.labels)

    flat = flatten(theta)
    assert found["train_loss"] == pytest.approx(float(loss(flat)), rel=1e-12)
    assert found["accuracy"] == pytest.approx(float((forward(real.module, theta, real.images).argmax(1) == real.labels).double().mean()))
    gradient = torch.func.grad(loss)(flat)
    assert found["sharpness"] >= float(loss(flat + 0.05 * gradient / gradient.norm()) - loss(flat)) - 1e-12
    hessian = torch.autograd.functional.hessian(loss, flat)
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert found["lambda_max"] == pytest.approx(largest, rel=2e-2)


@pytest.mark.slow
def test_flat_experts_are_flatter_at_equal_training_loss():
    """P8: from the same start, a flat run that is taken where it first has the loss of a plain one has the smaller largest eigenvalue."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = torch.from_numpy(rng.integers(0, 10, 240))
        patterns = torch.from_numpy(rng.integers(0, 2, (10, 1, 4, 4))).repeat_interleave(7, 2).repeat_interleave(7, 3)
        images = (patterns[labels] + torch.from_numpy(rng.standard_normal((240, 1, 28, 28)))).float()
        recipe = replace(RECIPE, seed=seed, batch=24, momentum=0.0, lr=0.1)
        plain = Trainer(recipe, RealImages(recipe.module(), images, labels, 24, Augment("none"), 64))
        flat = replace(plain, recipe=replace(recipe, flat=FlatConfig(0.2)))

        def loss(theta: Tensors, plain: Trainer = plain) -> float:
            return mean_loss(plain.real.module, theta, (plain.real.images, plain.real.labels))

        theta, _ = next(itertools.islice(plain._path(plain.start(0), 0), 29, None))
        other = next(at for at, _ in itertools.islice(flat._path(flat.start(0), 0), 150) if loss(at) <= loss(theta))
        here, there = (measure(plain.real, 10, (images, labels), at, Quality(images=240)) for at in (theta, other))
        assert 0.8 * here["train_loss"] < there["train_loss"] <= here["train_loss"] * (1 + 1e-6)
        assert there["lambda_max"] < 0.95 * here["lambda_max"], seed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--epochs", "0"], "epochs=0"),
        (["--batch", "301"], "batch=301"),
        (["--flat.rho", "-1"], "rho=-1"),
        (["--flat.ball", "square"], "unknown ball 'square'"),
        (["--momentum", "1"], "momentum=1"),
        (["--pace", "0"], "pace=0"),
        (["--augment", "magic"], "unknown augment 'magic'"),
        (["--quality.snapshots", "1"], "snapshots=1"),
        (["--root", "/nowhere"], "/nowhere is no folder"),
    ],
)
def test_bad_settings_end_in_one_line(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], said: str):
    assert said in refused(words(root, tmp_path, *more), capfd)
    assert not list(tmp_path.iterdir())


def test_divergence_is_named_and_keeps_finished_experts(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    line = refused(words(root, tmp_path, "--lr", "1e30"), capfd, 1)
    assert line.startswith("error: expert 0, epoch 1:")
    assert "--lr" in line


def test_two_starts_on_one_folder(root: Path, finished: Path, capfd: pytest.CaptureFixture[str]):
    descriptor = os.open(finished / ".lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "in use by another run" in refused(words(root, finished.parent), capfd)
    finally:
        os.close(descriptor)
