"""What `data verify` finds out: every file present, readable, of the right count, its checksum known or unknown, images of each class."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realdata.data.cifar import read_batch
from realdata.data.files import content, locate, required, stored
from realdata.data.folders import Listing, decode, list_split
from realdata.data.idx import read_idx
from realdata.data.loading import expect, load
from realdata.data.table import SPLITS, Source, source
from sims.lab.environment import cores
from sims.lab.files import RunError
from sims.lab.progress import progress

UNKNOWN = "unknown"
TOGETHER = 256  # pictures that one thread looks at before it reports
CLASS_ROWS = 50  # beyond so many classes only those with a fault get a row of their own


@dataclass(frozen=True)
class FileCheck:
    """What is found out about one file, one class of pictures, or (in brackets) a whole split."""

    file: str
    split: str
    size: int | None
    images: int | None
    per_class: str
    checksum: str
    fault: str


def verify(name: str, root: str | Path) -> list[FileCheck]:
    """Every file and every split of the data set. Faults are described, not raised."""
    folder, known = locate(name, root), source(name)
    checks: list[FileCheck] = []
    for split in SPLITS:
        if known.format == "folders":
            checks += _check_pictures(known, folder, split)
            continue
        if known.format in ("cifar", "idx"):
            checks += [_check_file(known, folder, split, file) for file in known.parts[split]]
        checks.append(_check_split(name, root, split))
    return checks


def _check_split(name: str, root: str | Path, split: str) -> FileCheck:
    try:
        images = load(name, root, split)
    except RunError as error:
        return FileCheck(f"({split})", split, None, None, "-", "-", str(error))
    counts = np.bincount(images.labels, minlength=len(source(name).classes))
    return FileCheck(f"({split})", split, None, len(images), f"{counts.min()} .. {counts.max()}", "-", "")


def _check_file(known: Source, folder: Path, split: str, file: str) -> FileCheck:
    if stored(folder, file) is None:
        return FileCheck(file, split, None, None, "-", "-", f"missing: {folder / file}")
    try:
        path = required(folder, file)
        images = len(read_idx(path)) if known.format == "idx" else len(read_batch(path, known)[1])
        checksum = _checksum(path, file, known.md5)
    except RunError as error:
        return FileCheck(file, split, None, None, "-", "-", str(error))
    share = known.counts.get(split, 0) // (1 if known.format == "idx" else len(known.parts[split]))
    fault = f"{images} images, expected {share}" if share and images != share else ""
    other = "" if checksum in ("matches", UNKNOWN) else "not the published file"
    return FileCheck(path.name, split, path.stat().st_size, images, "-", checksum, fault or other)


def _checksum(path: Path, file: str, published: dict[str, str]) -> str:
    """Of the file as it lies there where that is published, else of its content: gzip puts a date into its own."""
    packed = path.name in published and path.name != file
    known = published.get(path.name if packed else file)
    if known is None:
        return UNKNOWN
    digest = hashlib.md5(path.read_bytes() if packed else content(path), usedforsecurity=False).hexdigest()
    return "matches" if digest == known else f"{digest} (published: {known})"


def _check_pictures(known: Source, folder: Path, split: str) -> list[FileCheck]:
    """Decodes every picture, in parallel; nothing is stored."""
    try:
        listing = list_split(known, folder, split)
    except RunError as error:
        return [FileCheck(f"({split})", split, None, None, "-", UNKNOWN, str(error))]
    faults: dict[int, list[str]] = {}
    starts = range(0, len(listing.files), TOGETHER)
    pool = ThreadPoolExecutor(cores())
    try:
        with progress(len(listing.files), f"check {split} pictures") as bar:
            for start, found in zip(starts, pool.map(lambda start: _faults(listing, start, known), starts), strict=True):
                for k, fault in found.items():
                    faults.setdefault(int(listing.labels[k]), []).append(fault)
                bar.advance(min(TOGETHER, len(listing.files) - start))
    finally:
        pool.shutdown(cancel_futures=True)
    return [*_class_rows(listing, split, faults), _split_row(known, listing, split, faults)]


def _faults(listing: Listing, start: int, known: Source) -> dict[int, str]:
    """Place in the listing -> what is wrong with that picture, of TOGETHER pictures."""
    found: dict[int, str] = {}
    for k, path in enumerate(listing.files[start : start + TOGETHER], start=start):
        try:
            decode(listing.folder / path, known.shape)
        except RunError as error:
            found[k] = str(error)
    return found


def _class_rows(listing: Listing, split: str, faults: dict[int, list[str]]) -> Iterator[FileCheck]:
    sizes = np.bincount(listing.labels, weights=listing.sizes)
    for label, count in enumerate(np.bincount(listing.labels).tolist()):
        wrong = faults.get(label, [])
        if wrong or len(listing.classes) <= CLASS_ROWS:
            fault = f"{len(wrong)} of {count} cannot be read, first: {wrong[0]}" if wrong else ""
            yield FileCheck(listing.classes[label], split, int(sizes[label]), count, str(count), UNKNOWN, fault)


def _split_row(known: Source, listing: Listing, split: str, faults: dict[int, list[str]]) -> FileCheck:
    counts = np.bincount(listing.labels)
    fault = f"pictures of {len(faults)} classes cannot be read" if faults else ""
    try:
        expect(known, listing.folder, split, len(listing.files))
    except RunError as error:
        fault = str(error)
    spread = f"{counts.min()} .. {counts.max()}"
    return FileCheck(f"({split})", split, int(listing.sizes.sum()), len(listing.files), spread, UNKNOWN, fault)
