"""A measurement as data: what is drawn, which number it comes to, what the theory says of that number, and when the two agree.

cell        one configuration, `draws` independent trials of one kind
measured    statistic over the draws           s.e.   bootstrap standard error, draws resampled
z           (excess of |measured - predicted| over the stated correction) / s.e.; one-sided for bounds
within      z <= 3                              verdict PASS: at least 95 % of the cells within, and s.e. as small as promised
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sims.lab.store import Row
from sims.lab.sweep import sound

Config = Mapping[str, Any]
Table = dict[str, np.ndarray]
"""Columns of a cell: one entry a draw along the first axis."""

Relation = Literal["equal", "at most", "at least"]
LIMIT = 3.0
SHARE = 0.95
RESAMPLES = 400


def product(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the values, as dicts."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@dataclass(frozen=True)
class Cell:
    """One point of a grid: the configuration of its trials, their number, and which entry of a trial's lists is meant (`at`)."""

    config: dict[str, Any]
    draws: int
    at: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> dict[str, Any]:
        """Configuration and place together."""
        return {**self.config, **self.at}


@dataclass(frozen=True)
class Grids:
    """Cells of a measure: the quick grid and the full one."""

    quick: tuple[Cell, ...]
    full: tuple[Cell, ...]


@dataclass(frozen=True)
class Measure:
    """A named measurement.

    name        Q number, and a word after a dot where one question has several numbers
    definition  what is computed, in words and formula
    claim       what is predicted, in words and formula
    source      who says so: "stated in ..." or "derived here (module)"
    trial       kind of trial whose columns the statistic takes
    statistic   (columns, where) -> number
    predicted   where -> number
    grids       the cells
    axis        the entry of a cell that runs along the figure
    relation    of the measured number to the predicted one
    allowance   where -> stated correction, in units of the number
    precision   largest standard error promised, relative to the prediction (None: no promise)
    """

    name: str
    title: str
    definition: str
    claim: str
    source: str
    trial: str
    statistic: Callable[[Table, Config], float]
    predicted: Callable[[Config], float]
    grids: Grids
    axis: str
    relation: Relation = "equal"
    allowance: Callable[[Config], float] = lambda where: 0.0
    correction: str = ""
    precision: float | None = None

    @property
    def question(self) -> str:
        """Q number."""
        return self.name.partition(".")[0]

    def cells(self, grid: str) -> tuple[Cell, ...]:
        """The cells of the grid of that name."""
        return getattr(self.grids, grid)


@dataclass(frozen=True)
class Outcome:
    """One cell after its draws."""

    where: dict[str, Any]
    predicted: float
    measured: float
    error: float
    allowance: float
    z: float
    draws: int
    failed: int

    @property
    def within(self) -> bool:
        """Whether the cell agrees."""
        return self.z <= LIMIT

    @property
    def relative_error(self) -> float:
        """s.e. / |prediction|; infinite where the prediction is 0 and the s.e. is not."""
        return self.error / abs(self.predicted) if self.predicted else (math.inf if self.error else 0.0)


@dataclass(frozen=True)
class Result:
    """A measure with all its cells."""

    measure: Measure
    cells: tuple[Outcome, ...]

    @property
    def within(self) -> int:
        """Number of cells that agree."""
        return sum(cell.within for cell in self.cells)

    @property
    def worst(self) -> Outcome:
        """The cell with the largest z."""
        return max(self.cells, key=lambda cell: cell.z)

    @property
    def coarse(self) -> int:
        """Cells whose standard error exceeds what is promised (relative to the prediction, so not where that is 0)."""
        bound = self.measure.precision
        return 0 if bound is None else sum(cell.relative_error > bound for cell in self.cells if cell.predicted)

    @property
    def verdict(self) -> str:
        """PASS, COARSE (agreement within errors larger than promised in more than 5 % of the cells) or FAIL."""
        if self.within < SHARE * len(self.cells):
            return "FAIL"
        return "COARSE" if self.coarse > (1.0 - SHARE) * len(self.cells) else "PASS"


def evaluate(measure: Measure, cell: Cell, rows: Sequence[Row]) -> Outcome:
    """The cell's number, its standard error and its distance from the prediction."""
    good = sound(rows)
    if len(good) < 2:
        first = next((row["failed"] for row in rows if row["failed"]), "none drawn")
        raise FloatingPointError(f"{measure.name} at {cell.where}: {len(good)} of {len(rows)} trials are sound ({first})")
    table = {name: np.array([row[name] for row in good]) for name, value in good[0].items() if _is_number(value)}
    rng = np.random.default_rng(0)
    measured = float(measure.statistic(table, cell.where))
    again = [measure.statistic(_take(table, rng.integers(0, len(good), len(good))), cell.where) for _ in range(RESAMPLES)]
    error = float(np.std(again, ddof=1)) * math.sqrt(len(good) / (len(good) - 1))
    predicted, allowance = float(measure.predicted(cell.where)), float(measure.allowance(cell.where))
    z = distance(measure.relation, measured, predicted, allowance, error)
    return Outcome(cell.where, predicted, measured, error, allowance, z, len(good), len(rows) - len(good))


def distance(relation: Relation, measured: float, predicted: float, allowance: float, error: float) -> float:
    """z: by how many standard errors the measured number breaks the relation, 0 where it holds."""
    sides = {"equal": abs(measured - predicted), "at most": measured - predicted, "at least": predicted - measured}
    excess = max(0.0, sides[relation] - allowance)
    if excess == 0.0:
        return 0.0
    return excess / error if error > 0.0 else math.inf


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str) and value is not None and np.issubdtype(np.asarray(value).dtype, np.number)


def _take(table: Table, index: np.ndarray) -> Table:
    return {name: column[index] for name, column in table.items()}
