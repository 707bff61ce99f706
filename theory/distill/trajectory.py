"""Trajectory matching: S is asked to take the student from one snapshot of an expert to a later one of the same expert.

    expert       a training run on real data, its snapshots theta*_0 .. theta*_E one epoch apart
    segment      (theta*_t, theta*_{t+M}), t uniform on {low .. high - 1}, the expert uniform
    student      theta_0 = theta*_t, N inner steps on S
    L(S)         ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2
    lam          dL / d theta_N = 2 (theta_N - theta*_{t+M}) / ||theta*_t - theta*_{t+M}||^2

MTT (Cazenavette et al., arXiv:2203.11932), on the exact reverse sweep with a full window of N steps. FTD (Du et al., arXiv:2211.11004) is
the same objective with flat experts (theory.distill.flatness) and a running average of S. DATM (arXiv:2310.05773) lets `high` grow over the
outer steps. TESLA (arXiv:2211.10586) keeps lam as it is at theta_N throughout the sweep: for plain SGD the sweep with a Hessian of rank 0
(theory.distill.curvature), which for N > 1 is another gradient than that of L.

A student that is trained on S goes on from its own last weights, not from the next snapshot. With A(theta) the update of N steps on S from
theta, theta*_t the snapshot where segment t begins and eps_t how far the student is off it (FTD, section 3.3, equation 8):

    delta_{t+1} = theta*_t + A(theta*_t) - theta*_{t+1}               matching error, ||delta||^2 = L ||theta*_t - theta*_{t+1}||^2
    I_t         = A(theta*_t + eps_t) - A(theta*_t)                   initialisation error, both with the same batches and warps
    eps_{t+1}   = eps_t + I_t + delta_{t+1}                           accumulated error
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from theory.distill.adjoint import unroll
from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import Leaves, add, axpy, dot, scale
from theory.distill.problem import Diverged, InnerProblem, Noise
from theory.distill.truncation import Window


@runtime_checkable
class Experts(Protocol):
    """Stored training runs on real data."""

    @property
    def count(self) -> int:
        """Number of experts."""
        ...

    @property
    def epochs(self) -> int:
        """E: the last snapshot's epoch; snapshots are 0 .. E."""
        ...

    def snapshot(self, expert: int, epoch: int) -> Leaves:
        """theta* of an expert after an epoch, in the problem's namespace and device."""
        ...


@dataclass(frozen=True)
class StartRange:
    """Start epochs {low .. high - 1}; `high` grows from `first` to `high` in `growth` outer steps (0: it is `high` from the start).

    high_k = min(high, first + floor((high - first) k / growth)) at outer step k (DATM, arXiv:2310.05773, released configuration).
    """

    high: int
    low: int = 0
    first: int | None = None
    growth: int = 0

    def __post_init__(self) -> None:
        first = self.high if self.first is None else self.first
        if not 0 <= self.low < first <= self.high:
            raise ValueError(f"start epochs need 0 <= low < first <= high: low={self.low}, first={first}, high={self.high}")
        if self.growth < 0:
            raise ValueError(f"the range grows in >= 0 outer steps: growth={self.growth}")

    def at(self, step: int) -> int:
        """high_k of outer step k = step."""
        if self.first is None or self.growth == 0:
            return self.high
        return min(self.high, self.first + (self.high - self.first) * step // self.growth)


@dataclass(frozen=True, eq=False)
class Segment:
    """What one outer step asks for: from `start` to `target`, and where they stand in the store."""

    start: Leaves
    target: Leaves
    expert: int
    epoch: int


@dataclass(frozen=True, eq=False)
class TrajectoryMatching:
    """The normalised distance to the target snapshot, as a GuidedObjective.

    `length` is M, in epochs of the expert; `step` the outer step that `starts` is read at.
    """

    experts: Experts
    starts: StartRange
    length: int
    step: int = 0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a segment spans at least one epoch of the expert: length={self.length}")
        if self.experts.count < 1:
            raise ValueError("trajectory matching needs at least one expert: 0 given")
        last = self.starts.high - 1 + self.length
        if last > self.experts.epochs:
            raise ValueError(
                f"the last segment would end at epoch {last}, the experts at {self.experts.epochs}: lower the last start epoch "
                f"({self.starts.high - 1}) or the length ({self.length}), or train longer experts"
            )

    def at(self, step: int) -> "TrajectoryMatching":
        """The objective of one outer step."""
        return replace(self, step=step)

    def draw(self, rng: np.random.Generator) -> Segment:
        """An expert and a start epoch."""
        expert = int(rng.integers(self.experts.count))
        epoch = int(rng.integers(self.starts.low, self.starts.at(self.step)))
        return Segment(self.experts.snapshot(expert, epoch), self.experts.snapshot(expert, epoch + self.length), expert, epoch)

    def start(self, xi: Segment) -> Leaves:
        """theta_0."""
        return xi.start

    def value_and_grad(self, theta: Leaves, s: Leaves, xi: Segment) -> tuple[float, Leaves, None]:
        """(L, lam, no direct part)."""
        span = add(xi.start, scale(-1.0, xi.target))
        size = float(dot(span, span))
        if not 0.0 < size < float("inf"):
            raise Diverged(
                f"expert {xi.expert} moves by {size**0.5} between epochs {xi.epoch} and {xi.epoch + self.length}: "
                "its snapshots are one, or not finite"
            )
        gap = add(theta, scale(-1.0, xi.target))
        return float(dot(gap, gap)) / size, scale(2.0 / size, gap), None


@dataclass(frozen=True, eq=False)
class SegmentErrors:
    """One segment of an expert, retraced twice with the same noise: from its snapshot, and from where the student's last segment ended.

    start, target   theta*_t, theta*_{t+1}         before   theta*_t + eps_t, where the student stood
    fresh           theta*_t + A(theta*_t)         own      theta*_t + eps_t + A(theta*_t + eps_t), where it stands now
    noises          the draws of both
    """

    start: Leaves
    target: Leaves
    before: Leaves
    fresh: Leaves
    own: Leaves
    noises: tuple[Noise, ...]

    @property
    def matching(self) -> Leaves:
        """delta_{t+1}."""
        return axpy(-1.0, self.target, self.fresh)

    @property
    def initialisation(self) -> Leaves:
        """I_t, as the difference of the two updates."""
        return add(axpy(-1.0, self.before, self.own), axpy(-1.0, self.fresh, self.start))

    @property
    def accumulated(self) -> Leaves:
        """eps_{t+1}."""
        return axpy(-1.0, self.target, self.own)


def errors_along(
    problem: InnerProblem, optimiser: InnerOptimiser, s: Leaves, snapshots: Iterable[Leaves], steps: int, rng: np.random.Generator
) -> Iterator[SegmentErrors]:
    """The errors of every segment between neighbours of `snapshots`, `steps` = N on S each; the student starts at the first one."""
    before: Leaves | None = None
    for start, target in pairwise(snapshots):
        noises = tuple(problem.draw(rng) for _ in range(steps))
        fresh = trained(problem, optimiser, s, start, noises)
        own = fresh if before is None else trained(problem, optimiser, s, before, noises)
        yield SegmentErrors(start, target, start if before is None else before, fresh, own, noises)
        before = own


def trained(problem: InnerProblem, optimiser: InnerOptimiser, s: Leaves, theta: Leaves, noises: Sequence[Noise]) -> Leaves:
    """theta + A(theta): the parameters after one step a draw."""
    return unroll(problem, optimiser, s, theta, noises, Window(len(noises) - 1, len(noises))).end.theta
