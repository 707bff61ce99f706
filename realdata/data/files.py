"""Files of a data set on disk: where they lie, links that lead out of it, and how much of them is read into memory at most."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from realdata.data.table import source
from sims.lab.environment import memory
from sims.lab.files import RunError

LIMIT = min(2**33, memory() // 2)  # bytes of one file held in memory; larger sets belong into .npy (mapped) or picture folders (cached)
EXPANSION = 1032  # deflate's largest ratio of content to packed bytes


class DataError(RunError):
    """A fault of a data set's files. Their names and words are not ours: what a terminal might obey is shown as a question mark."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() or c.isspace() else "?" for c in message))


def locate(name: str, root: str | Path) -> Path:
    """The real folder that holds the files of data set `name`: `root` itself or one of the usual places below it."""
    root = Path(root)
    if root.is_file():
        raise DataError(f"{root} is a file: unpack it (tar -xf, unzip) and give the folder as --root")
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the place of the {name} files as --root")
    known = source(name)
    names = [file for part in known.parts.values() for file in part]
    for folder in (root / place for place in known.folders):
        if any(stored(folder, file) or (folder / file).is_dir() for file in names):
            return folder.resolve()
    places = ", ".join(str(root / place) for place in known.folders)
    raise DataError(f"no {name} files under {root} (looked in {places} for {names[0]} and the others): give their place as --root")


def stored(folder: Path, file: str) -> Path | None:
    """The file as it lies there: under its name, or gzipped."""
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def required(folder: Path, file: str) -> Path:
    """The file, which must be there and inside the data set's folder."""
    path = stored(folder, file)
    if path is None:
        raise DataError(f"{folder / file} is missing: fetch the complete data set, or give its place as --root")
    return inside(folder, path)


def inside(folder: Path, path: Path) -> Path:
    """`path`, unless a link leads it out of the (real) folder."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{path} is missing or leads nowhere: fetch the complete data set, or give its place as --root") from error
    if not real.is_relative_to(folder):
        raise DataError(f"{path} is a link out of {folder}: put the file itself there, or give its real place as --root")
    return path


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a file as a stream, decompressed where its name ends in .gz; faults of the file while it is read are one line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: fetch the complete data set, or give its place as --root") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory: it is damaged, or too large for this machine") from error


def most(path: Path) -> int:
    """The largest content, in bytes, that is read from the file: never more than it can hold, nor than LIMIT."""
    return min(LIMIT, path.stat().st_size * (EXPANSION if path.suffix == ".gz" else 1) + 1024)


def content(path: Path, largest: int = LIMIT) -> bytes:
    """The whole content, at most `largest` bytes."""
    with opened(path) as file:
        data = file.read(min(largest, most(path)))
        if file.read(1):
            raise DataError(f"{path} holds more than {min(largest, LIMIT) >> 20} MiB: no file of this kind is so large, fetch it again")
    return data
