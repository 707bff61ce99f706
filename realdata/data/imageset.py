"""One split of a data set as arrays, in memory or mapped from disk, and the parts it is cut into.

images u in {0..255}^(n x channels x height x width),  labels y in {0..classes-1}^n
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from realdata.checks import share

DIGEST_PART = 2048  # images read at a time


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows of a mapped array, read only when they are asked for: selection[key] = base[rows[key]] along the first axis.

    It has the shape and type of the array it stands for; np.asarray(selection) reads all of it.
    """

    base: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.base.shape[1:])

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.base.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self.base[self.rows[key]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of a mapped array cannot be given without a copy")
        return np.asarray(self.base[self.rows], dtype=dtype)


Images: TypeAlias = np.ndarray | Selection


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set: images (n, channels, height, width) uint8, labels (n,) int64, the classes' names.

    Images mapped from disk stay there: a subset of them is a `Selection`, and reading a slice reads that slice.
    """

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images must be (n, channels, height, width) bytes: shape={self.images.shape}, type={self.images.dtype}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise ValueError(
                f"need one int64 label an image: {self.images.shape[0]} images, labels {self.labels.shape} {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: np.ndarray) -> "ImageSet":
        """The images in `rows` (numbers, or one truth value an image), in that order; mapped images are not read."""
        rows = np.arange(len(self))[rows]
        images = self.images
        if isinstance(images, Selection):
            picked: Images = Selection(images.base, images.rows[rows])
        else:
            picked = Selection(images, rows) if isinstance(images, np.memmap) else images[rows]
        return ImageSet(picked, self.labels[rows], self.classes)


def chunks(images: Images, size: int) -> Iterator[np.ndarray]:
    """The images in order, `size` at a time."""
    for start in range(0, len(images), size):
        yield np.asarray(images[start : start + size])


def digest(images: Images, use: str) -> str:
    """SHA-256 over the bytes of images, their shape and the use that is made of them; mapped images are read a part at a time."""
    found = hashlib.sha256(f"{use} {images.shape}".encode())
    for part in chunks(images, DIGEST_PART):
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def held_out_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted rows (fitted, held out) of a training set: the same share of every class, a function of the seed alone.

    Of each class of n images, round(fraction n) are held out, at least one. All choices (settings, checkpoints, training lengths) are
    made on the held-out part, so that the test split is read once, after them.
    """
    share(fraction=fraction)
    rng = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held.append(rows[: max(1, round(fraction * len(rows)))])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out
