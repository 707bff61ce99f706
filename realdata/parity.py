"""The parity test that stands before a run in less than float32: its own derivatives, along one and the same inner run, in both.

    run       of min(T, 20) inner steps from the first set, in float32, with its noise and its real batch
    inner     error of the last step's gradient     meta    error of the meta-gradient through all of those steps
    error     || x - x_32 || / || x_32 ||

A run passes where both errors are at most `BOUND` (ours). Meta-gradients of two starts differ by as much as their own size; what the bound
excludes is a wrong derivative, or a network whose sums cancel. With factors rounded to 11 bits on a processor, as a stand-in for tf32, both
errors were 0.010 to 0.014 (ConvNet-3 of width 128, CIFAR-10, 1 and 10 images a class). The path is not run again in the other arithmetic:
two paths drift apart whatever their rounding, and each is a fair one. Nothing is compiled in the test; that leaves contractions alone.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from realdata.bridge import Tensors
from realdata.machine import arithmetic
from realdata.task import Task, stream
from sims.lab.files import RunError
from theory.distill.adjoint import unroll
from theory.distill.distiller import asked_at, value_and_gradient
from theory.distill.leaves import add, norm, scale
from theory.distill.problem import GuidedObjective
from theory.distill.truncation import Window

STEPS = 20
BOUND = 0.02


@dataclass(frozen=True)
class Parity:
    """Errors of a run's derivatives in less than float32."""

    inner: float
    meta: float

    @property
    def passed(self) -> bool:
        """Whether both lie within the bound; errors that are not finite do not."""
        return self.inner <= BOUND and self.meta <= BOUND


def error(x: Tensors, expected: Tensors) -> float:
    """|| x - expected || / || expected ||; 0 where both are 0."""
    off, size = norm(add(x, scale(-1.0, expected))), norm(expected)
    return off / size if size > 0 else 0.0 if off == 0 else float("inf")


def parity(task: Task, seed: int, other: AbstractContextManager[object]) -> Parity:
    """The errors inside the context `other`, for a task whose functions are not compiled."""
    rng, (data, inner) = stream(seed, "parity"), task.distiller.training(task.first)
    objective = asked_at(task.objective, 0)
    xi = objective.draw(rng)
    theta = objective.start(xi) if isinstance(objective, GuidedObjective) else task.problem.init(rng)
    steps = min(STEPS, task.distiller.windows.horizon)
    tape = unroll(task.problem, inner, data, theta, [task.problem.draw(rng) for _ in range(steps)], Window(0, steps))

    def derivatives() -> tuple[Tensors, Tensors]:
        g = task.problem.gradient(tape.end.theta, data, tape.entries[-1].xi)
        sketches = np.random.default_rng(0)
        return g, value_and_gradient(task.problem, objective, task.distiller, task.first, tape, xi, sketches)[1]

    strict = derivatives()
    with other:
        found = derivatives()
    return Parity(*(error(x, y) for x, y in zip(found, strict, strict=True)))


def tested(task: Task, seed: int, precision: str) -> Parity:
    """The parity of `precision`, or a refusal."""
    found = parity(task, seed, arithmetic(precision))
    if not found.passed:
        raise RunError(
            f"precision={precision} is off by {found.inner:.1e} in a training step's gradient and by {found.meta:.1e} in a meta-gradient, "
            f"more than {BOUND}: leave out --precision"
        )
    return found
