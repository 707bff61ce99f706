"""CIFAR's python pickles, read without letting them make anything: arrays are built here, from the parts the pickle names.

A pickle is a program for a small machine. Its instructions are looked through first (none may need more memory than the file itself, and
neither they nor the bytes may be more than the published files need by far), then
it runs with two stand-ins for numpy's constructors, which only note their arguments; any other name it asks for ends the reading.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from realdata.data.files import DataError, content, required
from realdata.data.imageset import ImageSet
from realdata.data.table import Source
from sims.lab.files import RunError

LARGEST = 2**28  # bytes; CIFAR-100's training file has 1.6e8
INSTRUCTIONS = 2_000_000  # it has some 2e5
TUPLES = 100  # a data file has a few; the hash of deeply nested ones would exhaust the stack


class _Array:
    """What a pickle says of an array: (version, shape, type, Fortran order, bytes)."""

    __slots__ = ("state",)

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type:
    """What a pickle says of an array's element type: its code."""

    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Maker:
    """A constructor that a pickle may call and cannot change."""

    __slots__ = ("make",)

    def __init__(self, make: Any) -> None:
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("changes a constructor")


_empty = _Maker(lambda *_: _Array())
_around = _Maker(lambda data, kind, shape, order: _Array((1, shape, kind, order == "F", bytes(data))))
_MAKERS = {
    ("numpy", "ndarray"): _empty,
    ("numpy", "dtype"): _Maker(lambda code, *_: _Type(code)),
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.numeric", "_frombuffer"): _around,
    ("numpy._core.numeric", "_frombuffer"): _around,
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, tuples, bytes, str, numbers and `_Array`; names any other thing asked for and stops."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _MAKERS:
            raise DataError(f"asks for {module}.{name}, which no data file needs: it was not run, do not trust this file")
        return _MAKERS[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain data: its byte keys as str, its arrays as (n, m) arrays of bytes."""
    data = content(path, LARGEST)
    try:
        _look_through(data)
        found = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise DataError(f"holds a {type(found).__name__}, not a dictionary: fetch it again")
        return {_text(key): _array(value) if isinstance(value, _Array) else value for key, value in found.items()}
    except RunError as error:
        raise DataError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
        raise DataError(f"{path} is truncated or no pickle ({type(error).__name__}: {str(error)[:200]}): fetch it again") from error


def read_batches(known: Source, folder: Path, split: str) -> ImageSet:
    """A split: the batches of its files, one after the other."""
    batches = [read_batch(required(folder, file), known) for file in known.parts[split]]
    return ImageSet(np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches]), known.classes)


def read_batch(path: Path, known: Source) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of one file: rows of `data` are the red, green and blue plane of an image, `known.labels` names the label entry."""
    found = read_pickle(path)
    data, labels = found.get("data"), found.get(known.labels)
    if not isinstance(data, np.ndarray) or data.shape[1] != math.prod(known.shape):
        seen = getattr(data, "shape", type(data).__name__)
        raise DataError(f"{path}: 'data' must be an (n, {math.prod(known.shape)}) array of bytes, found {seen}: fetch it again")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(y) is int and 0 <= y < 2**31 for y in labels):
        raise DataError(f"{path}: '{known.labels}' must be a list of {len(data)} integers: fetch it again")
    return data.reshape(-1, *known.shape), np.asarray(labels, dtype=np.int64)


def _look_through(data: bytes) -> None:
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        tuples += opcode.name.startswith("TUPLE")
        if count > INSTRUCTIONS or tuples > TUPLES or (opcode.name.endswith("PUT") and not 0 <= int(argument or 0) <= count):
            raise DataError(f"is built unlike any data file ({opcode.name}): it was not run, do not trust this file")


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def _array(value: _Array) -> np.ndarray:
    _, shape, kind, fortran, data = value.state
    if not isinstance(kind, _Type) or kind.code not in ("u1", b"u1", "|u1", b"|u1") or not isinstance(data, bytes) or len(shape) != 2:
        raise DataError("holds an array that is no table of bytes: fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
