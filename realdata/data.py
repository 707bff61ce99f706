"""Image data sets in the layouts their makers publish, read into arrays without running any code from the files.

    cifar10   python pickles: data_batch_1..5, test_batch   (a restricted unpickler reads them)
    mnist     IDX files, plain or gzipped: big-endian magic number, sizes, then the bytes

A split is an `ImageSet`: images u in {0..255}^(n x channels x height x width), labels in {0..classes-1}. Every file fault is one line
that names the path and the mend.
"""

import gzip
import hashlib
import io
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realdata.checks import share
from sims.lab.files import RunError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set: images (n, channels, height, width) uint8, labels (n,) int64, the classes' names."""

    images: np.ndarray
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
        """The images in `rows`, in that order."""
        return ImageSet(self.images[rows], self.labels[rows], self.classes)


@dataclass(frozen=True)
class Source:
    """How one data set lies on disk and what it is known to hold.

    parts    split -> its files, in order;  folders: where they may lie below the root, the first that exists is taken
    md5      file name -> checksum of the published file;  mirror: whether a mirrored image keeps its class
    read     (folder, split) -> ImageSet
    """

    folders: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    md5: dict[str, str]
    mirror: bool
    read: Callable[[Path, str], ImageSet]


def source(name: str) -> Source:
    """The data set called `name`."""
    if name not in SOURCES:
        raise RunError(f"unknown data set {name!r}: choose one of {', '.join(sorted(SOURCES))}")
    return SOURCES[name]


def load(name: str, root: str | Path, split: str) -> ImageSet:
    """One split ("train" or "test") of the data set below `root`, counts and label range checked."""
    known = source(name)
    folder = locate(name, root)
    images = known.read(folder, split)
    if len(images) != known.counts[split] or images.images.shape[1:] != known.shape:
        raise RunError(
            f"{folder}: the {split} split of {name} has {len(images)} images of shape {images.images.shape[1:]}, "
            f"expected {known.counts[split]} of {known.shape}: fetch the files again"
        )
    if images.labels.min() < 0 or images.labels.max() >= len(known.classes):
        raise RunError(
            f"{folder}: labels of {name} must lie in 0..{len(known.classes) - 1}: found {images.labels.min()}..{images.labels.max()}"
        )
    return images


def default_root(name: str) -> Path:
    """The folder of the data set below $DISTILL_DATA."""
    source(name)
    place = os.environ.get("DISTILL_DATA")
    if not place:
        raise RunError(f"where are the {name} files? give their folder as --root, or set DISTILL_DATA to the folder that holds {name}/")
    return Path(place) / name


def locate(name: str, root: str | Path) -> Path:
    """The folder that holds the files of `name`: `root` itself or one of the usual places below it."""
    root = Path(root)
    if not root.is_dir():
        raise RunError(f"{root} is no folder: give the place of the {name} files as --root")
    known = source(name)
    names = [file for part in known.parts.values() for file in part]
    for folder in (root / place for place in known.folders):
        if any(_stored(folder, file) for file in names):
            return folder
    places = ", ".join(str(root / place) for place in known.folders)
    raise RunError(f"no {name} files under {root} (looked in {places} for {names[0]} and the others): give their place as --root")


@dataclass(frozen=True)
class FileCheck:
    """What `verify` found out about one file."""

    file: str
    split: str
    size: int | None
    images: int | None
    checksum: str
    fault: str


def verify(name: str, root: str | Path) -> list[FileCheck]:
    """Every file of the data set: present, readable, the right count, the published checksum. Faults are described, not raised."""
    folder = locate(name, root)
    return [_check_file(source(name), folder, split, file) for split, files in source(name).parts.items() for file in files]


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


# --- python pickles -------------------------------------------------------------------------------------------------------------------

