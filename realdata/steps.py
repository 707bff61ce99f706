"""What every outer step of a run did and took: `steps.csv` in the run folder, a row a step.

    start, stop         the window;  value, grad_norm: objective and meta-gradient before the update (theory.distill.distiller.Record)
    gradients ..        counts of theory.distill.adjoint.Cost: plain steps, joint products (Hc, Mc), mixed products Mc, Hessian-vector
                        products of low-rank Hessians, floats stored at most
    seconds             of the whole outer step; of it
    seconds_plain       in inner gradients, seconds_product in second-order products of any kind, seconds_real in the loss on real images

What the phases leave of `seconds` is optimiser steps, their adjoints and draws. A processor is timed by its clock, a GPU by events in its
queue, which the run need not wait for. Of a run of several ranks, the phases are those of the first.
"""

import csv
import dataclasses
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims.lab.run import RunFolder
from theory.distill.adjoint import Cost
from theory.distill.distiller import Record
from theory.distill.leaves import Leaves
from theory.distill.matching import GradientMatching, PerformanceMatching, RealLoss
from theory.distill.patches import Aligned
from theory.distill.problem import InnerProblem, Noise

FILE = "steps.csv"
PHASES: tuple[str, ...] = ("plain", "product", "real")
COUNTS = tuple(f.name for f in dataclasses.fields(Cost))
COLUMNS = ("step", "start", "stop", "value", "grad_norm", "effective_positions", *COUNTS, "seconds", *(f"seconds_{p}" for p in PHASES))


@dataclass(frozen=True, eq=False)
class Watch:
    """Adds up seconds by phase."""

    device: torch.device
    marks: list[tuple[str, Any, Any]] = field(default_factory=list)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done inside counts to the phase."""
        began = self._now()
        yield
        self.marks.append((name, began, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last reading."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
        total = dict.fromkeys(PHASES, 0.0)
        for name, began, ended in self.marks:
            total[name] += began.elapsed_time(ended) / 1000.0 if on_gpu else ended - began
        self.marks.clear()
        return total


@dataclass(frozen=True, eq=False)
class TimedProblem:
    """A training problem whose gradients and products are timed."""

    problem: InnerProblem
    watch: Watch

    def init(self, rng: np.random.Generator) -> Leaves:
        return self.problem.init(rng)

    def draw(self, rng: np.random.Generator) -> Noise:
        return self.problem.draw(rng)

    def gradient(self, theta: Leaves, s: Leaves, xi: Noise) -> Leaves:
        with self.watch.phase("plain"):
            return self.problem.gradient(theta, s, xi)

    def second_order(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> tuple[Leaves, Leaves]:
        with self.watch.phase("product"):
            return self.problem.second_order(theta, s, xi, c)

    def mixed(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> Leaves:
        with self.watch.phase("product"):
            return self.problem.mixed(theta, s, xi, c)


@dataclass(frozen=True, eq=False)
class TimedLoss:
    """A loss on real images that is timed."""

    real: RealLoss
    watch: Watch

    def draw(self, rng: np.random.Generator) -> Noise:
        return self.real.draw(rng)

    def loss_and_gradient(self, theta: Leaves, xi: Noise) -> tuple[float, Leaves]:
        with self.watch.phase("real"):
            return self.real.loss_and_gradient(theta, xi)


@dataclass(frozen=True, eq=False)
class StepLog:
    """The rows of a run so far, and the watch that times the next one."""

    watch: Watch
    rows: list[list[Any]]

    @classmethod
    def open(cls, folder: Path, before: int, device: torch.device) -> "StepLog":
        """The log of the run in `folder`, as far as its first `before` outer steps."""
        return cls(Watch(device), [list(row.values()) for row in read_steps(folder) if row["step"] < before])

    def problem(self, problem: InnerProblem) -> InnerProblem:
        """The problem, timed."""
        return TimedProblem(problem, self.watch)

    def objective(self, objective: Any) -> Any:
        """The objective, its loss on real images timed where it has one."""
        if isinstance(objective, PerformanceMatching | GradientMatching):
            return replace(objective, real=TimedLoss(objective.real, self.watch))
        return replace(objective, objective=self.objective(objective.objective)) if isinstance(objective, Aligned) else objective

    def add(self, record: Record, seconds: float) -> None:
        """One more step, which took `seconds` in all."""
        phases = self.watch.read()
        head = record.step, record.window.start, record.window.stop, record.value, record.grad_norm, record.effective_positions
        self.rows.append([*head, *(getattr(record.cost, name) for name in COUNTS), seconds, *(phases[name] for name in PHASES)])

    def save(self, folder: RunFolder) -> None:
        """Writes the file anew. To be done before the checkpoint is: rows beyond a checkpoint are dropped, missing ones stay missing."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *self.rows])
        folder.write(FILE, stream.getvalue())


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The rows of steps.csv in a run folder, as numbers (None where empty); none where there is no file."""
    path = folder / FILE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> int | float | None:
    return None if text == "" else int(text) if text.isdigit() else float(text)
