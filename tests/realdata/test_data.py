"""Readers of image files: what they accept, what they refuse and in which words, and the held-out split."""

import gzip
import hashlib
import io
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from realdata import data
from realdata.data.cifar import read_pickle
from realdata.data.idx import read_idx
from sims.lab.files import RunError
from tests.realdata.files import idx_bytes, python2_pickle, write_cifar, write_cifar100, write_mnist
from tests.strategies import seeds


@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)), packed=st.booleans())
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, packed: bool):
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    read = read_idx(path)
    assert read.shape == array.shape
    assert np.array_equal(read, array)


@given(cut=st.integers(0, 23), packed=st.booleans())
def test_idx_cut_anywhere_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, cut: int, packed: bool):
    whole = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    whole = gzip.compress(whole, mtime=0) if packed else whole
    path = tmp_path_factory.mktemp("idx") / ("cut.gz" if packed else "cut")
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(RunError, match=str(path)):
        read_idx(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x0d\x01" + struct.pack(">i", 1) + b"\x00" * 4,
        b"\x00\x00\x08\x00",
        b"\x00\x00\x08\x01" + struct.pack(">i", -1),
        idx_bytes(np.zeros(3)) + b"x",
    ],
    ids=["empty", "floats", "no axes", "negative size", "too long"],
)
def test_other_idx_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(RunError, match="fetch it again"):
        read_idx(tmp_path / "f")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_mnist_is_found_and_read(tmp_path: Path, compress: bool, place: str, monkeypatch: pytest.MonkeyPatch):
    small = _smaller("mnist", {"train": 30, "test": 20})
    monkeypatch.setitem(data.SOURCES, "mnist", small)
    write_mnist(tmp_path / place, np.random.default_rng(0), compress=compress, counts=(30, 20))
    train, test = (data.load("mnist", tmp_path, split) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((30, 1, 28, 28), (20, 1, 28, 28))
    assert train.labels.dtype == np.int64
    raw = read_idx(next((tmp_path / place).glob("train-images*")))
    assert np.array_equal(train.images[:, 0], raw)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar_is_found_and_read(tmp_path: Path, protocol: int, place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(data.SOURCES, "cifar10", _smaller("cifar10", {"train": 50, "test": 10}))
    write_cifar(tmp_path / place, np.random.default_rng(0), each=10, protocol=protocol)
    train = data.load("cifar10", tmp_path, "train")
    assert train.images.shape == (50, 3, 32, 32)
    with open(tmp_path / place / "data_batch_1", "rb") as file:
        raw = pickle.load(file, encoding="bytes")
    assert np.array_equal(train.images[:10].reshape(10, -1), raw[b"data"])
    assert train.labels[:10].tolist() == raw[b"labels"]
    assert len(data.load("cifar10", tmp_path, "test")) == 10


def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("cifar100", "cifar100-coarse"):
        monkeypatch.setitem(data.SOURCES, name, _smaller(name, {"train": 100, "test": 100}))
    write_cifar100(tmp_path / "cifar-100-python", np.random.default_rng(0))
    fine, coarse = (data.load(name, tmp_path, "train") for name in ("cifar100", "cifar100-coarse"))
    with open(tmp_path / "cifar-100-python" / "train", "rb") as file:
        raw = pickle.load(file, encoding="bytes")
    assert fine.labels.tolist() == raw[b"fine_labels"]
    assert coarse.labels.tolist() == raw[b"coarse_labels"]
    assert np.array_equal(fine.images.reshape(100, -1), raw[b"data"])
    assert (len(set(fine.classes)), len(set(coarse.classes))) == (100, 20)
    assert list(fine.classes) == sorted(fine.classes)
    assert list(coarse.classes) == sorted(coarse.classes)


@pytest.mark.parametrize("shape", [(7, 9, 8), (7, 1, 9, 8), (7, 3, 9, 8)])
def test_any_idx_pair_is_read(tmp_path: Path, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, shape), rng.permutation(7) % 4
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    found = data.load(f"idx:{3 if shape[1] == 3 else 1}x9x8:4", tmp_path, "train")
    assert np.array_equal(found.images.reshape(shape), images)
    assert np.array_equal(found.labels, labels)
    with pytest.raises(RunError, match="expected"):
        data.load("idx:1x8x8:4", tmp_path, "train")


@pytest.mark.parametrize("form", ["npz", "packed npz", "safetensors", "npy"])
@pytest.mark.parametrize("layout", ["channels first", "channels last", "no channels"])
def test_pairs_of_arrays_are_read(tmp_path: Path, form: str, layout: str):
    rng, channels = np.random.default_rng(0), 1 if layout == "no channels" else 3
    images, labels = rng.integers(0, 256, (5, channels, 8, 9), dtype=np.uint8), rng.permutation(5) % 3
    stored = {"channels first": images, "channels last": np.ascontiguousarray(np.moveaxis(images, 1, -1)), "no channels": images[:, 0]}[
        layout
    ]
    write_arrays(tmp_path, form, stored, labels.astype(np.uint8)[:, None])
    found = data.load(f"arrays:{channels}x8x9:3", tmp_path, "train")
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, labels)
    assert isinstance(found.images, np.memmap) == (form == "npy")
    with pytest.raises(RunError, match=r"has none of test.npz, test.safetensors, test-images.npy"):
        data.load(f"arrays:{channels}x8x9:3", tmp_path, "test")


@pytest.mark.parametrize("form", ["npz", "safetensors", "npy"])
@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 3, 8, 8)), [0, 1], "must be bytes .* found float64"),
        (np.zeros((2, 3, 8, 9), dtype=np.uint8), [0, 1], r"expected \(n, 3, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), [0, 1, 2], "need 2 integer labels"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), [0.0, 1.0], "need 2 integer labels"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), [0, 4], r"must lie in 0\.\.3: found 0\.\.4"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), [0, -1], r"must lie in 0\.\.3: found -1\.\.0"),
        (np.zeros((0, 3, 8, 8), dtype=np.uint8), [], "has 0 images|need 0 integer labels"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, form: str, images: np.ndarray, labels: list[float], words: str):
    write_arrays(tmp_path, form, images, np.array(labels))
    with pytest.raises(RunError, match=words):
        data.load("arrays:3x8x8:4", tmp_path, "train")


def test_a_class_without_a_training_image_is_named(tmp_path: Path):
    """The test split may lack one."""
    images = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    for split, labels in (("train", [0, 1, 3]), ("test", [0, 0, 3])):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.array(labels))
    with pytest.raises(RunError, match="no training image of class c: "):
        data.load("arrays:3x8x8:a,b,c,d", tmp_path, "train")
    assert data.load("arrays:3x8x8:a,b,c,d", tmp_path, "test").labels.tolist() == [0, 0, 3]
    assert ["no training image of class c" in check.fault for check in data.verify("arrays:3x8x8:a,b,c,d", tmp_path)] == [True, False]


