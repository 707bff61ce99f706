"""What the tests of bad files share: a sound set of each format, the watch over a case, pickles that call.

Every case runs under an alarm (a hang is a failure), and afterwards the folder must hold what it held before: no case may run a command
(they all try to make the file `was-run`) or write anything outside the cache.
"""

import gzip
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from realdata import data
from sims.lab.files import RunError
from tests.realdata.files import idx_bytes, picture, some_pixels, write_cifar, write_cifar100, write_tiny, write_tree

SECONDS = 20  # of one case, on a busy machine


def own_cache_and_small_sets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and CIFAR of any number of images."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("cifar10", "cifar100-coarse"):
        monkeypatch.setitem(data.SOURCES, name, replace(data.SOURCES[name], counts={}))


@contextmanager
def watched(root: Path) -> Iterator[None]:
    """Nothing below the folder of `root` changes, and it ends in time."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = contents(root.parent)
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert contents(root.parent) == before


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


def refusal(name: str, root: Path, split: str) -> str | None:
    """The one line that loading ends in, None for a sound image set."""
    images, line = None, ""
    with watched(root):
        try:
            images = data.load(name, root, split)
        except RunError as error:
            line = str(error)
    if images is None:
        assert 20 < len(line) < 1000
        assert line.isprintable()
        return line
    assert images.images.dtype == np.uint8
    assert images.images.shape == (len(images), *data.source(name).shape)
    assert len(images) > 0
    assert images.labels.min() >= 0
    assert images.labels.max() < len(data.source(name).classes)
    return None


# --- one sound set of each format: its name, and the file that will be damaged ------------------------------------------------------------


def idx_set(root: Path, rng: np.random.Generator, *, packed: bool) -> tuple[str, Path, str]:
    suffix, pack = (".gz", gzip.compress) if packed else ("", bytes)
    for stem in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (12, 8, 8)), np.arange(12) % 10
        (root / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (root / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
    kind = "images-idx3" if rng.random() < 0.7 else "labels-idx1"
    return "idx:1x8x8:10", root / f"train-{kind}-ubyte{suffix}", "train"


def cifar_set(root: Path, rng: np.random.Generator, *, protocol: int) -> tuple[str, Path, str]:
    write_cifar(root, rng, each=10, protocol=protocol)
    return "cifar10", root / "data_batch_3", "train"


def cifar100_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    write_cifar100(root, rng, each=20)
    return "cifar100-coarse", root / "train", "train"


def npz_set(root: Path, rng: np.random.Generator, *, packed: bool) -> tuple[str, Path, str]:
    (np.savez_compressed if packed else np.savez)(root / "train.npz", **pair(rng))
    return "arrays:3x8x8:4", root / "train.npz", "train"


def safetensors_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    (root / "train.safetensors").write_bytes(safetensors.numpy.save(pair(rng)))
    return "arrays:3x8x8:4", root / "train.safetensors", "train"


def npy_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    arrays = pair(rng)
    np.save(root / "train-images.npy", arrays["images"])
    np.save(root / "train-labels.npy", arrays["labels"])
    return "arrays:3x8x8:4", root / f"train-{'images' if rng.random() < 0.7 else 'labels'}.npy", "train"


def pair(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"images": rng.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8), "labels": np.arange(5) % 4}


def picture_set(root: Path, rng: np.random.Generator, *, form: str, mode: str = "RGB") -> tuple[str, Path, str]:
    write_tree(root, rng, each=1)
    victim = root / "train" / "a" / "a_00.png"
    victim.write_bytes(picture(some_pixels(rng, 40, 30), form, mode))
    return "folders:3x8x8:2", victim, "train"


def tiny_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    write_tiny(root, rng, each=2)
    return "folders:3x64x64:2", root / "val" / "val_annotations.txt", "test"


# --- pickles that call --------------------------------------------------------------------------------------------------------------------


def hostile(module: str, name: str, form: str, marker: Path) -> bytes:
    """A pickle that calls module.name with a command, in one of the ways a pickle can."""
    command = f"touch {marker}"
    text = b"(V" + command.encode() + b"\ntR"
    if form == "protocol 0":
        return f"c{module}\n{name}\n".encode() + text + b"."
    if form == "instance":
        return b"(V" + command.encode() + f"\ni{module}\n{name}\n.".encode()
    if form == "stack global":
        words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name, command))
        cut = 4 + len(module) + len(name)
        return b"\x80\x04" + words[:cut] + b"\x93" + words[cut:] + b"\x85R."
    # among the labels of an otherwise sound batch
    return b"\x80\x02}(U\x06labels](" + f"c{module}\n{name}\n".encode() + text + b"eu."
