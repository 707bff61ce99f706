"""Real images made when they are asked for: the bits of a set held on the device, in every use, and no more rows than are asked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realdata import baselines, data, preprocess, streaming
from realdata.__main__ import main
from realdata.config import DistillConfig
from realdata.preprocess import ZCA, Standardise, Transform
from realdata.streaming import Streamed, Transformed, on_device, on_host
from realdata.task import build, training_split
from sims.lab import environment
from tests.strategies import seeds

CPU = torch.device("cpu")


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No set is small enough to be held."""
    monkeypatch.setattr(streaming, "LARGEST", 0)


def some_images(rng: np.random.Generator, n: int, shape: tuple[int, int, int] = (3, 8, 8), classes: int = 3) -> data.ImageSet:
    labels = np.sort(np.arange(n) % classes)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return data.ImageSet(images, labels.astype(np.int64), tuple(map(str, range(classes))))


def fitted(kind: str, images: np.ndarray) -> Transform:
    return preprocess.fit_zca(images, per_image=False) if kind == "zca, common mean" else preprocess.fit(kind, images)


@given(kind=st.sampled_from(["standardise", "zca", "zca, common mean"]), seed=seeds, n=st.integers(2, 200), asked=st.integers(1, 200))
def test_streamed_rows_have_the_bits_of_held_ones(kind: str, seed: int, n: int, asked: int):
    rng = np.random.default_rng(seed)
    images = some_images(rng, n)
    transform = fitted(kind, images.images)
    held, labels = on_device(transform, images, CPU)
    streamed = Streamed(Transformed(images.images, transform), CPU)
    rows = rng.integers(0, n, asked)
    start = int(rng.integers(0, n))
    assert isinstance(held, torch.Tensor)
    assert len(streamed) == len(held) == len(labels)
    assert streamed.shape == tuple(held.shape)
    for key in (rows, torch.from_numpy(rows), slice(start, start + asked)):
        assert torch.equal(streamed[key], held[key])


def test_whitening_at_full_size_does_not_depend_on_the_company():
    """3072 features, where a matrix product takes other paths for other numbers of rows."""
    rng, size = np.random.default_rng(0), 3072
    matrix = rng.standard_normal((size, size)).astype(np.float32)
    ones = np.ones(1, dtype=np.float32)
    zca = ZCA(matrix, matrix, np.zeros(size, dtype=np.float32), ones, ones, np.asarray(True))
    images = rng.integers(0, 256, (130, 3, 32, 32), dtype=np.uint8)
    whole = zca.apply(images)
    for rows in (np.array([129]), rng.permutation(130)[:65], np.arange(3, 70)):
        assert np.array_equal(zca.apply(images[rows]), whole[rows])


def test_what_is_held_goes_by_bytes(monkeypatch: pytest.MonkeyPatch):
    images = some_images(np.random.default_rng(0), 30)
    transform = preprocess.fit("standardise", images.images)
    size = 4 * images.images.size
    for limit, held in ((size, True), (size - 1, False)):
        monkeypatch.setattr(streaming, "LARGEST", limit)
        assert isinstance(on_device(transform, images, CPU)[0], torch.Tensor) == held
        assert isinstance(on_host(transform, images.images), np.ndarray) == held
    monkeypatch.setattr(streaming, "LARGEST", 2**60)
    assert streaming.room(CPU) < 2**50, "a quarter of the memory at most"


def test_a_container_has_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "MEMORY_LIMITS", (str(tmp_path / "absent"), str(tmp_path / "limit")))
    for text, expected in (("max\n", None), (f"{2**30}\n", 2**30)):
        (tmp_path / "limit").write_text(text)
        assert environment.memory() == (expected or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    assert streaming.room(CPU) == 2**28


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_baselines_take_the_same_images(name: str, nothing_held: None):
    images = some_images(np.random.default_rng(1), 60)
    transform = preprocess.fit("zca", images.images)
    streamed = on_host(transform, images.images)
    assert isinstance(streamed, Transformed)
    both = [baselines.BASELINES[name](x, images.labels, 2, np.random.default_rng(2)) for x in (streamed, transform.apply(images.images))]
    assert np.array_equal(*both)


class Watched:
    """A transform that notes how many images it is asked for."""

    def __init__(self, transform: Standardise) -> None:
        self.transform = transform
        self.asked: list[int] = []

    def apply(self, images: data.Images) -> np.ndarray:
        self.asked.append(len(images))
        return self.transform.apply(images)


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """400 images of 8 x 8 in .npy files, which are mapped."""
    rng = np.random.default_rng(3)
    for split, n in (("train", 400), ("test", 40)):
        np.save(tmp_path / f"{split}-images.npy", rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8))
        np.save(tmp_path / f"{split}-labels.npy", np.arange(n) % 4)
    return tmp_path


SETTINGS = ["--preset", "dev-tiny", "--threads", "1", "--network.depth", "2", "--outer-steps", "2"]
SETTINGS += ["--augment", "dsa", "--transform", "zca", "--init", "real"]


def test_a_task_transforms_the_rows_it_draws_and_no_others(mapped: Path, nothing_held: None):
    config = DistillConfig("arrays:1x8x8:4", init="real", real_batch=100, horizon=2, window=1, curve_images=30, transform="standardise")
    split = training_split(config, str(mapped))
    assert isinstance(split.fitted.images, data.Selection), "the bytes stay on disk"
    transform = Watched(preprocess.fit_standardise(split.fitted.images))
    task = build(config, split, transform, CPU, 16)  # pyright: ignore[reportArgumentType]
    assert transform.asked == [4], "the first set"
    transform.asked.clear()
    real = task.objective.real  # pyright: ignore[reportAttributeAccessIssue]
    theta = task.problem.init(np.random.default_rng(0))
    real.loss_and_gradient(theta, real.draw(np.random.default_rng(0)))
    assert transform.asked == [16] * 6 + [4]


def test_a_run_and_its_evaluation_are_the_same_either_way(mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, limit in (("held", 2**40), ("streamed", 0)):
        monkeypatch.setattr(streaming, "LARGEST", limit)
        main(["distill", "--dataset", "arrays:1x8x8:4", "--root", str(mapped), "--out", str(tmp_path / name), *SETTINGS])
        main(["evaluate", str(tmp_path / name), "--root", str(mapped), "--seeds", "1", "--lengths", "3", "--threads", "1"])
    for file in ("distilled/data.safetensors", "distilled/card.md", "figures/curve.csv"):
        assert (tmp_path / "held" / file).read_bytes() == (tmp_path / "streamed" / file).read_bytes()
    held, streamed = ((tmp_path / name / "evaluation.json").read_text().split('"environment"')[0] for name in ("held", "streamed"))
    assert held == streamed
