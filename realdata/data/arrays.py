"""Images and labels as a pair of arrays: one .npz or .safetensors with `images` and `labels`, or SPLIT-images.npy and SPLIT-labels.npy.

Images are bytes, (n, channels, height, width), (n, height, width, channels) or (n, height, width); labels are integers, (n,) or (n, 1).
A .npy file is mapped, so it may be larger than memory; the other two are read.
"""

import zipfile
from pathlib import Path

import numpy as np
import safetensors

from realdata.data.files import LIMIT, DataError, inside, required
from realdata.data.imageset import ImageSet
from realdata.data.table import Source
from sims.lab.files import RunError


def read_arrays(known: Source, folder: Path, split: str) -> ImageSet:
    """A split, from the first of its files that is there."""
    path = next((folder / file for file in known.parts[split] if (folder / file).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has none of {', '.join(known.parts[split])}: write one of them, or give its place as --root")
    path = inside(folder, path)
    try:
        if path.suffix == ".npz":
            images, labels = _from_npz(path)
        elif path.suffix == ".safetensors":
            images, labels = _from_safetensors(path)
        else:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            labels = np.load(required(folder, f"{split}-labels.npy"), allow_pickle=False)
    except RunError:
        raise
    except Exception as error:  # both libraries refuse damaged files in many ways
        raise DataError(f"{path} or its labels cannot be read ({type(error).__name__}: {str(error)[:200]}): write it again") from error
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):  # numpy gives other members of an archive as bytes
        raise DataError(f"{path}: images and labels must both be arrays: write it again")
    return ImageSet(_images(images, known.shape, path), _labels(labels, len(images), path), known.classes)


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
    for name in ("images", "labels"):
        if sizes.get(f"{name}.npy", 0) > LIMIT:
            raise DataError(f"{path}: {name} takes more than {LIMIT >> 20} MiB: store it as a pair of .npy files, which are mapped")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def _from_safetensors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.stat().st_size > LIMIT:
        raise DataError(f"{path} takes more than {LIMIT >> 20} MiB: store it as a pair of .npy files, which are mapped")
    with safetensors.safe_open(path, framework="numpy") as arrays:
        return arrays.get_tensor("images"), arrays.get_tensor("labels")


def _images(images: np.ndarray, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    if images.dtype != np.uint8:
        raise DataError(f"{path}: images must be bytes (uint8, 0 .. 255), found {images.dtype}: convert them")
    if images.ndim == 3 and shape[0] == 1:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1:] == (*shape[1:], shape[0]) != shape:
        images = np.moveaxis(images, -1, 1)
    if images.ndim != 4 or images.shape[1:] != shape:
        raise DataError(f"{path}: images have shape {images.shape}, expected (n, {', '.join(map(str, shape))}) or channels last")
    return images


def _labels(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise DataError(f"{path}: need {count} integer labels, one an image, found {labels.dtype} of shape {labels.shape}")
    return labels.reshape(-1).astype(np.int64)
