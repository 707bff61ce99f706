"""Data files in their makers' layouts, with made-up content, for tests that must not depend on the real ones."""

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, rng: np.random.Generator, *, compress: bool = False, counts: tuple[int, int] = (60_000, 10_000)) -> None:
    """MNIST's four files: each class is a coarse 4x4 pattern under noise, so that a network can learn it."""
    folder.mkdir(parents=True, exist_ok=True)
    patterns = np.kron(rng.integers(0, 200, (10, 4, 4)), np.ones((7, 7), dtype=np.int64)).astype(np.uint8)
    for stem, count in zip(("train", "t10k"), counts, strict=True):
        labels = rng.integers(0, 10, count)
        labels[:10] = np.arange(10)[:count]  # no class is left out
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
    """CIFAR-10's six batches of `each` random images, classes in turn; the same bytes in every batch, for speed."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = {b"data": rng.integers(0, 256, (each, 3072), dtype=np.uint8), b"labels": [k % 10 for k in range(each)]}
    content = python2_pickle(batch) if protocol == 2 else pickle.dumps(batch, protocol=protocol)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(content)


def write_cifar100(folder: Path, rng: np.random.Generator, *, each: int = 100) -> None:
    """CIFAR-100's two files of `each` random images, classes in turn, with all the entries the published ones have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        content = {
            b"filenames": [f"{k}.png".encode() for k in range(each)],
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": [k % 100 for k in range(each)],
            b"coarse_labels": [k % 20 for k in range(each)],
            b"data": rng.integers(0, 256, (each, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(python2_pickle(content))


def picture(pixels: np.ndarray, form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture file: pixels (height, width, 3) of bytes, stored as `form` in the colour `mode`."""
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def some_pixels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Random colours."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_tree(
    root: Path, rng: np.random.Generator, classes: tuple[str, ...] = ("a", "b"), each: int = 3, *, side: int = 8, test: str = "val"
) -> dict[str, np.ndarray]:
    """Class folders of lossless pictures under train/ and `test`/; gives split -> images (classes * each, 3, side, side)."""
    images = {"train": [], "test": []}
    for split, place in (("train", "train"), ("test", test)):
        for name in classes:
            (root / place / name).mkdir(parents=True)
            for k in range(each):
                pixels = some_pixels(rng, side, side)
                (root / place / name / f"{name}_{k:02d}.png").write_bytes(picture(pixels))
                images[split].append(pixels.transpose(2, 0, 1))
    return {split: np.stack(found) for split, found in images.items()}


def write_tiny(root: Path, rng: np.random.Generator, classes: tuple[str, ...] = ("n01", "n02"), each: int = 3) -> list[str]:
    """Tiny-ImageNet's layout, JPEG pictures of 64 px, every other one greyscale; gives the lines of the annotations."""
    lines = []
    (root / "val" / "images").mkdir(parents=True)
    for label, name in enumerate(classes):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t62\t57\n")
        for k in range(each):
            data = picture(some_pixels(rng, 64, 64), "JPEG", "L" if k % 2 else "RGB")
            (root / "train" / name / "images" / f"{name}_{k}.JPEG").write_bytes(data)
            (root / "val" / "images" / f"val_{2 * k + label}.JPEG").write_bytes(data)
            lines.append(f"val_{2 * k + label}.JPEG\t{name}\t0\t0\t62\t57")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return lines