def write_arrays(folder: Path, form: str, images: np.ndarray, labels: np.ndarray) -> None:
    if form == "npy":
        np.save(folder / "train-images.npy", images)
        np.save(folder / "train-labels.npy", labels)
    elif form == "safetensors":
        (folder / "train.safetensors").write_bytes(safetensors.numpy.save({"images": images, "labels": labels}))
    else:
        (np.savez if form == "npz" else np.savez_compressed)(folder / "train.npz", images=images, labels=labels)


def test_sets_of_ones_own_are_described_in_a_word(monkeypatch: pytest.MonkeyPatch):
    known = data.source("arrays:3x16x32:12")
    assert (known.shape, len(known.classes), known.mirror) == ((3, 16, 32), 12, True)
    assert data.source("folders:3x64x64:cat,dog").class_folders == ("cat", "dog")
    assert data.source("folders:3x64x64:2").class_folders == ()
    monkeypatch.setenv("DISTILL_DATA", "/data")
    assert data.default_root("imagefruit-64") == Path("/data/imagenet1k")
    with pytest.raises(RunError, match="give their folder as --root"):
        data.default_root("folders:3x64x64:2")
    monkeypatch.delenv("DISTILL_DATA")
    with pytest.raises(RunError, match="set DISTILL_DATA to the folder that holds cifar100/"):
        data.default_root("cifar100-coarse")


