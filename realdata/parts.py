"""A folder of image files in parts, for a way that takes only so much at a time, and whole again at its end.

    python -m realdata.parts pack FOLDER --out PARTS     part-001, part-002, .. of at most --largest MiB each, and parts.json
    python -m realdata.parts join PARTS --out FOLDER     the folder, once parts.json and every part lie in PARTS

The parts are one tar stream cut into pieces: its entries are regular files in sorted order without owner and time, so equal files give
equal parts. parts.json names each part with its bytes and SHA-256; a missing or damaged one is named before anything is unpacked. Unpacking
makes no links and leaves the folder complete or not at all; empty folders are left out. Nothing is compressed: photographs hardly can be.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, subcommand

from realdata.checks import at_least
from realdata.data.files import DataError
from sims.lab.files import RunError, atomic_write, make_folder, whole_folder
from sims.lab.options import parse_words
from sims.lab.run import main_guard

INDEX = "parts.json"
MIB = 2**20


@dataclass(frozen=True)
class Pack:
    """Cut the files of a folder into parts."""

    folder: Positional[Path]
    """Folder whose files are packed, those in its folders too."""
    out: Path
    """New or empty folder for the parts."""
    largest: int = 56
    """Largest part in MiB."""


@dataclass(frozen=True)
class Join:
    """Put the files of a packed folder together again."""

    parts: Positional[Path]
    """Folder with parts.json and all parts."""
    out: Path
    """New folder for the files."""


Command = Annotated[Pack, subcommand("pack")] | Annotated[Join, subcommand("join")]


class _Cut(io.RawIOBase):
    """A stream to write to that becomes parts of `largest` bytes."""

    def __init__(self, folder: Path, largest: int) -> None:
        self.folder, self.largest = folder, largest
        self.waiting, self.index = bytearray(), []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.waiting += data
        while len(self.waiting) >= self.largest:
            self._part(self.largest)
        return len(data)

    def _part(self, size: int) -> None:
        name, content = f"part-{len(self.index) + 1:03}", bytes(self.waiting[:size])
        del self.waiting[:size]
        atomic_write(self.folder / name, content)
        self.index.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})

    def end(self) -> list[dict[str, Any]]:
        """Writes what is left; what each part is."""
        if self.waiting:
            self._part(len(self.waiting))
        return self.index


class _Joined(io.RawIOBase):
    """The parts, read one after the other."""

    def __init__(self, paths: list[Path]) -> None:
        self.blocks = (block for path in paths for block in _blocks(path))
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.rest = self.rest or memoryview(next(self.blocks, b""))
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(MIB):
            yield block


def pack(folder: Path, out: Path, largest: int = 56) -> list[dict[str, Any]]:
    """Packs the regular files below `folder` into parts of at most `largest` MiB in `out`; the entries of parts.json."""
    at_least(1, largest=largest)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder: name the one with the files")
    below = sorted(folder.rglob("*"))
    if strange := [path for path in below if path.is_symlink() or not (path.is_file() or path.is_dir())]:
        raise RunError(f"{strange[0]} is a link or no regular file: put the file itself there, or leave it out")
    files = [path for path in below if path.is_file()]
    if not files:
        raise RunError(f"{folder} holds no files to pack")
    make_folder(out)
    if any(out.iterdir()):
        raise RunError(f"{out} is not empty: choose a new folder for the parts")
    cut = _Cut(out, largest * MIB)
    try:
        _packed(folder, files, cut)
        index = cut.end()
    except BaseException as error:
        for part in out.iterdir():
            part.unlink()
        if isinstance(error, OSError):  # of a file that is read; what is written says what is wrong itself
            raise RunError(f"{folder} cannot be read to its end ({error}): nothing is packed") from error
        raise
    atomic_write(out / INDEX, json.dumps(index, indent=1) + "\n")
    return index


def _packed(folder: Path, files: list[Path], cut: "_Cut") -> None:
    """The files as one stream into the cut."""
    with tarfile.open(fileobj=cut, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in files:
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)


def _checked(parts: Path) -> list[Path]:
    """The parts in their order, each whole."""
    try:
        index = [(Path(entry["name"]), int(entry["bytes"]), str(entry["sha256"])) for entry in json.loads((parts / INDEX).read_text())]
    except FileNotFoundError as error:
        raise RunError(f"{parts / INDEX} is missing: give the folder that the parts and their index were put into") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{parts / INDEX} is damaged ({error}): bring it again") from error
    foreign = [name for name, _, _ in index if len(name.parts) != 1 or name.name != str(name)]
    if foreign or not index:
        raise DataError(f"{parts / INDEX} does not list the parts beside it: {', '.join(map(str, foreign)) or 'none'}")
    missing = [name.name for name, _, _ in index if not (parts / name).is_file()]
    if missing:
        raise RunError(f"{len(missing)} of {len(index)} parts are missing in {parts}: {', '.join(missing)}")
    for name, size, sha256 in index:
        if (parts / name).stat().st_size != size or _digest(parts / name) != sha256:
            raise DataError(f"{parts / name} is damaged: bring it again")
    return [parts / name for name, _, _ in index]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def join(parts: Path, out: Path) -> int:
    """Unpacks the parts into the new folder `out`; the number of its files."""
    paths, count = _checked(parts), 0
    if out.exists():
        raise RunError(f"{out} is there already: choose a new folder for the files")
    try:
        with whole_folder(out) as place, tarfile.open(fileobj=io.BufferedReader(_Joined(paths), MIB), mode="r|") as archive:
            for entry in archive:
                if not entry.isreg():
                    raise DataError(f"{parts} holds {entry.name!r}, which is no regular file: nothing is unpacked")
                archive.extract(entry, place, filter="data")
                count += 1
    except tarfile.TarError as error:
        raise DataError(f"{parts} holds no folder that can be unpacked ({error})") from error
    return count


@main_guard
def main(words: list[str] | None = None) -> None:
    """Packs or joins."""
    command = parse_words(Command, sys.argv[1:] if words is None else words, "python -m realdata.parts")
    match command:
        case Pack():
            index = pack(command.folder, command.out, command.largest)
            print(f"{len(index)} parts, {sum(entry['bytes'] for entry in index) / 1e6:.1f} MB: {command.out}")
        case Join():
            print(f"{join(command.parts, command.out)} files: {command.out}")


if __name__ == "__main__":
    main()
