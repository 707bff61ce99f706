"""Files that are damaged, and files far smaller than their content: one clear line or a sound image set, and nothing else happens.

The seeds are fixed.
"""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from realdata import data
from tests.realdata.files import idx_bytes, write_tree
from tests.realdata.fuzzing import (
    cifar100_set,
    cifar_set,
    hostile,
    idx_set,
    npy_set,
    npz_set,
    own_cache_and_small_sets,
    picture_set,
    refusal,
    safetensors_set,
    tiny_set,
    watched,
)

SEEDS = 6


@pytest.fixture(autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache_and_small_sets(tmp_path_factory, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a data set, alone in another, so that what lands beside it is seen."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


Maker = Callable[[Path, np.random.Generator], tuple[str, Path, str]]
SETS: dict[str, Maker] = {
    "idx": lambda root, rng: idx_set(root, rng, packed=False),
    "idx.gz": lambda root, rng: idx_set(root, rng, packed=True),
    "cifar10": lambda root, rng: cifar_set(root, rng, protocol=2),
    "cifar10, protocol 5": lambda root, rng: cifar_set(root, rng, protocol=5),
    "cifar100": cifar100_set,
    "npz": lambda root, rng: npz_set(root, rng, packed=False),
    "npz, packed": lambda root, rng: npz_set(root, rng, packed=True),
    "safetensors": safetensors_set,
    "npy": npy_set,
    "png": lambda root, rng: picture_set(root, rng, form="PNG"),
    "png, palette": lambda root, rng: picture_set(root, rng, form="PNG", mode="P"),
    "jpeg": lambda root, rng: picture_set(root, rng, form="JPEG"),
    "webp": lambda root, rng: picture_set(root, rng, form="WEBP"),
    "bmp": lambda root, rng: picture_set(root, rng, form="BMP"),
    "annotations": tiny_set,
}


def flipped(data: bytes, rng: np.random.Generator, where: slice) -> bytes:
    part = np.frombuffer(data, dtype=np.uint8).copy()
    span = part[where]
    span[rng.integers(0, len(span), 4)] ^= rng.integers(1, 256, 4, dtype=np.uint8)
    return part.tobytes()


# What is done to the bytes of the file; True: no sound set can come of it.
DAMAGES: dict[str, tuple[Callable[[bytes, np.random.Generator], bytes], bool]] = {
    "empty": (lambda data, rng: b"", True),
    "cut": (lambda data, rng: data[: rng.integers(1, max(2, len(data) - 1))], False),
    "wrong magic": (lambda data, rng: rng.bytes(8) + data[8:], False),
    "flipped at the head": (lambda data, rng: flipped(data, rng, slice(0, 64)), False),
    "flipped anywhere": (lambda data, rng: flipped(data, rng, slice(None)), False),
    "noise": (lambda data, rng: rng.bytes(len(data)), True),
    "zeros": (lambda data, rng: bytes(len(data)), True),
    "middle gone": (lambda data, rng: data[: len(data) // 3] + data[len(data) // 2 :], False),
    "middle twice": (lambda data, rng: data[: len(data) // 2] + data[len(data) // 4 :], False),
    "web page": (lambda data, rng: b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n" * 3, True),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", SETS)
def test_damaged_files(tmp_path: Path, kind: str, damage: str):
    spoil, hopeless = DAMAGES[damage]
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        root = tmp_path / str(seed)
        root.mkdir()
        name, victim, split = SETS[kind](root, rng)
        if seed == 0 and damage == "empty":
            assert refusal(name, root, split) is None, "the sound set itself"
        victim.write_bytes(spoil(victim.read_bytes(), rng))
        line = refusal(name, root, split)
        assert line is not None or not hopeless
        assert line is None or str(root) in line
        if seed == 0 and line is not None:
            with watched(root):
                assert any(check.fault for check in data.verify(name, root))


# --- content far larger than its file -----------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy_bytes(shape: tuple[int, ...], data: bytes = b"", descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def head(*shape: int) -> bytes:
    return b"\x00\x00\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}i", *shape)


def png_head(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data, b"IEND")
    )


LABELS = npy_bytes((2,), b"\x00\x01")
IDX, ARRAYS, TREE = "idx:1x8x8:10", "arrays:3x8x8:2", "folders:3x8x8:2"
OBJECTS = npy_bytes((1,), hostile("os", "system", "protocol 0", Path("was-run")), "|O")
CODE = b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch was-run')".ljust(64)
SAFE = b'{"images":{"dtype":"U8","shape":[2,3,8,8],"data_offsets":[0,9999999]}}'.ljust(72)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(was-run) (w) file closefile\n"
BOMBS: dict[tuple[str, str, str], Callable[[], bytes]] = {
    ("gzip of zeros", IDX, "train-images-idx3-ubyte.gz"): lambda: gzip.compress(bytes(2**26), 9),
    ("gzip longer than announced", IDX, "train-images-idx3-ubyte.gz"): lambda: gzip.compress(head(2, 8, 8) + bytes(2**26), 9),
    ("gzip shorter than announced", IDX, "train-images-idx3-ubyte.gz"): lambda: gzip.compress(head(2**26, 8, 8)),
    ("more announced than any file", IDX, "train-images-idx3-ubyte"): lambda: head(2**31 - 1, 2**31 - 1, 2**31 - 1),
    ("very many axes", IDX, "train-images-idx3-ubyte"): lambda: head(*[1] * 200),
    ("negative sizes", IDX, "train-images-idx3-ubyte"): lambda: head(-2, -8, 8),
    ("npz of zeros", ARRAYS, "train.npz"): lambda: zipped({"images.npy": bytes(2**26), "labels.npy": LABELS}),
    ("npz of 2^50", ARRAYS, "train.npz"): lambda: zipped({"images.npy": npy_bytes((2**50, 3, 8, 8)), "labels.npy": LABELS}),
    ("npz in an npz", ARRAYS, "train.npz"): lambda: zipped({"images.npy": zipped({"x": bytes(2**20)}), "labels.npy": LABELS}),
    ("npz of objects", ARRAYS, "train.npz"): lambda: zipped({"images.npy": OBJECTS, "labels.npy": LABELS}),
    ("npz with paths", ARRAYS, "train.npz"): lambda: zipped({"../was-run": b"x", "/tmp/was-run": b"x", "images.npy/x": b"x"}),
    ("npy of 2^50", ARRAYS, "train-images.npy"): lambda: npy_bytes((2**50, 3, 8, 8)),
    ("npy of objects", ARRAYS, "train-images.npy"): lambda: OBJECTS,
    ("npy with a head of code", ARRAYS, "train-images.npy"): lambda: CODE,
    ("safetensors with a head of 2^60", ARRAYS, "train.safetensors"): lambda: struct.pack("<Q", 2**60) + b"{}",
    ("safetensors beyond its end", ARRAYS, "train.safetensors"): lambda: struct.pack("<Q", 72) + SAFE,
    ("png of 10^9 pixels", TREE, "train/a/a_00.png"): lambda: png_head(31_623, 31_623),
    ("png of 8192 x 8193 pixels", TREE, "train/a/a_00.png"): lambda: png_head(8192, 8193),
    ("png of no pixels", TREE, "train/a/a_00.png"): lambda: png_head(0, 8),
    ("postscript", TREE, "train/a/a_00.png"): lambda: EPS,
}


@pytest.mark.parametrize("case", BOMBS, ids=lambda case: case[0])
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_bombs(root: Path, case: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch):
    _, name, file = case
    monkeypatch.chdir(root)
    if name == TREE:
        write_tree(root, np.random.default_rng(0), each=1)
    else:
        (root / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2)))
        np.save(root / "train-labels.npy", np.zeros(2, dtype=np.int64))
    (root / file).write_bytes(BOMBS[case]())
    assert refusal(name, root, "train") is not None


def test_there_are_enough_cases():
    assert len(SETS) * len(DAMAGES) * SEEDS + len(BOMBS) >= 900