def test_an_archive_is_not_unpacked_but_told(tmp_path: Path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(RunError, match="is a file: unpack it"):
        data.load("cifar10", tmp_path / "cifar-10-python.tar.gz", "train")
    with pytest.raises(RunError, match="unknown split 'val'"):
        data.load("cifar10", tmp_path, "val")


def _smaller(name: str, counts: dict[str, int]) -> data.Source:
    return replace(data.SOURCES[name], counts=counts)


class Evil:
    """A pickle of this asks the reader to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def _evil_pickles(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    nested = {b"data": np.zeros((1, 3072), dtype=np.uint8), b"labels": [Evil(command)]}
    memo = io.BytesIO()
    pickler = pickle.Pickler(memo, protocol=4)
    pickler.dump([Evil(command), {b"data": 1}])
    return {
        "top": pickle.dumps(Evil(command), protocol=2),
        "nested": pickle.dumps(nested, protocol=4),
        "stack global": memo.getvalue(),
        "eval": b"cbuiltins\neval\n(S'open(\"" + str(marker).encode() + b'","w")\'\ntR.',
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x11f2py.os.system.xx\x93.",
        "numpy function": b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.",
        "persistent": b"Pmodule\n.",
    }


@pytest.mark.parametrize("kind", sorted(_evil_pickles(Path("x"))))
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, kind: str):
    marker = tmp_path / "was-run"
    path = tmp_path / "data_batch_1"
    path.write_bytes(_evil_pickles(marker)[kind])
    with pytest.raises(RunError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert not marker.exists()
    assert kind == "persistent" or "was not run" in message
    if kind in ("top", "nested", "stack global"):
        assert f"{os.system.__module__}.system" in message


@given(cut=st.floats(0.0, 0.999))
def test_a_truncated_pickle_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, cut: float):
    path = tmp_path_factory.mktemp("cut") / "test_batch"
    whole = python2_pickle({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]})
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(RunError, match=str(path)):
        read_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {b"labels": [0]},
        {b"data": np.zeros((2, 3072), dtype=np.float32), b"labels": [0, 1]},
        {b"data": np.zeros((2, 100), dtype=np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1.5]},
    ],
)
def test_pickles_of_other_content_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any):
    monkeypatch.setitem(data.SOURCES, "cifar10", _smaller("cifar10", {"train": 10, "test": 2}))
    write_cifar(tmp_path, np.random.default_rng(0), each=2)
    (tmp_path / "data_batch_3").write_bytes(python2_pickle(content))
    with pytest.raises(RunError, match="data_batch_3"):
        data.load("cifar10", tmp_path, "train")


def test_faults_name_the_path_and_the_mend(tmp_path: Path):
    with pytest.raises(RunError, match="unknown data set 'cifar-11': choose one of cifar10, cifar100"):
        data.load("cifar-11", tmp_path, "train")
    with pytest.raises(RunError, match="is no folder: give the place"):
        data.load("mnist", tmp_path / "absent", "train")
    with pytest.raises(RunError, match="no mnist files under"):
        data.load("mnist", tmp_path, "train")
    write_mnist(tmp_path, np.random.default_rng(0), counts=(30, 20))
    with pytest.raises(RunError, match="has 30 images, expected 60000"):
        data.load("mnist", tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(RunError, match="train-labels-idx1-ubyte is missing"):
        data.load("mnist", tmp_path, "train")


def test_labels_out_of_range_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(data.SOURCES, "mnist", _smaller("mnist", {"train": 30, "test": 20}))
    write_mnist(tmp_path, np.random.default_rng(0), counts=(30, 20))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(30, 10)))
    with pytest.raises(RunError, match=r"must lie in 0\.\.9: found 10\.\.10"):
        data.load("mnist", tmp_path, "train")


def test_verify_describes_every_fault(tmp_path: Path):
    write_mnist(tmp_path, np.random.default_rng(0), counts=(30, 20))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"junk")
    checks = {c.file: c for c in data.verify("mnist", tmp_path)}
    assert "missing" in checks["t10k-labels-idx1-ubyte"].fault
    assert "does not begin like" in checks["t10k-images-idx3-ubyte"].fault
    assert checks["train-images-idx3-ubyte"].fault == "30 images, expected 60000"


def test_verify_knows_sums_of_packed_files_and_says_where_it_knows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_mnist(tmp_path / "a", np.random.default_rng(0), compress=True, counts=(30, 20))
    packed = tmp_path / "a" / "train-images-idx3-ubyte.gz"
    sums = {packed.name: hashlib.md5(packed.read_bytes()).hexdigest(), "train-labels-idx1-ubyte.gz": "0" * 32}
    known = replace(data.SOURCES["fashion-mnist"], counts={"train": 30, "test": 20}, md5=sums)
    monkeypatch.setitem(data.SOURCES, "fashion-mnist", known)
    checks = {c.file: c for c in data.verify("fashion-mnist", tmp_path / "a")}
    assert (checks[packed.name].checksum, checks[packed.name].fault) == ("matches", "")
    assert checks["train-labels-idx1-ubyte.gz"].fault == "not the published file"
    assert (checks["t10k-images-idx3-ubyte.gz"].checksum, checks["t10k-images-idx3-ubyte.gz"].fault) == ("unknown", "")
    labels = data.load("fashion-mnist", tmp_path / "a", "test").labels
    counts = np.bincount(labels, minlength=10)
    assert checks["(test)"].per_class == f"{counts.min()} .. {counts.max()}"
    write_mnist(tmp_path / "b", np.random.default_rng(0), counts=(30, 20))
    assert {c.checksum for c in data.verify("fashion-mnist", tmp_path / "b")} == {"unknown", "-"}


@given(seed=seeds, sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5), fraction=st.floats(0.01, 0.9))
def test_held_out_split_is_a_stratified_partition_fixed_by_its_seed(seed: int, sizes: list[int], fraction: float):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    fitted, held = data.held_out_split(labels, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([fitted, held])), np.arange(len(labels)))
    assert np.array_equal(np.bincount(labels[held], minlength=len(sizes)), [max(1, round(fraction * n)) for n in sizes])
    assert np.array_equal(held, data.held_out_split(labels, fraction, seed)[1])


def test_other_seeds_hold_out_other_images():
    labels = np.repeat(np.arange(3), 100)
    assert not np.array_equal(data.held_out_split(labels, 0.1, 0)[1], data.held_out_split(labels, 0.1, 1)[1])
    with pytest.raises(RunError, match="fraction=1"):
        data.held_out_split(labels, 1.0, 0)


@pytest.mark.parametrize(("name", "digest"), [("cifar10", "data_batch_1"), ("mnist", "train-images-idx3-ubyte.gz")])
def test_published_files(data_root: Path, name: str, digest: str):
    """The complete data sets, where they are."""
    root = data_root / name
    if not root.is_dir():
        pytest.skip(f"no {name} under {data_root}")
    checks = data.verify(name, root)
    assert [c.fault for c in checks] == [""] * len(checks)
    assert digest in {c.file for c in checks}
    test = data.load(name, root, "test")
    assert np.bincount(test.labels).sum() == 10_000
    if name == "cifar10":
        assert np.array_equal(np.bincount(test.labels), [1000] * 10)
