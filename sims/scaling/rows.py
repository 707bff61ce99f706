"""Stored trials of a scaling experiment, picked by place, with the trials that failed left out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sims.lab.store import Row
from sims.lab.sweep import rows_at, sound

Rows = dict[str, list[Row]]


def sound_at(rows: Rows, kind: str, **where: Any) -> list[Row]:
    """The rows of a kind at a place that did not fail; RunError where none is left."""
    place = ", ".join(f"{name} = {value}" for name, value in where.items())
    return sound(rows_at(rows[kind], **where), f"{kind} trials at {place}", 1)


def curves(rows: Sequence[Row], values: Callable[[Row], Sequence[float]]) -> Float[np.ndarray, "n G"]:
    """One curve a row."""
    return np.array([values(row) for row in rows], dtype=np.float64)