# numpy's own makers of a plain array, whose private module has moved once: an empty one to be filled, and one around given bytes.
_RECONSTRUCT, _FROMBUFFER = (np.zeros(1).__reduce_ex__(protocol)[0] for protocol in (4, 5))
_SAFE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds numpy arrays, lists, dicts, tuples, bytes, str and numbers; names any other thing asked for and stops."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE_GLOBALS:
            raise RunError(f"asks for {module}.{name}, which no data file needs: it was not run, do not trust this file")
        return _SAFE_GLOBALS[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain data, its byte keys as str."""
    data = _bytes(path)
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except RunError as error:
        raise RunError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
        raise RunError(f"{path} is truncated or no pickle ({type(error).__name__}: {error}): fetch it again") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, not a dictionary: fetch it again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(path)
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise RunError(
            f"{path}: 'data' must be an (n, 3072) array of bytes, found {getattr(data, 'shape', type(data).__name__)}: fetch it again"
        )
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise RunError(f"{path}: 'labels' must be a list of {len(data)} integers: fetch it again")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def _read_cifar10(folder: Path, split: str) -> ImageSet:
    known = SOURCES["cifar10"]
    batches = [_read_cifar_batch(folder / file) for file in known.parts[split]]
    return ImageSet(np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches]), known.classes)


# --- IDX ------------------------------------------------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """The byte array in an IDX file: two zero bytes, type 0x08 (unsigned byte), number of axes, each axis as big-endian int32, data."""
    data = _bytes(path)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or data[3] == 0 or len(data) < 4 + 4 * data[3]:
        raise RunError(f"{path} does not begin like an IDX file of bytes (found {data[:4].hex() or 'nothing'}): fetch it again")
    axes = data[3]
    shape = tuple(int(n) for n in np.frombuffer(data, dtype=">i4", count=axes, offset=4))
    start = 4 + 4 * axes
    if min(shape) < 0 or len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise RunError(f"{path} announces {'x'.join(map(str, shape))} bytes and holds {len(data) - start}: fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _read_mnist(folder: Path, split: str) -> ImageSet:
    known = SOURCES["mnist"]
    paths = [_require(folder, file) for file in known.parts[split]]
    images, labels = (read_idx(path) for path in paths)
    for path, array, axes in zip(paths, (images, labels), (3, 1), strict=True):
        if array.ndim != axes:
            raise RunError(f"{path} has {array.ndim} axes, expected {axes}: fetch it again")
    if len(images) != len(labels):
        raise RunError(f"{paths[0]} has {len(images)} images and {paths[1]} {len(labels)} labels: fetch both again")
    return ImageSet(images[:, None], labels.astype(np.int64), known.classes)


# --- files ----------------------------------------------------------------------------------------------------------------------------


def _stored(folder: Path, file: str) -> Path | None:
    """The file as it lies there: under its name, or gzipped."""
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _require(folder: Path, file: str) -> Path:
    path = _stored(folder, file)
    if path is None:
        raise RunError(f"{folder / file} is missing: fetch the complete data set, or give its place as --root")
    return path


def _bytes(path: Path) -> bytes:
    """Content of a file, decompressed where its name ends in .gz."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: fetch the complete data set, or give its place as --root") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RunError(f"{path} is truncated or damaged ({error}): fetch it again") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _check_file(known: Source, folder: Path, split: str, file: str) -> FileCheck:
    path = _stored(folder, file)
    if path is None:
        return FileCheck(file, split, None, None, "-", f"missing: {folder / file}")
    size = path.stat().st_size
    try:
        data = _bytes(path)
        images = len(read_idx(path)) if "-idx" in file else len(_read_cifar_batch(path)[1])
    except RunError as error:
        return FileCheck(path.name, split, size, None, "-", str(error))
    expected = known.counts[split] // (1 if "-idx" in file else len(known.parts[split]))
    # Checksums are of the decompressed content: gzip puts a date into its own.
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    checksum = "matches" if digest == known.md5[file] else f"{digest} (published: {known.md5[file]})"
    fault = f"{images} images, expected {expected}" if images != expected else ""
    return FileCheck(path.name, split, size, images, checksum, fault or ("" if checksum == "matches" else "not the published file"))


_DIGITS = tuple(str(digit) for digit in range(10))

SOURCES: dict[str, Source] = {
    "cifar10": Source(
        folders=(".", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
        parts={"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        counts={"train": 50_000, "test": 10_000},
        shape=(3, 32, 32),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        mirror=True,
        read=_read_cifar10,
    ),
    "mnist": Source(
        folders=(".", "raw", "MNIST/raw", "mnist/raw"),
        parts={
            "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        },
        counts={"train": 60_000, "test": 10_000},
        shape=(1, 28, 28),
        classes=_DIGITS,
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        mirror=False,
        read=_read_mnist,
    ),
}
