"""IDX files, the form of MNIST: two zero bytes, type 0x08 (unsigned byte), number of axes, each axis as big-endian int32, the data."""

import math
from pathlib import Path

import numpy as np

from realdata.data.files import LIMIT, DataError, most, opened, required
from realdata.data.imageset import ImageSet
from realdata.data.table import Source


def read_idx(path: Path) -> np.ndarray:
    """The byte array in the file, plain or gzipped; no more is unpacked than its head announces."""
    with opened(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\x00\x00\x08" or head[3] == 0 or len(sizes := file.read(4 * head[3])) < 4 * head[3]:
            raise DataError(f"{path} does not begin like an IDX file of bytes (found {head.hex() or 'nothing'}): fetch it again")
        shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">i4"))
        announced = math.prod(shape)
        if min(shape) < 0 or announced > LIMIT or len(shape) > 8:
            raise DataError(f"{path} announces {'x'.join(map(str, shape))} bytes, which no such file holds: fetch it again")
        data = file.read(min(announced, most(path)) + 1)
    if len(data) != announced:
        found = "more" if len(data) > announced else str(len(data))
        raise DataError(f"{path} announces {'x'.join(map(str, shape))} bytes and holds {found}: fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def read_pair(known: Source, folder: Path, split: str) -> ImageSet:
    """A split: one file of images (n, height, width) or (n, channels, height, width), one of labels (n,)."""
    paths = [required(folder, file) for file in known.parts[split]]
    images, labels = (read_idx(path) for path in paths)
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim != 4 or labels.ndim != 1:
        wrong = paths[0] if images.ndim != 4 else paths[1]
        raise DataError(f"{wrong} does not have the axes of {'images' if wrong is paths[0] else 'labels'}: fetch it again")
    if len(images) != len(labels):
        raise DataError(f"{paths[0]} has {len(images)} images and {paths[1]} {len(labels)} labels: fetch both again")
    return ImageSet(images, labels.astype(np.int64), known.classes)
