"""From a data set's name and folder to one split of it, checked against what is known of the set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from realdata.data.arrays import read_arrays
from realdata.data.cache import cached_images
from realdata.data.cifar import read_batches
from realdata.data.files import DataError, locate
from realdata.data.folders import list_split
from realdata.data.idx import read_pair
from realdata.data.imageset import ImageSet
from realdata.data.table import SPLITS, Source, source


def load(name: str, root: str | Path, split: str) -> ImageSet:
    """One split ("train" or "test") of the data set below `root`; counts, shape, label range and training images of each class checked."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose train or test")
    known = source(name)
    folder = locate(name, root)
    images = READERS[known.format](known, folder, split)
    if images.images.shape[1:] != known.shape:
        raise DataError(f"{folder}: images of {name} have shape {images.images.shape[1:]}, expected {known.shape}: fetch the files again")
    expect(known, folder, split, len(images))
    if images.labels.min() < 0 or images.labels.max() >= len(known.classes):
        raise DataError(
            f"{folder}: labels of {name} must lie in 0..{len(known.classes) - 1}: found {images.labels.min()}..{images.labels.max()}"
        )
    counts = np.bincount(images.labels, minlength=len(images.classes))
    if split == "train" and not counts.all():
        name = images.classes[int(np.argmin(counts))]
        raise DataError(f"{folder}: no training image of class {name}: fetch the files again, or describe a set without it")
    return images


def expect(known: Source, folder: Path, split: str, found: int) -> None:
    """Refuses a split that is empty or has another number of images than is known."""
    expected = known.counts.get(split)
    if found == 0 or found != (expected or found):
        raise DataError(f"{folder}: the {split} split has {found} images, expected {expected or 'some'}: fetch the files again")


def _read_pictures(known: Source, folder: Path, split: str) -> ImageSet:
    listing = list_split(known, folder, split)
    expect(known, folder, split, len(listing.files))  # before hours of decoding
    return ImageSet(cached_images(listing, split, known.shape), listing.labels, listing.classes)


READERS: dict[str, Callable[[Source, Path, str], ImageSet]] = {
    "cifar": read_batches,
    "idx": read_pair,
    "arrays": read_arrays,
    "folders": _read_pictures,
}
