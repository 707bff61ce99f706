"""A tree of pictures: one folder a class, or a list of annotations beside a folder of pictures; and one picture made into an array.

    train/CLASS/**/x.JPEG                       ImageNet-1K, its subsets, Tiny-ImageNet's training part, any tree
    val/val_annotations.txt, val/images/x.JPEG  Tiny-ImageNet's validation part: lines of picture, tab, class

A picture of sides w <= h is scaled bilinearly (Pillow, antialiased) to side x floor(side h / w) and cut to its centre, as torchvision's
Resize and CenterCrop do; greyscale, palette and CMYK pictures become RGB. Links may lead elsewhere in the tree, not out of it.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from realdata.data.files import DataError, inside
from realdata.data.table import Source

SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp"})
# Names the decoders that are tried: Pillow knows others, one of which runs a PostScript interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
PIXELS = 2**26
ANNOTATIONS = 2**26  # bytes


@dataclass(frozen=True, eq=False)
class Listing:
    """The pictures of one split: paths below the real `folder`, labels (n,), bytes of each (n,), times (n, 2) of change in ns.

    The times are those of the content, which a copy or an archive may set, and of the entry (ctime), which the system alone sets.
    """

    folder: Path
    files: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    classes: tuple[str, ...]

    def key(self, start: int = 0, stop: int | None = None) -> str:
        """A hash of all that names the content of the pictures [start, stop), short of reading them."""
        part = slice(start, stop)
        digest = hashlib.sha256(os.fsencode(self.folder))
        columns = (column[part].tolist() for column in (self.labels, self.sizes, self.times))
        for path, label, size, (content, entry) in zip(self.files[part], *columns, strict=True):
            digest.update(b"\0%s\0%d %d %d %d" % (os.fsencode(path), label, size, content, entry))
        return digest.hexdigest()


def list_split(known: Source, folder: Path, split: str) -> Listing:
    """The pictures of a split, class by class, names in order. No picture is opened."""
    part = next((folder / place for place in known.parts[split] if (folder / place).exists()), None)
    if part is None:
        raise DataError(f"{folder} has none of {', '.join(known.parts[split])}: fetch the complete data set, or give its place as --root")
    names = known.class_folders or _class_names(inside(folder, folder / known.parts["train"][0]), len(known.classes))
    found = _annotated(part, folder, names, bool(known.class_folders)) if part.is_file() else _by_class(part, folder, names)
    labels, sizes, times = (np.array([entry[k] for entry in found], dtype=np.int64) for k in (1, 2, 3))
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        raise DataError(f"{part} has no picture of class {names[int(np.argmin(counts))]} (suffixes known: {', '.join(sorted(SUFFIXES))})")
    classes = known.classes if known.named else names
    return Listing(folder, [entry[0] for entry in found], labels, sizes, times, classes)


def decode(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture as bytes (channels, side, side)."""
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.mode not in MODES or image.width * image.height > PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels of mode {image.mode}")
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("L" if shape[0] == 1 else "RGB")
            pixels = np.asarray(image.resize(shape[1:], Image.Resampling.BILINEAR, box=_centre(image.size, shape[1])))
    except Exception as error:  # decoders refuse damaged pictures in many ways
        raise DataError(f"{path} is no picture that can be read ({str(error)[:200]}): fetch it again or remove it") from error
    return pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1)


def _centre(size: tuple[int, int], side: int) -> tuple[float, float, float, float]:
    """The box of the picture that scaling the short side to `side` and cutting the centre would keep."""
    short = min(size)
    edges = []
    for length in size:
        scaled = side if length == short else int(side * length / short)
        start = round((scaled - side) / 2)
        edges.append((start * length / scaled, min((start + side) * length / scaled, length)))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


Entry = tuple[str, int, int, tuple[int, int]]  # path below the folder, label, bytes, times of change in ns


def _class_names(folder: Path, expected: int) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: the classes are the folders in it")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(names) != expected:
        raise DataError(f"{folder} has {len(names)} class folders, expected {expected}: fetch the complete data set, or name the classes")
    return tuple(names)


def _by_class(part: Path, folder: Path, names: tuple[str, ...]) -> list[Entry]:
    entries: list[Entry] = []
    for label, name in enumerate(names):
        place = part / name
        if not place.is_dir():
            raise DataError(f"{place} is missing: fetch the complete data set, or give its place as --root")
        waiting = _listed(inside(folder, place))
        while waiting:  # folders may be nested deeper than calls
            entry = waiting.pop()
            if entry.is_dir(follow_symlinks=False):
                waiting += _listed(Path(entry.path))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
                entries.append(_entry(entry, folder, label))
    return entries


def _listed(place: Path) -> list["os.DirEntry[str]"]:
    """What a folder holds, the first name last."""
    try:
        with os.scandir(place) as listed:
            return sorted(listed, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror}): check its permissions") from error


def _entry(entry: "os.DirEntry[str]", folder: Path, label: int) -> Entry:
    if entry.is_symlink():
        inside(folder, Path(entry.path))
    try:
        if not entry.is_file():
            raise DataError(f"{entry.path} is no file: remove it")
        status = entry.stat()
    except OSError as error:
        raise DataError(f"{entry.path} cannot be read ({error.strerror}): remove it or check its permissions") from error
    return entry.path[len(str(folder)) + 1 :], label, status.st_size, (status.st_mtime_ns, status.st_ctime_ns)


def _annotated(part: Path, folder: Path, names: tuple[str, ...], some: bool) -> list[Entry]:
    """Pictures listed in an annotation file; `some`: lines of classes not asked for are passed over."""
    if inside(folder, part).stat().st_size > ANNOTATIONS:
        raise DataError(f"{part} is larger than {ANNOTATIONS >> 20} MiB: no list of pictures is, fetch it again")
    images = part.parent / "images"
    try:
        lines = part.read_text(encoding="utf-8").splitlines()
        there = {entry.name: entry for entry in os.scandir(inside(folder, images))}
    except (OSError, ValueError) as error:
        raise DataError(f"{part} or the folder {images} cannot be read ({error}): fetch both again") from error
    label_of = {name: label for label, name in enumerate(names)}
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("\t")
        if not line.strip() or (some and len(words) > 1 and words[1] not in label_of):
            continue
        if len(words) < 2 or words[1] not in label_of or words[0] not in there or words[0] in entries:
            must = f"must be the name of a picture in {images}, listed once, a tab and a class"
            raise DataError(f"{part}, line {number}: {line[:80]!r} {must}: fetch it again")
        entries[words[0]] = _entry(there[words[0]], folder, label_of[words[1]])
    return sorted(entries.values(), key=lambda entry: (entry[1], entry[0]))
