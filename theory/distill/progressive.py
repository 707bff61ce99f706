"""Distillation in phases: one subset of S a phase of training, each made with the earlier ones given.

    S = S_1 u ... u S_P     theta^(0) fresh;  theta^(p) = T inner steps from theta^(p-1) on S_1 u ... u S_p
    phase p                 the outer loop over S_p, objective at theta^(p) (or in a window before it), S_1 .. S_{p-1} constant

A subset a phase, each conditioned on the ones before, is progressive distillation (Chen, Yang, Wang, Mirzasoleiman, arXiv:2310.06982).
Ours: a phase trains on the union so far, its optimiser starts afresh, and theta^(p-1) counts as given. With P = 1 this is the plain
outer loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from theory.distill.adjoint import unroll
from theory.distill.distiller import Distiller, OuterState, Record, distil, start
from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import Leaves, zip_map
from theory.distill.matching import PathObjective
from theory.distill.problem import GuidedObjective, InnerProblem, Noise, Objective
from theory.distill.truncation import Window


def union(subsets: Sequence[Leaves]) -> Leaves:
    """The subsets one below the other, leaf by leaf along the first axis."""
    if len(subsets) == 1:
        return subsets[0]
    return zip_map(lambda *parts: array_namespace(*parts).concat(parts, axis=0), *subsets)


def train(
    problems: Sequence[InnerProblem],
    subsets: Sequence[Leaves],
    optimiser: InnerOptimiser,
    steps: int,
    theta: Leaves,
    rng: np.random.Generator,
) -> Leaves:
    """theta after all phases; problems[p] trains on the union of subsets[: p + 1]. `rng` draws the noise of every step."""
    for p, problem in enumerate(problems[: len(subsets)]):
        noises = [problem.draw(rng) for _ in range(steps)]
        theta = unroll(problem, optimiser, union(subsets[: p + 1]), theta, noises, Window(steps - 1, steps)).end.theta
    return theta


@dataclass(frozen=True, eq=False)
class Phase:
    """Phase p = len(past) as an inner problem of S_p alone: its fresh parameters have been trained on the past."""

    problems: tuple[InnerProblem, ...]
    past: tuple[Leaves, ...]
    optimiser: InnerOptimiser
    steps: int

    def __post_init__(self) -> None:
        if len(self.problems) <= len(self.past):
            raise ValueError(f"each phase needs a problem: {len(self.problems)} problems, {len(self.past)} earlier subsets")
        if self.steps < 1:
            raise ValueError(f"a phase needs at least one inner step: steps={self.steps}")

    @property
    def now(self) -> InnerProblem:
        """The problem of this phase, which sees the union."""
        return self.problems[len(self.past)]

    def init(self, rng: np.random.Generator) -> Leaves:
        """Fresh parameters after the earlier phases."""
        return train(self.problems, self.past, self.optimiser, self.steps, self.now.init(rng), rng)

    def draw(self, rng: np.random.Generator) -> Noise:
        """The noise of one step of this phase."""
        return self.now.draw(rng)

    def gradient(self, theta: Leaves, s: Leaves, xi: Noise) -> Leaves:
        """The gradient on the union."""
        return self.now.gradient(theta, union((*self.past, s)), xi)

    def second_order(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> tuple[Leaves, Leaves]:
        """The products on the union; of Mc the rows of s."""
        h_c, m_c = self.now.second_order(theta, union((*self.past, s)), xi, c)
        return h_c, self._own(s, m_c)

    def mixed(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> Leaves:
        """Mc, the rows of s."""
        return self._own(s, self.now.mixed(theta, union((*self.past, s)), xi, c))

    def _own(self, s: Leaves, m_c: Leaves) -> Leaves:
        return zip_map(lambda own, part: part[part.shape[0] - own.shape[0] :, ...], s, m_c)


@dataclass(frozen=True, eq=False)
class PhasedState:
    """Everything a phased run needs to continue: the finished subsets and the outer state of the present one."""

    past: tuple[Leaves, ...]
    outer: OuterState

    @property
    def subsets(self) -> tuple[Leaves, ...]:
        """All subsets so far."""
        return (*self.past, self.outer.s)


@dataclass(frozen=True, eq=False)
class PhasedRecord:
    """One outer step: its record, which counts from the start of its phase, and the state after it."""

    phase: int
    record: Record
    state: PhasedState


def distil_in_phases(
    problems: tuple[InnerProblem, ...],
    objective: Objective | PathObjective,
    distiller: Distiller,
    initial: Sequence[Leaves],
    seed: int,
    steps: int,
    state: PhasedState | None = None,
) -> Iterator[PhasedRecord]:
    """`steps` outer steps a phase from the initial subsets, one problem and one subset a phase; goes on from `state` where one is given.

    Phase p draws from its own child of the seed, so a continued run repeats the uninterrupted one bit for bit.
    """
    if len(problems) != len(initial) or not initial:
        raise ValueError(f"need one problem and one initial subset a phase: {len(problems)} problems, {len(initial)} subsets")
    if len(initial) > 1 and (distiller.learn_step or isinstance(objective, GuidedObjective)):
        raise ValueError(f"phases start from one another and share the step size: {len(initial)} phases with a learned one or given starts")
    seeds = np.random.SeedSequence(seed).generate_state(len(initial), np.uint64)
    state = PhasedState((), start(distiller, initial[0])) if state is None else state
    for p in range(len(state.past), len(initial)):
        phase = Phase(problems, state.past, distiller.inner, distiller.windows.horizon)
        for record in distil(phase, objective, distiller, state.outer, int(seeds[p]), steps):
            state = PhasedState(state.past, record.state)
            yield PhasedRecord(p, record, state)
        if p + 1 < len(initial):
            state = PhasedState(state.subsets, start(distiller, initial[p + 1]))
