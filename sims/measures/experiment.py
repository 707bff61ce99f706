"""A run of measures: which of them, on which grid, and the trials that follow."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from sims.lab.store import Row
from sims.lab.sweep import Sweep
from sims.measures.catalogue import ELSEWHERE, MEASURES, QUESTIONS, TRIALS
from sims.measures.costs import COSTS
from sims.measures.measure import Cell, Measure, Result, evaluate


@dataclass(frozen=True)
class Measures:
    """Measurements of what the theory predicts, each with its interval and verdict."""

    only: tuple[str, ...] = ()  # questions (Q1,Q5) or single measures (Q3.kernel); all when absent
    grid: Literal["quick", "full"] = "quick"  # sizes and draws: minutes, or half an hour
    effort: float = 1.0  # factor on the number of draws of every cell
    seed: int = 0  # root seed

    def __post_init__(self) -> None:
        known = {*QUESTIONS, *(measure.name for measure in MEASURES)}
        for name in self.names:
            if name in ELSEWHERE:
                raise ValueError(f"{name} is a sweep of its own: {ELSEWHERE[name]}")
            if name not in known:
                raise ValueError(
                    f"unknown measure {name!r}; known: {', '.join(QUESTIONS)}, or one of {', '.join(m.name for m in MEASURES)}"
                )
        if not 0.0 < self.effort < math.inf:
            raise ValueError(f"the effort must be positive and finite: effort={self.effort}")
        if self.seed < 0:
            raise ValueError(f"the root seed must be >= 0: seed={self.seed}")

    @property
    def names(self) -> tuple[str, ...]:
        """What `only` asks for; commas separate too."""
        return tuple(name for words in self.only for name in words.split(",") if name)

    @property
    def chosen(self) -> tuple[Measure, ...]:
        """The measures of this run."""
        return tuple(m for m in MEASURES if not self.names or m.name in self.names or m.question in self.names)

    def configs(self, cell: Cell) -> list[dict[str, Any]]:
        """The cell's trials, one a draw."""
        draws = max(2, round(self.effort * cell.draws))
        return [cell.config | {"seed": self.seed, "draw": k} for k in range(draws)]


def sweeps(config: Measures, backend: str) -> tuple[Sweep, ...]:
    """Every trial, by kind; measures that share configurations share trials."""
    trials: dict[str, dict[str, dict[str, Any]]] = {}
    for measure in config.chosen:
        for cell in measure.cells(config.grid):
            own = trials.setdefault(measure.trial, {})
            own |= {_key(trial): trial for trial in config.configs(cell)}
    return tuple(Sweep(kind, TRIALS[kind], tuple(found.values()), COSTS.get(kind)) for kind, found in trials.items())


def results(config: Measures, rows: dict[str, list[Row]]) -> tuple[Result, ...]:
    """Every chosen measure with its cells evaluated."""
    plan = {sweep.kind: sweep.configs for sweep in sweeps(config, "numpy")}
    found = {kind: {_key(c): row for c, row in zip(plan[kind], rows[kind], strict=True)} for kind in plan}
    return tuple(
        Result(
            measure,
            tuple(
                evaluate(measure, cell, [found[measure.trial][_key(trial)] for trial in config.configs(cell)])
                for cell in measure.cells(config.grid)
            ),
        )
        for measure in config.chosen
    )


def _key(config: dict[str, Any]) -> str:
    return repr(sorted(config.items()))
