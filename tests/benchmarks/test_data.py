"""The way from files to warped batches: decoding, the start from the cache, its memory, whitening, and an epoch against its network.

Rates are stored with the timings; those of the processor are per second of its own time, so that other work on the machine does not enter.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from realdata import data, preprocess
from realdata.augment import Augment
from realdata.data import cache
from realdata.data.folders import decode
from realdata.networks import ConvNetConfig, convnet
from tests.realdata.files import picture

PICTURES = 20_000


def seconds(f: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of one call, after another to warm up."""
    f()
    began = clock()
    f()
    return clock() - began


def photograph(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG whose size in bytes is about that of a photograph of this size."""
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    smooth = np.kron(coarse, np.ones((8, 8, 1), dtype=np.int64))[:height, :width]
    return picture((smooth + rng.integers(-10, 11, smooth.shape)).clip(0, 255).astype(np.uint8), "JPEG", quality=85)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 000 pictures of 64 px in two classes, 64 different ones."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    different = [photograph(rng, 64, 64) for _ in range(64)]
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for k in range(PICTURES // 2):
            (root / "train" / name / f"{k:05d}.JPEG").write_bytes(different[k % 64])
    return root


@pytest.mark.parametrize(("height", "width", "side"), [(64, 64, 64), (224, 224, 64), (375, 500, 64), (375, 500, 128)])
def test_decoding(benchmark, tmp_path: Path, height: int, width: int, side: int) -> None:
    path = tmp_path / "x.JPEG"
    path.write_bytes(photograph(np.random.default_rng(0), height, width))

    def some() -> None:
        for _ in range(50):
            decode(path, (3, side, side))

    benchmark.pedantic(some, rounds=3, warmup_rounds=1)
    decoded = decode(path, (3, side, side))
    assert (decoded.shape, decoded.dtype) == ((3, side, side), np.uint8)
    assert 0 < decoded.mean() < 255
    rate = 50 / seconds(some)
    benchmark.extra_info["pictures_per_processor_second"] = round(rate)
    print(f"\n{width}x{height} JPEG of {path.stat().st_size} bytes to {side} px: {rate:.0f} pictures a processor second")


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_building_in_parallel(benchmark, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(cache.os, "sched_getaffinity", lambda _: range(threads))
    used = time.process_time()
    images = benchmark.pedantic(data.load, ("folders:3x64x64:2", tree, "train"), rounds=1)
    assert np.bincount(images.labels).tolist() == [PICTURES // 2] * 2
    rows = np.array([0, 63, PICTURES // 2 - 1])
    names = [tree / "train" / "a" / f"{k:05d}.JPEG" for k in rows]
    np.testing.assert_array_equal(images.images[rows], [decode(name, (3, 64, 64)) for name in names])
    used = (time.process_time() - used) / benchmark.stats.stats.min
    benchmark.extra_info.update(pictures_per_second=round(PICTURES / benchmark.stats.stats.min), cores_used=round(used, 2))
    print(f"\ncache of {PICTURES} pictures on {threads} threads: {PICTURES / benchmark.stats.stats.min:.0f} a second on {used:.2f} cores")


START = """
import os, sys, time

def private() -> int:
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) >> 10

import numpy as np
from realdata import data
before, began = private(), time.process_time()
images = data.load("folders:3x64x64:2", sys.argv[1], "train")
ready, held = time.process_time() - began, private() - before
assert np.array_equal(images.images[0], images.images[64]) and not np.array_equal(images.images[0], images.images[1])
rows = np.random.default_rng(0).permutation(len(images))
assert len(rows) == 20000
part = images.subset(np.sort(rows[: 9 * len(rows) // 10]))
began = time.process_time()
for k in range(0, len(rows), 256):
    images.images[rows[k : k + 256]]
print(ready, held, private() - before, len(rows) / (time.process_time() - began))
"""


def test_start_from_the_cache(benchmark, tree: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", START, str(tree)]
    environment = {**os.environ, "DISTILL_CACHE": str(tmp_path)}
    subprocess.run(words, env=environment, check=True, capture_output=True)
    said = benchmark.pedantic(lambda: subprocess.run(words, env=environment, check=True, capture_output=True).stdout, rounds=3)
    ready, held, after, rate = map(float, said.split())
    size = PICTURES * 3 * 64 * 64 / 2**20
    assert after - held < size, "an epoch keeps the set in private memory"
    benchmark.extra_info.update(seconds_to_ready=ready, private_mib=held, private_mib_after_an_epoch=after, images_per_second=round(rate))
    print(
        f"\n{PICTURES} images of 64 px ({size:.0f} MiB) ready in {ready:.2f} processor seconds, {held:.0f} MiB of private memory; "
        f"{after:.0f} MiB after an epoch in random order, {rate:.0f} images a processor second"
    )


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_packed_sets(benchmark, data_root: Path, name: str) -> None:
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} under {data_root}")
    images = benchmark.pedantic(data.load, (name, data_root / name, "train"), rounds=3)
    assert images.images.shape == {"cifar10": (50_000, 3, 32, 32), "mnist": (60_000, 1, 28, 28)}[name]
    assert np.bincount(images.labels).min() >= 5_000


def test_whitening(benchmark) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4_000, 3, 32, 32), dtype=np.uint8)
    used = time.process_time()
    whitening = benchmark.pedantic(preprocess.fit_zca, (images,), rounds=1)
    np.testing.assert_allclose(whitening.zca @ whitening.inverse, np.eye(3072), atol=1e-3)
    print(f"\nwhitening 3072 features of {len(images)} images: {time.process_time() - used:.1f} processor seconds")


@pytest.mark.parametrize("name", ["flip-rotate", "dsa"])
def test_an_epoch_is_limited_by_the_network(benchmark, name: str) -> None:
    """Rows taken from images on the device and warped, against forward and backward of ConvNet-3 of width 128, batches of 256."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng, n, batch = np.random.default_rng(0), 1024, 256
    images = torch.from_numpy(rng.standard_normal((n, 3, 32, 32), dtype=np.float32)).to(device)
    labels = torch.from_numpy(rng.integers(0, 10, n)).to(device)
    network, augment = convnet(ConvNetConfig(), (3, 32, 32), 10).to(device), Augment(name)

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.from_numpy(rng.permutation(n)).to(device)
        found = []
        for rows in order.split(batch):
            warp = augment.draw(rng, len(rows))
            assert warp is not None
            found.append((warp(images[rows]), labels[rows]))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    ready = batches()
    assert sum(len(y) for _, y in ready) == n
    assert all(x.shape[1:] == images.shape[1:] and bool(torch.isfinite(x).all()) for x, _ in ready)

    def train() -> None:
        for x, y in ready:
            torch.nn.functional.cross_entropy(network(x), y).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    clock = time.perf_counter if device.type == "cuda" else time.process_time
    benchmark.pedantic(batches, rounds=10, warmup_rounds=1)
    loading, training = np.mean([seconds(batches, clock) for _ in range(10)]), seconds(train, clock)
    benchmark.extra_info["share_of_training"] = round(loading / training, 4)
    print(f"\n{name} on {device}: {n / loading:.0f} images a second, {loading / training:.2%} of forward and backward ({n / training:.0f})")
