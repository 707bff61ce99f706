"""Stored trials of a scaling experiment, picked by place, with the trials that failed left out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sims.lab.run import RunError
from sims.lab.store import Row

Rows = dict[str, list[Row]]


def sound_at(rows: Rows, kind: str, **where: Any) -> list[Row]:
    """The rows of a kind at a place that did not fail; RunError where none is left."""
    there = [row for row in rows[kind] if all(row[name] == value for name, value in where.items())]
    sound = [row for row in there if row["failed"] is None]
    if not sound:
        place = ", ".join(f"{name} = {value}" for name, value in where.items())
        raise RunError(f"all {len(there)} {kind} trials at {place} failed, first: {there[0]['failed'] if there else 'none was run'}")
    return sound


def curves(rows: Sequence[Row], values: Callable[[Row], Sequence[float]]) -> Float[np.ndarray, "n G"]:
    """One curve a row."""
    return np.array([values(row) for row in rows], dtype=np.float64)
