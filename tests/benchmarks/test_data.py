"""The way from files to warped batches: decoding, both starts from a cache, its memory, reading, warps, and an epoch against its network.

Rates are stored with the timings, and the ones that a user asks for first stand in a table at the end. All are per second of the
processor's own time, so that other work on the machine does not enter, and each ratio is of two figures of one test.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from realdata import data, preprocess
from realdata.augment import Augment
from realdata.data import cache
from realdata.data.folders import decode
from realdata.networks import ConvNetConfig, convnet
from realdata.streaming import Streamed, Transformed
from sims.lab.report import Cell, markdown_table
from tests.realdata.files import picture

PICTURES = 20_000
BATCH = 256
EVERY = 49  # of the 196 batches of an epoch of CIFAR-10, one in so many goes through the network


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[list[Cell]]]:
    """Rows (what, how much, beside what), shown when all tests are done."""
    rows: list[list[Cell]] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + markdown_table(("processor seconds, or images a processor second", "", "in the same run"), rows))


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
    monkeypatch.setattr(cache, "cores", lambda: threads)
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

def rate(stored) -> float:
    began = time.process_time()
    for k in range(0, len(rows), 256):
        stored[rows[k : k + 256]]
    return len(rows) / (time.process_time() - began)

mapped = rate(images.images)
print(ready, held, private() - before, mapped, rate(np.array(images.images)))
"""


def test_start_from_the_cache(benchmark, tree: Path, tmp_path: Path, table: list[list[Cell]]) -> None:
    words = [sys.executable, "-c", START, str(tree)]
    environment = {**os.environ, "DISTILL_CACHE": str(tmp_path)}

    def start() -> list[float]:
        return [float(word) for word in subprocess.run(words, env=environment, check=True, capture_output=True).stdout.split()]

    first = start()[0]
    ready, held, after, rate, in_memory = benchmark.pedantic(start, rounds=1)
    size = PICTURES * 3 * 64 * 64 / 2**20
    assert after - held < size, "an epoch keeps the set in private memory"
    benchmark.extra_info.update(first_seconds=first, seconds_to_ready=ready, private_mib=held, private_mib_after_an_epoch=after)
    benchmark.extra_info.update(images_per_second=round(rate), from_memory=round(rate / in_memory, 3))
    table += [
        [f"first start, {PICTURES} JPEG of 64 px decoded", f"{first:.2f} s", f"{PICTURES / first:.0f} images"],
        ["second start", f"{ready:.3f} s", f"first / second = {first / ready:.0f}"],
        ["private memory after an epoch from the cache", f"{after:.0f} MiB", f"the images: {size:.0f} MiB"],
        [f"reading mapped images in random order, batches of {BATCH}", f"{rate:.0f}", f"{rate / in_memory:.2f} of the rate from memory"],
    ]


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
    np.testing.assert_allclose(whitening.zca @ whitening.zca_inverse, np.eye(3072), atol=1e-3)
    print(f"\nwhitening 3072 features of {len(images)} images: {time.process_time() - used:.1f} processor seconds")


@pytest.mark.parametrize(("name", "held"), [("flip-rotate", "memory"), ("dsa", "memory"), ("dsa", "bytes")])
def test_an_epoch_is_limited_by_the_network(benchmark, data_root: Path, table: list[list[Cell]], name: str, held: str) -> None:
    """All batches of an epoch of CIFAR-10 are fetched and warped, some go forward and backward through ConvNet-3 of width 128 as well.

    Images are held as transformed floats (`memory`), as a set that fits there is, or as bytes that are transformed when they are asked for.
    """
    if not (data_root / "cifar10").is_dir():
        pytest.skip(f"no cifar10 under {data_root}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng, stored = np.random.default_rng(0), data.load("cifar10", data_root / "cifar10", "train")
    transform = preprocess.fit("published-cifar10", stored.images)
    images = Streamed(Transformed(stored.images, transform), device)
    if held == "memory":
        images = torch.from_numpy(transform.apply(stored.images)).to(device)
    labels = torch.from_numpy(stored.labels).to(device)
    network, augment = convnet(ConvNetConfig(), (3, 32, 32), 10).to(device), Augment(name)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken: dict[str, list[float]] = {"fetch": [], "warp": [], "train": []}

    def timed(phase: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        began = clock()
        found = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken[phase].append(clock() - began)
        return found

    def warped(x: torch.Tensor) -> torch.Tensor:
        warp = augment.draw(rng, len(x))
        assert warp is not None
        return warp(x)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        return loss

    def epoch() -> None:
        for k, rows in enumerate(torch.from_numpy(rng.permutation(len(labels))).split(BATCH)):
            x = timed("fetch", lambda rows=rows: images[rows.to(device)])
            x = timed("warp", lambda x=x: warped(x))
            assert x.shape == (len(rows), 3, 32, 32)
            if k % EVERY == 0:
                timed("train", lambda x=x, rows=rows: step(x, labels[rows.to(device)]))

    step(images[torch.arange(BATCH)], labels[:BATCH])  # a first one to warm up
    benchmark.pedantic(epoch, rounds=1)
    assert len(taken["fetch"]) == -(-len(labels) // BATCH)
    fetch, warp, train = (float(np.mean(taken[phase])) for phase in ("fetch", "warp", "train"))
    share = (fetch + warp) / (fetch + warp + train)
    assert share < 0.1, "the loader takes a tenth of an epoch or more"
    benchmark.extra_info.update(share_of_an_epoch=round(share, 4), warped_per_second=round(BATCH / warp))
    table += [
        [f"CIFAR-10 held as {held}, {name}: fetched", f"{BATCH / fetch:.0f}", f"{fetch / train:.3f} of a training step"],
        ["  warped", f"{BATCH / warp:.0f}", f"{warp / train:.3f} of a training step"],
        ["  trained, ConvNet-3", f"{BATCH / train:.0f}", f"the loader's share of an epoch: {share:.1%}"],
    ]
