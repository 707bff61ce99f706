"""The assumptions A1 to A25 on a task as it is run: one row each, and one line that says whether the run lies inside them.

    of_task      from the configuration alone: what N, d, r, L, J, the link and the budgets decide
    of_encoded   from what T1 to T4 left as well: the starts, the random and the distilled points, retrained rows and biases
    table        the rows of an experiment, and the line
    margins      the same as columns of a stored trial, which judges the very experiment that it has carried out
    of_rows      every task among the stored trials of a sweep: the least margin over the trials that judge themselves, and what follows
                 from the configuration alone for the rest

Full sample and labels enter (A1, A12) only where they fit in SAMPLE floats; what is not given is not judged, and the row says what is
missing. Constants of the thresholds are ours (theory.margins.Thresholds).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from sims.arrays import to_numpy
from sims.lab.report import Cell, markdown_table, number
from sims.pipeline import Encoded, Task, fresh_network, random_points, task_of
from theory.assumptions import ASSUMPTIONS
from theory.distill.leaves import Leaves
from theory.margins import Experiment, Thresholds
from theory.multi_index import draw_model

HEADERS = ("assumption", "statement", "margin", "holds", "source")
SAMPLE = 2**23
BY_CONSTRUCTION = frozenset({"A13", "A15"})
"""What no run of the pipeline can break: every first-layer step is taken with the decay that erases its start, every label of D1 is 1."""
NOT_JUDGED = (
    "Not judged: no trial of this run kept what the row names. Trials that carry out every phase (`encode`, the baselines of `scaling` "
    f"and `measure`) keep all of it but the real sample x with its labels y, kept up to {SAMPLE} numbers."
)


@dataclass(frozen=True)
class Row:
    """One assumption: its margin (positive: holds with that much to spare, relative to its bound), or what is missing to judge it."""

    name: str
    statement: str
    margin: float | None
    holds: bool | None
    source: str
    missing: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """Under HEADERS."""
        if self.holds is None:
            verdict = f"not judged: needs {', '.join(self.missing)}" if self.missing else "does not apply"
        else:
            verdict = ("yes, by construction" if self.name in BY_CONSTRUCTION else "yes") if self.holds else "NO"
        return [self.name, self.statement, None if self.margin is None else number(self.margin), verdict, self.source]


@dataclass(frozen=True)
class AssumptionTable:
    """All rows, and what they come to."""

    rows: tuple[Row, ...]

    @property
    def line(self) -> str:
        """One line: how many hold, and each that does not with its margin."""
        judged = [row for row in self.rows if row.holds is not None]
        broken = [row for row in judged if not row.holds]
        start = f"assumptions: {len(judged) - len(broken)} of {len(judged)} judged hold"
        if not broken:
            return f"{start}; {len(self.rows) - len(judged)} not judged"
        names = "; ".join(f"{row.name} {row.statement} (margin {number(row.margin)})" for row in broken)
        return f"{start}; this run lies outside {names}"

    def markdown(self) -> str:
        """For a report, the line below the table."""
        return f"{markdown_table(HEADERS, [row.cells for row in self.rows])}\n{self.line}\n"

    def plain(self) -> dict[str, Any]:
        """For summary.json: margins by name, None where not judged."""
        return {row.name: {"margin": row.margin, "holds": row.holds} for row in self.rows}


def table(experiment: Experiment) -> AssumptionTable:
    """Every assumption on one experiment."""
    rows = []
    for one in ASSUMPTIONS.values():
        found = one(experiment)
        if found is None:
            rows.append(Row(one.name, one.statement, None, None, one.source, one.missing(experiment)))
        else:
            # JSON knows no infinities: the largest float stands for them.
            value = float(np.clip(found.value, -np.finfo(float).max, np.finfo(float).max))
            rows.append(Row(one.name, one.statement, value, found.holds, one.source))
    return AssumptionTable(tuple(rows))


def of_task(
    task: Task, m1: int | None = None, accuracy: float | None = None, failure: float | None = None, thresholds: Thresholds | None = None
) -> Experiment:
    """From the configuration alone; index directions are drawn anew, for the margins do not depend on them.

    m1        distilled points                     accuracy   test risk that the width should allow (A20)
    failure   tolerated probability of failure at r = 1 (A17)
    """
    model = draw_model(task.d, task.r, task.link, np.random.default_rng(0), task.noise)
    return Experiment(
        model=model,
        degree=model.link.degree,
        samples=task.N,
        width=task.L,
        starts=task.J,
        m1=m1,
        preprocessed=task.preprocessing != "none",
        decay=1.0,
        labels1=None if m1 is None else np.ones(m1),
        accuracy=accuracy,
        failure=failure,
        thresholds=thresholds or Thresholds(),
    )


def of_encoded(
    encoded: Encoded, points: Any = None, fitted: tuple[Any, Any, Any] | None = None, head: Any = None, **budgets: Any
) -> Experiment:
    """From what a run left; budgets as in `of_task`.

    points   distilled (M1, d)        fitted   features Phi (M2, L) of the label inputs, the M2 labels, and the head fitted to them
    head     a_T of the network that gave the labels
    """
    task = encoded.task
    m1 = None if points is None else points.shape[0]
    model = draw_model(task.d, task.r, task.link, encoded.rng("model"), task.noise)  # the run's own, before it is moved and rounded
    known = replace(of_task(task, m1, **budgets), model=model, theta0=_leaves(encoded.starts[0]), seeds=_seeds(encoded), **_sample(encoded))
    if points is not None:
        rows, biases = fresh_network(encoded, points, "retrain")
        start = random_points(encoded, points.shape[0])
        known = replace(known, points=_host(points), points0=start, rows=_host(rows), biases=_host(biases))
    if fitted is not None:
        phi, labels2, reached = map(_host, fitted)
        known = replace(known, features=phi, labels2=labels2, lambda_s=ridge_of(phi, labels2, reached))
    return known if head is None else replace(known, head=_host(head))


def ridge_of(features: Float[np.ndarray, "M2 L"], y: Float[np.ndarray, "M2"], head: Float[np.ndarray, "L"]) -> float:
    """lambda_S of a ridge head, from its normal equations Phi^T (y - Phi a) = lambda_S a (derived here); 0 at or below rounding."""
    return max(float((features @ head) @ (y - features @ head) / (head @ head)), 0.0)


def margins(experiment: Experiment) -> dict[str, float | None]:
    """One column an assumption for the store, None where it is not judged."""
    return {_column(row.name): row.margin for row in table(experiment).rows}


@dataclass(frozen=True)
class SweepTable:
    """The tables of all tasks of a sweep, by a line that names each task; what no task judges is no part of the run."""

    tasks: Mapping[str, AssumptionTable]

    def _by_assumption(self) -> dict[str, list[tuple[Row, str]]]:
        found: dict[str, list[tuple[Row, str]]] = {}
        for label, one in self.tasks.items():
            for row in one.rows:
                found.setdefault(row.name, []).append((row, label))
        return found

    def _judged(self) -> dict[str, list[tuple[Row, str]]]:
        return {name: [pair for pair in pairs if pair[0].holds is not None] for name, pairs in self._by_assumption().items()}

    @property
    def line(self) -> str:
        """One line: how many assumptions hold at every task, and where each other one fails by most."""
        judged = {name: pairs for name, pairs in self._judged().items() if pairs}
        broken = {name: [pair for pair in pairs if not pair[0].holds] for name, pairs in judged.items()}
        outside = []
        for name, pairs in broken.items():
            if pairs:
                worst, label = min(pairs, key=lambda pair: pair[0].margin or 0.0)
                count = f"{len(pairs)} of {len(judged[name])} tasks"
                outside.append(f"{name} {worst.statement} ({count}, margin {number(worst.margin)} at {label})")
        start = f"assumptions: {len(judged) - len(outside)} of {len(judged)} judged hold at all {len(self.tasks)} tasks they are judged at"
        return f"{start}; outside: {'; '.join(outside)}" if outside else start

    def markdown(self) -> str:
        """assumptions.md: a row an assumption, with the task where its margin is least."""
        cells: list[list[Cell]] = []
        for name, pairs in self._judged().items():
            row, label = min(pairs, key=lambda pair: pair[0].margin or 0.0, default=self._by_assumption()[name][0])
            count = f"{sum(bool(one.holds) for one, _ in pairs)} of {len(pairs)}{', by construction' * (name in BY_CONSTRUCTION)}"
            held = count if pairs else row.cells[3]
            cells.append([name, row.statement, held, row.cells[2], label if pairs else None, row.source])
        head = ("assumption", "statement", "tasks that hold", "least margin", "at", "source")
        return f"# Assumptions of the theory at the tasks of this run\n\n{markdown_table(head, cells)}\n{self.line}\n\n{NOT_JUDGED}\n"

    def plain(self) -> dict[str, Any]:
        """assumptions.json: the margins of every task."""
        return {label: one.plain() for label, one in self.tasks.items()}


def of_rows(rows: Iterable[Mapping[str, Any]]) -> SweepTable:
    """The distinct tasks among stored trials (those that hold every field of Task); M1 is the largest of `M1` or `m1`."""
    names = [f.name for f in fields(Task)]
    tasks: dict[str, AssumptionTable] = {}
    for row in rows:
        if all(name in row for name in names):
            task, m1 = task_of(row), row.get("M1", row.get("m1"))
            m1 = max(m1) if isinstance(m1, Sequence) else m1
            parts = {"d": task.d, "r": task.r, "L": task.L, "J": task.J, "N": task.N, "M1": m1}
            extra = [task.link, task.preprocessing, *([f"noise {task.noise:g}"] if task.noise else [])]
            label = ", ".join([*(f"{name} = {value}" for name, value in parts.items() if value is not None), *extra])
            if label not in tasks:
                tasks[label] = table(of_task(task, m1))
            tasks[label] = AssumptionTable(tuple(_lesser(one, row.get(_column(one.name))) for one in tasks[label].rows))
    return SweepTable(tasks)


def _column(name: str) -> str:
    return f"margin_{name}"


def _lesser(row: Row, margin: float | None) -> Row:
    """The row with the margin that a trial found, where that is less or the first."""
    if margin is None or (row.margin is not None and row.margin <= margin):
        return row
    return replace(row, margin=margin, holds=margin > 0 or (margin == 0 and not ASSUMPTIONS[row.name].strict), missing=())


def _host(x: Any) -> np.ndarray:
    return to_numpy(x).astype(np.float64)


def _leaves(theta: Leaves) -> Leaves:
    return tuple(_host(x) for x in theta)


def _seeds(encoded: Encoded) -> dict[str, tuple[int, ...]]:
    """Each role's seed as one integer."""
    words = {role: encoded.seeds[role].generate_state(4) for role in encoded.seeds}
    return {role: (int.from_bytes(word.tobytes()),) for role, word in words.items()}


def _sample(encoded: Encoded) -> dict[str, Any]:
    """The whole training sample with its labels after preprocessing, where it fits."""
    if encoded.task.N * encoded.task.d > SAMPLE:
        return {}
    parts: Sequence[Any] = [(x, encoded.residual(x, encoded.model.labels(x, xi))) for x, xi in encoded.stream]
    return {"x": np.concatenate([_host(x) for x, _ in parts]), "y": np.concatenate([_host(y) for _, y in parts])}
