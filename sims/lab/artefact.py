"""A distilled set on disk: a folder of tensors, a card, the configuration and pictures, sealed by SHA256SUMS.

    data.safetensors (always), transform.safetensors and other tensor files, card.md, config.toml, *.png
    SHA256SUMS       one line "<hex>  <name>" for each file, as `sha256sum -c` reads it; written last

The folder is built under a temporary name and renamed, so it is complete or absent. Reading runs no code: safetensors and TOML hold data
only, and a file is parsed from the very bytes whose checksum was verified. A tensor file that stands alone (`sealed`, `unsealed`) carries
its checksum in its own header.
"""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sims.lab.files import RunError, atomic_write, toml_text, whole_folder

SUMS = "SHA256SUMS"
CARD = "card.md"
CONFIG = "config.toml"
SEAL = "seal"  # header entry of a tensor file that stands alone: "<hex> <record>"
LARGEST = 2**33  # bytes of one file

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Artefact:
    """What an artefact folder holds. `tensors` is keyed by file name, then by tensor name."""

    tensors: Mapping[str, Tensors]
    card: str
    config: Mapping[str, Any]
    images: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def data(self) -> Tensors:
        return self.tensors["data.safetensors"]


def write_artefact(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensors],
    card: str,
    config: Mapping[str, Any],
    images: Mapping[str, bytes] | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Writes the folder (see the head of the module) and gives its path back.

    tensors  {"data.safetensors": {"images": ..., "labels": ...}, ...}: real or integer arrays of any shape, all finite
    images   {"grid.png": bytes of a PNG file}
    replace  whether an artefact that lies there may go; only then, and only when the new one is complete
    Raises RunError when the place is taken or not writable, ValueError for names or arrays that have no place in the folder.
    """
    folder = Path(folder)
    content = _content(tensors, card, config, images or {})
    if folder.exists() and not (replace and (folder / SUMS).is_file()):
        raise RunError(f"{folder} exists already: choose another place for the distilled set")
    with whole_folder(folder) as building:
        for name, data in content.items():
            atomic_write(building / name, data)
        atomic_write(building / SUMS, sums(content))
    return folder


def read_artefact(folder: str | os.PathLike[str]) -> Artefact:
    """The artefact in `folder`, every file checked against SHA256SUMS first.

    Raises RunError naming the file that is missing, changed or unreadable. Files that SHA256SUMS does not list are not looked at.
    """
    folder = Path(folder)
    content = verified(folder)
    for name in ("data.safetensors", CARD, CONFIG):
        if name not in content:
            raise RunError(f"{folder / SUMS} does not list {name}: this is no complete distilled set")
    tensors: dict[str, Tensors] = {}
    for name in content:
        if name.endswith(".safetensors"):
            try:
                tensors[name] = safetensors.numpy.load(content[name])
            except Exception as error:  # the format's errors are of several unrelated classes
                raise RunError(f"{folder / name} is no readable tensor file ({error})") from error
    try:
        card, config = content[CARD].decode(), tomllib.loads(content[CONFIG].decode())
    except ValueError as error:
        raise RunError(f"{folder}: {CARD} or {CONFIG} cannot be read ({error})") from error
    return Artefact(tensors, card, config, {name: data for name, data in content.items() if name.endswith(".png")})


def verified(folder: Path) -> dict[str, bytes]:
    """The content of every file that the folder's SHA256SUMS lists, checked against it; RunError naming what is missing or changed."""
    return {name: _checked(folder / name, digest) for name, digest in _sums(folder / SUMS).items()}


def sums(content: Mapping[str, bytes]) -> str:
    """SHA256SUMS of files by name."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items())


def contained(path: Path) -> bytes:
    """The content of a plain file of a folder that others made; RunError for a link out of the folder, a pipe, or a file beyond LARGEST.

    Raises OSError where it is not there or cannot be read.
    """
    try:
        real = path.resolve(strict=True)
    except RuntimeError as error:
        raise RunError(f"{path} is a link that leads nowhere: put the file itself there") from error
    if not real.is_relative_to(path.parent.resolve()):
        raise RunError(f"{path} is a link out of its folder: put the file itself there")
    if not real.is_file():
        raise RunError(f"{path} is no plain file: put the file itself there")
    if real.stat().st_size > LARGEST:
        raise RunError(f"{path} takes more than {LARGEST / 2**30:.0f} GiB: no distilled set has a file so large")
    return real.read_bytes()


def sealed(tensors: Tensors, record: str = "") -> bytes:
    """A tensor file with a text beside its tensors, and the SHA-256 of both."""
    ready = {name: np.array(x, order="C") for name, x in tensors.items()}
    return safetensors.numpy.save(ready, {SEAL: f"{_seal(ready, record)} {record}"})


def unsealed(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """(tensors, text) of a file of `sealed`; ValueError where they are not what was stored, the format's errors where it is no such file.

    A file of an earlier version, which has the text alone under "state" or none, is taken as it is.
    """
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if not header or "state" in header:
        return tensors, header.get("state", "")
    seal, _, record = header.get(SEAL, "").partition(" ")
    if seal != _seal(tensors, record):
        raise ValueError("its content does not match its checksum")
    return tensors, record


def _seal(tensors: Tensors, record: str) -> str:
    found = hashlib.sha256(record.encode())
    for name, x in sorted(tensors.items()):
        found.update(f"\0{name} {x.dtype.str} {x.shape} ".encode())
        found.update(np.ascontiguousarray(x).data)
    return found.hexdigest()


def _content(tensors: Mapping[str, Tensors], card: str, config: Mapping[str, Any], images: Mapping[str, bytes]) -> dict[str, bytes]:
    if "data.safetensors" not in tensors:
        raise ValueError(f"a distilled set needs data.safetensors, there are {sorted(tensors)}")
    for names, suffix in ((tensors, ".safetensors"), (images, ".png")):
        for name in names:
            if not name.endswith(suffix) or Path(name).name != name or "\n" in name:
                raise ValueError(f"file name {name!r} must be a plain name ending in {suffix}")
    content = {name: safetensors.numpy.save(_ready(name, arrays)) for name, arrays in tensors.items()}
    return content | dict(images) | {CARD: card.encode(), CONFIG: toml_text(config).encode()}


def _ready(file: str, arrays: Tensors) -> dict[str, np.ndarray]:
    ready: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{file}: {name} has type {array.dtype}, which a tensor file cannot hold")
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise FloatingPointError(f"{file}: {name} holds NaN or infinity, the distilled set is not written")
        # safetensors copies the buffer as it lies in memory: it must be in C order and of this machine's byte order
        ready[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return ready


def _sums(path: Path) -> dict[str, str]:
    try:
        lines = contained(path).decode().splitlines()
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {path.parent} is no complete distilled set") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error})") from error
    sums: dict[str, str] = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise RunError(f"{path} has a line that is no checksum of a file beside it: {line[:80]!r}")
        sums[name] = digest
    return sums


def _checked(path: Path, digest: str) -> bytes:
    try:
        data = contained(path)
    except OSError as error:
        raise RunError(f"{path} is missing or unreadable ({error.strerror}): the distilled set is not complete") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunError(f"{path} does not match its checksum in {SUMS}: it was changed or damaged, fetch or distil it again")
    return data
