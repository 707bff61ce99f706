"""The outer loop: distilled data S improved by meta-gradients, as a generator of one frozen record a step.

    theta_0 fresh, window drawn  ->  unroll  ->  objective at theta_stop  ->  reverse sweep  ->  clip  ->  optimiser step on S
                                             ->  objective of the window's path (gradient matching), no sweep  ->

The meta-gradient is the mean over J starts theta_0, drawn anew every outer step or once for the whole run; they share the window and the
objective's draw (one real batch an outer step). It does no I/O and reads no clock. Step k draws from SeedSequence(seed, spawn_key=(k,))
alone, so a run continued from any stored OuterState repeats the uninterrupted one bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from theory.distill.adjoint import Tape, sweep, unroll
from theory.distill.inner_optim import InnerOptimiser, Slots
from theory.distill.leaves import Leaves, add, axpy, norm, zeros_like
from theory.distill.matching import PathObjective
from theory.distill.outer import NormClip, ema
from theory.distill.problem import Diverged, InnerProblem, Noise, Objective
from theory.distill.truncation import Window, WindowPolicy

_FIXED = (2**32 - 1,)  # spawn key of starts that stay: no outer step counts so far


@dataclass(frozen=True)
class Distiller:
    """The outer algorithm: window policy, inner and outer optimiser, clip, running average of the data, J starts an outer step.

    `fixed_starts` keeps the same J starts in all outer steps of a run.
    """

    windows: WindowPolicy
    inner: InnerOptimiser
    outer: InnerOptimiser
    clip: NormClip | None = None
    ema_decay: float | None = None
    starts: int = 1
    fixed_starts: bool = False

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError(f"the meta-gradient needs at least one start: starts={self.starts}")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1): ema_decay={self.ema_decay}")


@dataclass(frozen=True, eq=False)
class OuterState:
    """Everything a run needs to continue: distilled data, outer slots, clip average, running average of S, step count."""

    s: Leaves
    slots: Slots
    clip_average: float | None
    s_average: Leaves | None
    step: int


@dataclass(frozen=True, eq=False)
class Record:
    """One outer step: the objective before the update, the unclipped meta-gradient norm, the window, the state after."""

    step: int
    value: float
    grad_norm: float
    window: Window
    state: OuterState


@dataclass(frozen=True, eq=False)
class MetaGradient:
    """The objective's value, its gradient in S, and the window it was taken through."""

    value: float
    grad_s: Leaves
    window: Window


def start(distiller: Distiller, s: Leaves) -> OuterState:
    """The state before the first outer step."""
    return OuterState(s, distiller.outer.init(s), None, None if distiller.ema_decay is None else s, 0)


@np.errstate(over="ignore", invalid="ignore")  # `distil` looks at the result and names what diverged
def meta_gradient(
    problem: InnerProblem,
    objective: Objective | PathObjective,
    distiller: Distiller,
    s: Leaves,
    seed: np.random.SeedSequence,
    *,
    window: Window | None = None,
) -> MetaGradient:
    """Fresh unrolls and their reverse sweeps; window, initialisation, step noise and real batch have their own child seeds.

    A `window` given takes the place of the policy's, all other draws unchanged: what a truncation leaves out is then the difference.
    """
    window_rng, init_rng, noise_rng, real_rng = (np.random.default_rng(child) for child in seed.spawn(4))
    if distiller.fixed_starts:
        init_rng = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=_FIXED))
    window = distiller.windows.draw(window_rng) if window is None else window
    xi = objective.draw(real_rng)
    value, grad_s = 0.0, zeros_like(s)
    for _ in range(distiller.starts):
        theta = problem.init(init_rng)
        noises = [problem.draw(noise_rng) for _ in range(window.stop)]
        tape = unroll(problem, distiller.inner, s, theta, noises, window)
        one, part = _value_and_grad(problem, objective, distiller, s, tape, xi)
        value, grad_s = value + one / distiller.starts, axpy(1.0 / distiller.starts, part, grad_s)
    return MetaGradient(value, grad_s, window)


def _value_and_grad(
    problem: InnerProblem, objective: Objective | PathObjective, distiller: Distiller, s: Leaves, tape: Tape, xi: Noise
) -> tuple[float, Leaves]:
    """The objective on one recorded run, and its gradient in S."""
    if isinstance(objective, PathObjective):
        return objective.along(problem, s, tape, xi)
    value, lam, direct = objective.value_and_grad(tape.end.theta, s, xi)
    grad_s = sweep(problem, distiller.inner, s, tape, lam).grad_s
    return value, grad_s if direct is None else add(grad_s, direct)


def distil(
    problem: InnerProblem, objective: Objective | PathObjective, distiller: Distiller, state: OuterState, seed: int, steps: int
) -> Iterator[Record]:
    """Yields one Record a step until state.step reaches `steps`; raises Diverged, naming the step, on NaN or Inf."""
    while state.step < steps:
        try:
            meta = meta_gradient(problem, objective, distiller, state.s, np.random.SeedSequence(seed, spawn_key=(state.step,)))
            size = norm(meta.grad_s)
            if not (abs(meta.value) < float("inf") and size < float("inf")):
                raise Diverged(f"objective {meta.value}, meta-gradient norm {size}")
            g, average = meta.grad_s, state.clip_average
            if distiller.clip is not None:
                g, average = distiller.clip(g, average)
        except Diverged as error:
            raise Diverged(f"outer step {state.step}: {error}") from error
        s, slots = distiller.outer.step(state.s, state.slots, state.step, g)
        smooth = None if state.s_average is None or distiller.ema_decay is None else ema(state.s_average, s, distiller.ema_decay)
        state = OuterState(s, slots, average, smooth, state.step + 1)
        yield Record(state.step - 1, meta.value, size, meta.window, state)
