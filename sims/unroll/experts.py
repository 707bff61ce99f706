"""Expert trajectories of the two-layer network: training runs on the real sample, plain or flat, a snapshot an epoch.

    theta_{k+1} = theta_k - eta u_k     u_k: the gradient on a fresh batch, or the flat direction there (theory.distill.flatness)
    plain       snapshot e after e epochs of N / batch steps
    matched     snapshot e of a flat run: the first step, after that of snapshot e - 1, at which its loss on the whole sample is no more
                than that of its plain twin's snapshot e

A flat run has the start and the batches of its twin, and further batches where it takes more steps. Two stores matched like this differ in
where the experts went and in how many steps they took, not in how well they fit (up to what one step changes). Derived here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sims.student import RealSample, Student
from theory.distill.flatness import Flat, lambda_max, sharpness
from theory.distill.leaves import Leaves, axpy, norm
from theory.distill.problem import Diverged
from theory.two_layer import second_order

QUALITIES = ("expert_loss", "expert_steps", "expert_distance", "expert_sharpness", "expert_lambda")
PATIENCE = 5  # a flat run that needs more than this many times the steps of its twin is given up


@dataclass(frozen=True, eq=False)
class Point:
    """A snapshot theta* after `step` steps, and its loss on the whole sample."""

    theta: Leaves
    loss: float
    step: int


@dataclass(frozen=True, eq=False)
class ExpertStore:
    """Experts in memory, as theory.distill.trajectory.Experts: runs[expert][epoch]."""

    runs: tuple[tuple[Point, ...], ...]

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.runs)

    @property
    def epochs(self) -> int:
        """E."""
        return len(self.runs[0]) - 1

    def snapshot(self, expert: int, epoch: int) -> Leaves:
        """theta*."""
        return self.runs[expert][epoch].theta


@dataclass(frozen=True, eq=False)
class ExpertTraining:
    """How experts come about: SGD of step size `lr` on batches of `real`, from the student's start, one seed an expert."""

    student: Student
    real: RealSample
    lr: float
    epochs: int
    seeds: tuple[np.random.SeedSequence, ...]

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        count = self.real.x.shape[0]
        return max(1, round(count / (self.real.batch or count)))

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is found in the loss and named
    def plain(self) -> ExpertStore:
        """Plain runs."""
        return ExpertStore(tuple(self._plain(seed) for seed in self.seeds))

    @np.errstate(over="ignore", invalid="ignore")
    def flat(self, how: Flat, twins: ExpertStore) -> ExpertStore:
        """Flat runs, matched to their twins in loss."""
        return ExpertStore(tuple(self._matched(seed, how, twin) for seed, twin in zip(self.seeds, twins.runs, strict=True)))

    def _plain(self, seed: np.random.SeedSequence) -> tuple[Point, ...]:
        path = islice(self._path(seed, None), 0, self.epochs * self.epoch + 1, self.epoch)
        return tuple(self._point(theta, e * self.epoch) for e, theta in enumerate(path))

    def _matched(self, seed: np.random.SeedSequence, how: Flat, twin: tuple[Point, ...]) -> tuple[Point, ...]:
        path = (self._point(theta, step) for step, theta in enumerate(self._path(seed, how)))
        run = [next(path)]
        for wanted in twin[1:]:
            here = next(path)
            while here.loss > wanted.loss:
                here = next(path)
                if here.step > PATIENCE * wanted.step:
                    raise Diverged(
                        f"a flat expert has loss {here.loss:.4g} after {here.step} steps, its plain twin {wanted.loss:.4g} after "
                        f"{wanted.step}: lower the radius (rho={how.rho})"
                    )
            run.append(here)
        return tuple(run)

    def _path(self, seed: np.random.SeedSequence, how: Flat | None) -> Iterator[Leaves]:
        """theta after every step, from the start."""
        rng = np.random.default_rng(seed)
        theta = self.student.init(rng)
        while True:
            yield theta
            rows = self.real.draw(rng)

            def gradient(at: Leaves, rows: np.ndarray | None = rows) -> Leaves:
                return self.real.loss_and_gradient(at, rows)[1]

            theta = axpy(-self.lr, gradient(theta) if how is None else how(gradient, theta), theta)

    def _point(self, theta: Leaves, step: int) -> Point:
        loss = self.real.loss_and_gradient(theta, None)[0]
        if not loss < float("inf"):
            raise Diverged(f"the loss of an expert is {loss} after {step} steps: lower its step size (lr={self.lr})")
        return Point(theta, loss, step)


def quality(store: ExpertStore, real: RealSample, rho: float, epoch: int, rng: np.random.Generator) -> dict[str, float]:
    """QUALITIES: means over experts at an epoch of loss, steps, distance from the start, and S_rho and lambda_max on one real batch."""
    rows = real.draw(rng)
    batch = (real.x, real.y) if rows is None else (real.x[rows, ...], real.y[rows])

    def loss(theta: Leaves) -> float:
        return real.loss_and_gradient(theta, rows)[0]

    def gradient(theta: Leaves) -> Leaves:
        return real.loss_and_gradient(theta, rows)[1]

    found = []
    for run in store.runs:
        at = run[epoch]
        top = lambda_max(lambda u, theta=at.theta: second_order(theta, batch, u)[0], at.theta, rng, tolerance=1e-2, steps=60)
        moved = norm(axpy(-1.0, run[0].theta, at.theta))
        found.append((at.loss, at.step, moved, sharpness(loss, gradient, at.theta, rho), top.value))
    return dict(zip(QUALITIES, np.mean(found, axis=0).tolist(), strict=True))
