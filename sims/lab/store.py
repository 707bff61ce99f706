"""A trial store: the map (kind, configuration) -> result, one Parquet file a trial.

    key   first 16 hex digits of SHA-256 over the canonical JSON of [kind, configuration, package version, RESULT_SCHEMA]
    row   one flat dict {kind, version, failed, **configuration, **result}, which is also the one row of DIR/trials/<key>.parquet

What has been put is returned bit for bit. A configuration or a result holds bool, int (64 bit), float, str, None and lists of them;
None marks a censored value, NaN and infinity are refused. A file that does not carry its own digest counts as absent.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sims.lab.files import atomic_write, make_folder

RESULT_SCHEMA = 2  # raise it when the meaning of a stored result changes: every trial then runs anew
RESERVED = frozenset({"kind", "version", "failed", "digest"})

Row = dict[str, Any]


@cache
def package_version() -> str:
    return version("distillation-laws")


def store_version() -> str:
    """Package version and result schema: trials of another one are never mixed with these."""
    return f"{package_version()}/{RESULT_SCHEMA}"


def trial_key(kind: str, config: Mapping[str, Any]) -> str:
    """16 hex digits naming the trial; the order of the keys does not matter, tuples count as lists, 1 and 1.0 differ.

    Raises ValueError naming the entry that cannot be stored.
    """
    content = [kind, _plain_dict("config", config), package_version(), RESULT_SCHEMA]
    return hashlib.sha256(_canonical(content)).hexdigest()[:16]


class TrialStore:
    """Trials under DIR/trials. Reading needs no lock; a writer holds the run folder's lock."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.trials = Path(folder) / "trials"

    def get(self, kind: str, config: Mapping[str, Any]) -> Row | None:
        """The stored row, or None when the trial is absent, unreadable or of another version."""
        return _read(self._path(kind, config))

    def has(self, kind: str, config: Mapping[str, Any]) -> bool:
        return self.get(kind, config) is not None

    def put(self, kind: str, config: Mapping[str, Any], result: Mapping[str, Any], failed: str | None = None) -> Row:
        """Stores the trial and returns its row as `get` will. `failed` is the message of a numerical failure (result then usually {}).

        Raises FloatingPointError for NaN or infinity in the result, ValueError for a name used twice or a value that has no place
        in a Parquet column, RunError when the disk refuses.
        """
        clash = sorted((set(config) & set(result)) | (RESERVED & (set(config) | set(result))))
        if clash:
            raise ValueError(f"trial of kind {kind!r} uses the name {clash[0]!r} twice or it is reserved: rename it in the result")
        for name, value in result.items():
            _refuse_non_finite(f"{kind}: result {name}", _plain(value))
        head = {"kind": kind, "version": store_version(), "failed": failed}
        # Through Arrow and back, so that the first run and a resumed one see the same types.
        row = pa.table(_columns(head | _plain_dict("config", config) | _plain_dict("result", result))).to_pylist()[0]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(_columns(row | {"digest": _digest(row)})), sink, compression="none", write_statistics=False)
        path = self._path(kind, config)
        make_folder(path.parent)
        atomic_write(path, sink.getvalue().to_pybytes())
        return row

    def rows(self, kind: str) -> list[Row]:
        """Every readable trial of this kind and of the present version, in the order of the keys (so the same on every call)."""
        rows = [_read(path) for path in sorted(self.trials.glob("[0-9a-f]*.parquet"))]
        return [row for row in rows if row is not None and row["kind"] == kind]

    def _path(self, kind: str, config: Mapping[str, Any]) -> Path:
        return self.trials / f"{trial_key(kind, config)}.parquet"


def _read(path: Path) -> Row | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        row = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()[0]
        sound = row.pop("digest") == _digest(row)
    except Exception:  # a damaged file may fail anywhere in the decoder: Arrow names no closed list of errors
        sound, row = False, {}
    if not sound:
        print(f"warning: {path} is damaged and counts as absent: its trial runs again", file=sys.stderr)
        return None
    return row if row["version"] == store_version() else None


def _digest(row: Row) -> str:
    return hashlib.sha256(_canonical(row)).hexdigest()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _columns(row: Row) -> dict[str, list[Any]]:
    return {name: [value] for name, value in row.items()}


def _plain_dict(what: str, values: Mapping[str, Any]) -> Row:
    """`values` with NumPy scalars and arrays as Python ones; ValueError for what a Parquet column or JSON cannot hold."""
    plain: Row = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"{what}: the name {name!r} must be a string")
        plain[name] = _plain(value)
        try:
            if isinstance(plain[name], Mapping):
                raise ValueError("a dict has no column of its own, flatten it")
            _canonical(plain[name])
            pa.array([plain[name]])
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{what}: {name} = {value!r} cannot be stored ({error})") from error
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse_non_finite(what: str, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _refuse_non_finite(what, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FloatingPointError(f"{what} is {value}: the trial failed numerically (a censored value is stored as None)")
