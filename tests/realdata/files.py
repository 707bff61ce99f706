"""Data files in their makers' layouts, with made-up content, for tests that must not depend on the real ones."""

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, rng: np.random.Generator, *, compress: bool = False, counts: tuple[int, int] = (60_000, 10_000)) -> None:
    """MNIST's four files: each class is a coarse 4x4 pattern under noise, so that a network can learn it."""
    folder.mkdir(parents=True, exist_ok=True)
    patterns = np.kron(rng.integers(0, 200, (10, 4, 4)), np.ones((7, 7), dtype=np.int64)).astype(np.uint8)
    for stem, count in zip(("train", "t10k"), counts, strict=True):
        labels = rng.integers(0, 10, count)
        images = patterns[labels] + rng.integers(0, 56, (count, 28, 28), dtype=np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data, compresslevel=1))
            else:
                (folder / name).write_bytes(data)


class _Python2(pickle._Pickler):
    """Writes bytes as the 8-bit strings of Python 2, in which the published files were made."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, text: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(text)) + text)

    dispatch[bytes] = save_bytes


def python2_pickle(content: Any) -> bytes:
    """Protocol 2, with numpy's array maker under the name it had then."""
    stream = io.BytesIO()
    _Python2(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar(folder: Path, rng: np.random.Generator, *, each: int = 10_000, protocol: int = 2) -> None:
    """CIFAR-10's six batches of `each` random images; the same bytes in every batch, for speed."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = {b"data": rng.integers(0, 256, (each, 3072), dtype=np.uint8), b"labels": [int(x) for x in rng.integers(0, 10, each)]}
    content = python2_pickle(batch) if protocol == 2 else pickle.dumps(batch, protocol=protocol)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(content)
