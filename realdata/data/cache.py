"""Decoded pictures on disk: made once, in parallel, then mapped, so that a set larger than memory starts in seconds and stays on disk.

    CACHE/SPLIT-SHAPE-KEY/images.npy    (n, channels, side, side) bytes
    CACHE/SPLIT-SHAPE-KEY/index.json    CRC-32 of each chunk of 512 images; written last, so what has it is complete
    CACHE/.SPLIT-SHAPE-TREE.tmp/        one in the making, with done.log: the chunks that have reached the disk; unreadable.txt: pictures
    CACHE/.SPLIT-SHAPE-TREE.lock        held with flock by the process that makes it; others wait

KEY is a hash of the reader's version, the tree's place and every picture's path, class, size and times of change: another picture is
another cache. TREE is one of the version and the place alone. A process that dies, or meets pictures that cannot be read, leaves the making
folder, and the next one takes from it every chunk whose pictures are as they were. Every opening compares checksums: all of them up to
1 GiB, beyond that evenly spread ones amounting to 1 GiB; what does not match is made again. CACHE is $DISTILL_CACHE, by default
$XDG_CACHE_HOME/distillation-laws or ~/.cache/distillation-laws; any part of it may be removed at any time.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from realdata.data.files import DataError
from realdata.data.folders import Listing, decode
from sims.lab.environment import cores
from sims.lab.files import RunError, atomic_write
from sims.lab.progress import progress

VERSION = 1  # of what `decode` makes of a picture
CHUNK = 512  # images
CHECKED = 2**30  # bytes compared with their checksums at every opening
UNREADABLE = "unreadable.txt"

Shape = tuple[int, int, int]


def cache_folder() -> Path:
    """Where decoded pictures lie (see the head of the module)."""
    place = os.environ.get("DISTILL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place) if place else Path(base).expanduser() / "distillation-laws"


def cached_images(listing: Listing, split: str, shape: Shape) -> np.ndarray:
    """The pictures of a split, (n, *shape) bytes mapped from the cache, which is made or mended first where need be."""
    stem, form = f"{split}-{'x'.join(map(str, shape))}", f"{VERSION} {CHUNK} {shape}"
    place = cache_folder() / f"{stem}-{_short(form, listing.key())}"
    making = place.with_name(f".{stem}-{_short(form, listing.key(0, 0))}.tmp")
    full = (len(listing.files), *shape)
    if (images := _mapped(place, full)) is not None:
        return images
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _only_here(making.with_suffix(".lock")):
            if (images := _mapped(place, full)) is not None:  # another process made it meanwhile
                return images
            _build(place, making, listing, shape)
    except OSError as error:
        raise _fault(place.parent, error.strerror or str(error)) from error
    if (images := _mapped(place, full)) is None:
        raise _fault(place.parent, "what was written there does not read back")
    return images


def _short(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:20]


def _fault(folder: Path, reason: str) -> DataError:
    return DataError(f"decoded pictures cannot be stored in {folder} ({reason}): free some space or set DISTILL_CACHE to another folder")


def _mapped(place: Path, full: tuple[int, ...]) -> np.ndarray | None:
    """The cache at `place`, None where there is none that is whole."""
    try:
        sums = json.loads((place / "index.json").read_text())["crc32"]
        images = np.load(place / "images.npy", mmap_mode="r", allow_pickle=False)
        if images.shape != full or images.dtype != np.uint8 or len(sums) != _chunks(len(images)):
            return None
        step = max(1, math.ceil(images.nbytes / CHECKED))
        if all(zlib.crc32(_chunk(images, k)) == sums[k] for k in range(0, len(sums), step)):
            return images
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged in any way: it is made again
    return None


def _chunks(n: int) -> int:
    return math.ceil(n / CHUNK)


def _chunk(images: np.ndarray, k: int) -> memoryview:
    return np.ascontiguousarray(images[k * CHUNK : (k + 1) * CHUNK]).data


@contextmanager
def _only_here(path: Path) -> Iterator[None]:
    """Holds the lock of one making folder; waits for another process that has it. The system lets go when the holder dies."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process decodes these pictures into {path.parent}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _build(place: Path, making: Path, listing: Listing, shape: Shape) -> None:
    """Decodes every picture that the log of an earlier attempt does not have, then gives the folder its name."""
    full = (len(listing.files), *shape)
    making.mkdir(exist_ok=True)
    _refuse_small_disk(making, full)
    file, start = _laid_out(making / "images.npy", full)
    there = np.load(file, mmap_mode="r", allow_pickle=False)
    keys = [listing.key(k * CHUNK, (k + 1) * CHUNK) for k in range(_chunks(full[0]))]
    logged = _logged(making / "done.log")
    done: dict[int, int | None] = {k: logged[key] for k, key in enumerate(keys) if zlib.crc32(_chunk(there, k)) == logged.get(key)}
    todo, faults = [k for k in range(len(keys)) if k not in done], dict[str, RunError]()

    def work(k: int) -> tuple[int, int | None, dict[str, RunError]]:
        images, bad = _decoded(listing, k, shape)
        if bad:
            return k, None, bad
        with file.open("r+b") as target:
            target.seek(start + k * CHUNK * images[0].nbytes)
            target.write(images.data)
            target.flush()
            os.fsync(target.fileno())
        crc = zlib.crc32(images.data)
        os.write(log, f"{keys[k]} {crc}\n".encode())  # by the thread itself, once they are on disk: a kill loses what is under way only
        return k, crc, bad

    # Threads: Pillow decodes and scales without the interpreter's lock, and nothing is left behind when the process is killed.
    pool = ThreadPoolExecutor(cores())
    log = os.open(making / "done.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with progress(full[0], "decode pictures") as bar:
            bar.skip(min(len(done) * CHUNK, full[0]))
            for k, crc, bad in pool.map(work, todo):
                done[k] = crc
                faults |= bad
                bar.advance(min(CHUNK, full[0] - k * CHUNK))
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(log)
    if faults:
        (making / UNREADABLE).write_bytes(b"".join(os.fsencode(path) + b"\n" for path in faults))
        raise DataError(f"{next(iter(faults.values()))} (pictures of this kind: {len(faults)}, listed in {making / UNREADABLE})")
    atomic_write(making / "index.json", json.dumps({"crc32": [done[k] for k in sorted(done)]}))
    if place.exists():  # a damaged one
        shutil.rmtree(place)
    making.rename(place)
    for rest in ("done.log", UNREADABLE):
        (place / rest).unlink(missing_ok=True)


def _decoded(listing: Listing, k: int, shape: Shape) -> tuple[np.ndarray, dict[str, RunError]]:
    """Chunk k, and what is wrong with those of its pictures that cannot be read, by path."""
    pictures = listing.files[k * CHUNK : (k + 1) * CHUNK]
    images, bad = np.empty((len(pictures), *shape), dtype=np.uint8), dict[str, RunError]()
    for image, path in zip(images, pictures, strict=True):
        try:
            image[:] = decode(listing.folder / path, shape)
        except RunError as error:
            bad[path] = error
    return images, bad


def _refuse_small_disk(making: Path, full: tuple[int, ...]) -> None:
    there = sum(path.stat().st_blocks * 512 for path in making.iterdir())
    free, needed = shutil.disk_usage(making).free, math.prod(full) - there
    if needed > free:
        raise _fault(making.parent, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


def _laid_out(path: Path, full: tuple[int, ...]) -> tuple[Path, int]:
    """The array file at its full length and the place of its first image; an unfinished one of the same form stays as it is."""
    with path.open("r+b" if path.exists() else "x+b") as file:
        header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": full}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + math.prod(full))
    return path, start


def _logged(path: Path) -> dict[str, int]:
    """Key of a chunk -> checksum of what is on disk already; a line cut short by a kill does not count."""
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    pairs = (line.split(" ") for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
