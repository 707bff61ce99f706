"""The outer loop: distilled data S improved by meta-gradients, as a generator of one frozen record a step.

    theta_0 fresh, window drawn  ->  unroll  ->  objective at theta_stop  ->  reverse sweep  ->  clip  ->  optimiser step on S
                                             ->  objective of the window's path (gradient matching), no sweep  ->

The meta-gradient is the mean over J starts theta_0, drawn anew every outer step or once for the whole run; they share the window and the
objective's draw (one real batch an outer step). It does no I/O and reads no clock. Step k draws from SeedSequence(seed, spawn_key=(k,))
alone, so a run continued from any stored OuterState repeats the uninterrupted one bit for bit. All of it is drawn before the J runs are
handed to `carry_out`, which may share them among processes; their gradients are added in the order of the starts.

A GuidedObjective (trajectory matching) gives theta_0 itself, from its draw, and is asked for its form at every outer step. A learned inner
step size is S's last leaf (theory.distill.step_size); problem and objective see the leaves before it.

With an AdaptiveWindow the run that is differentiated also gives the profile of its gradient norms, and the state carries profile and stage.
The stage moves by accuracies that the caller measures (`observed`), between two calls of `distil`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from theory.distill.adaptive import AdaptiveWindow, PlacedWindow, Profile, latest
from theory.distill.adjoint import Cost, Tape, cut, sweep, unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.inner_optim import InnerOptimiser, Slots
from theory.distill.leaves import Leaves, add, axpy, norm, zeros_like
from theory.distill.matching import PathObjective
from theory.distill.outer import NormClip, OuterOptimiser, ema, on_sphere
from theory.distill.problem import Diverged, GuidedObjective, InnerProblem, Noise, Objective
from theory.distill.stages import Stage, StageClock, StageState
from theory.distill.step_size import split
from theory.distill.truncation import Window, WindowPolicy

_FIXED = (2**32 - 1,)  # spawn key of starts that stay: no outer step counts so far


@dataclass(frozen=True)
class Distiller:
    """The outer algorithm: window policy, inner and outer optimiser, clip, running average of the data, J starts an outer step.

    `fixed_starts` keeps the same J starts in all outer steps of a run. `clock` moves the stages of an adaptive window (None: they stay);
    `hessian` gives Hc in the sweep (None: exact); `sphere` is the norm that each row of S's first leaf is brought back to. `learn_step`:
    the inner step size is exp of S's last leaf, not inner.lr. Steps whose objective exceeds `skip_above` leave S and all averages as they
    are (DATM, arXiv:2310.05773, released code).
    """

    windows: WindowPolicy | AdaptiveWindow
    inner: InnerOptimiser
    outer: OuterOptimiser
    clip: NormClip | None = None
    ema_decay: float | None = None
    starts: int = 1
    fixed_starts: bool = False
    clock: StageClock | None = None
    hessian: LowRankHessian | None = None
    sphere: float | None = None
    learn_step: bool = False
    skip_above: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.windows, AdaptiveWindow) and self.windows.profile == "current" and self.starts > 1:
            raise ValueError(f"starts share one window, which the profile of one run cannot choose: starts={self.starts}, use 'previous'")
        if self.sphere is not None and not 0.0 < self.sphere < float("inf"):
            raise ValueError(f"the norm of projected rows must be positive and finite: sphere={self.sphere}")
        if self.starts < 1:
            raise ValueError(f"the meta-gradient needs at least one start: starts={self.starts}")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1): ema_decay={self.ema_decay}")
        if self.skip_above is not None and not self.skip_above > 0.0:
            raise ValueError(f"steps are skipped above a positive objective: skip_above={self.skip_above}")

    def training(self, s: Leaves) -> tuple[Leaves, InnerOptimiser]:
        """What a network is trained on, and by: the leaves that the problem sees, and the inner optimiser at the step size of S."""
        return split(s, self.inner) if self.learn_step else (s, self.inner)


@dataclass(frozen=True, eq=False)
class OuterState:
    """Everything a run needs to continue: distilled data, outer slots, clip average, running average of S, step count, and for an
    adaptive window the last gradient norm seen at each inner step (None before the first step) and the stage.
    """

    s: Leaves
    slots: Slots
    clip_average: float | None
    s_average: Leaves | None
    step: int
    profile: Profile | None = None
    stage: StageState = field(default_factory=StageState)


@dataclass(frozen=True, eq=False)
class Record:
    """One outer step: the objective before the update, the unclipped meta-gradient norm, the window, the state after, the effective
    number of positions that the window was drawn from (adaptive windows only), the cost, and whether S was left as it was.
    """

    step: int
    value: float
    grad_norm: float
    window: Window
    state: OuterState
    effective_positions: float | None
    cost: Cost
    skipped: bool


@dataclass(frozen=True, eq=False)
class MetaGradient:
    """The objective's value, its gradient in S, the window it was taken through and how it was chosen, the cost: of one start, or the mean
    over all (costs add).
    """

    value: float
    grad_s: Leaves
    window: Window
    effective_positions: float | None
    profile: Profile | None
    cost: Cost


Work: TypeAlias = Callable[[], MetaGradient]
CarryOut: TypeAlias = Callable[[Iterable[Work]], Iterable[MetaGradient]]


def in_turn(works: Iterable[Work]) -> Iterator[MetaGradient]:
    """One piece of work after another."""
    return (work() for work in works)


def start(distiller: Distiller, s: Leaves, stage: Stage = Stage.EARLY) -> OuterState:
    """The state before the first outer step."""
    s = s if distiller.sphere is None else on_sphere(s, distiller.sphere)
    return OuterState(s, distiller.outer.init(s), None, None if distiller.ema_decay is None else s, 0, None, StageState(stage))


def observed(distiller: Distiller, state: OuterState, accuracy: float) -> OuterState:
    """The state after one more measured accuracy (per cent) of training on state.s, by which the clock may move the stage."""
    return state if distiller.clock is None else replace(state, stage=distiller.clock.advance(state.stage, accuracy))


@np.errstate(over="ignore", invalid="ignore")  # `distil` looks at the result and names what diverged
def meta_gradient(
    problem: InnerProblem,
    objective: Objective | PathObjective,
    distiller: Distiller,
    s: Leaves,
    seed: np.random.SeedSequence,
    *,
    window: Window | None = None,
    stage: Stage = Stage.EARLY,
    profile: Profile | None = None,
    carry_out: CarryOut = in_turn,
) -> MetaGradient:
    """Fresh unrolls and their reverse sweeps; window, initialisation, step noise and real batch have their own child seeds, those of a
    fresh spawn(6), and `seed` is left as it is; each start after the first has step noise of its own.

    A `window` given takes the place of the policy's, all other draws unchanged: what a truncation leaves out is then the difference.
    `stage` and `profile`, the norms known so far, choose an adaptive window. `carry_out` gives the results of the starts in their order.
    """
    window_rng, init_rng, noise_rng, real_rng, sketch_rng, after_rng = (np.random.default_rng(_child(seed, k)) for k in range(6))
    if distiller.fixed_starts:
        init_rng = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=_FIXED))
    policy = distiller.windows
    adaptive = policy if isinstance(policy, AdaptiveWindow) else None
    law: WindowPolicy | None = None  # none before the run: the run itself chooses
    if not isinstance(policy, AdaptiveWindow):
        law = policy
    elif policy.profile == "previous":
        law = policy.at(stage, profile)
    if window is None and law is not None:
        window = law.draw(window_rng)
    recorded = Window(0, policy.horizon) if window is None or law is None else window
    steps = policy.horizon if adaptive is not None and profile is None else recorded.stop
    xi = objective.draw(real_rng)

    def one(theta: Leaves, noises: list[Noise], rng: np.random.Generator) -> MetaGradient:
        data, inner = distiller.training(s)
        tape = unroll(problem, inner, data, theta, noises, recorded, profile=adaptive is not None, steps=steps)
        norms, placed, chosen = tape.gradient_norms, law, window
        if adaptive is not None and placed is None:
            placed = adaptive.at(stage, norms)
            chosen = placed.draw(window_rng) if chosen is None else chosen
            tape = cut(tape, chosen)
        assert chosen is not None
        value, grad_s, asked = value_and_gradient(problem, objective, distiller, s, tape, xi, rng)
        effective = placed.effective_positions if isinstance(placed, PlacedWindow) else None
        return MetaGradient(value, grad_s, chosen, effective, None if adaptive is None else norms, tape.cost + asked)

    def works() -> Iterator[Work]:
        each = ((rng, *rng.spawn(distiller.starts - 1)) for rng in (noise_rng, after_rng, sketch_rng))
        for noise, after, rng in zip(*each, strict=True):
            theta = objective.start(xi) if isinstance(objective, GuidedObjective) else problem.init(init_rng)
            yield partial(one, theta, [problem.draw(noise if t < recorded.stop else after) for t in range(steps)], rng)

    return _mean(list(carry_out(works())), s, profile)


def _child(seed: np.random.SeedSequence, k: int) -> np.random.SeedSequence:
    """The k-th child of a fresh spawn; the parent keeps no count of it."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, k), pool_size=seed.pool_size)


def _mean(parts: list[MetaGradient], s: Leaves, profile: Profile | None) -> MetaGradient:
    """The mean over starts, added in their order."""
    value, grad_s, cost, share = 0.0, zeros_like(s), Cost(), 1.0 / len(parts)
    for part in parts:
        value, grad_s, cost = value + part.value / len(parts), axpy(share, part.grad_s, grad_s), cost + part.cost
    norms = [part.profile for part in parts if part.profile is not None]
    return replace(parts[0], value=value, grad_s=grad_s, profile=latest(norms, profile) if norms else None, cost=cost)


def value_and_gradient(
    problem: InnerProblem,
    objective: Objective | PathObjective,
    distiller: Distiller,
    s: Leaves,
    tape: Tape,
    xi: Noise,
    rng: np.random.Generator,
) -> tuple[float, Leaves, Cost]:
    """The objective on one recorded run, its gradient in S, and what that asked of the problem; `rng` draws a low-rank Hessian's tests."""
    if isinstance(objective, PathObjective):
        if distiller.learn_step:
            raise ValueError("an objective of the path has no gradient in the inner step size: learn_step=True")
        return *objective.along(problem, s, tape, xi), Cost(mixed=len(tape.entries))
    data, inner = distiller.training(s)
    value, lam, direct = objective.value_and_grad(tape.end.theta, data, xi)
    swept = sweep(problem, inner, data, tape, lam, distiller.hessian, rng)
    grad = swept.grad_s if direct is None else add(swept.grad_s, direct)
    return value, (*grad, swept.grad_log_lr) if distiller.learn_step else grad, swept.cost


def asked_at(objective: Objective | PathObjective, step: int) -> Objective | PathObjective:
    """The objective in its form at an outer step."""
    return objective.at(step) if isinstance(objective, GuidedObjective) else objective


def distil(
    problem: InnerProblem,
    objective: Objective | PathObjective,
    distiller: Distiller,
    state: OuterState,
    seed: int,
    steps: int,
    carry_out: CarryOut = in_turn,
) -> Iterator[Record]:
    """Yields one Record a step until state.step reaches `steps`; raises Diverged, naming the step, on NaN or Inf."""
    while state.step < steps:
        asked = asked_at(objective, state.step)
        try:
            child = np.random.SeedSequence(seed, spawn_key=(state.step,))
            known = {"stage": state.stage.stage, "profile": state.profile}
            meta = meta_gradient(problem, asked, distiller, state.s, child, **known, carry_out=carry_out)
            size = norm(meta.grad_s)
            if not (abs(meta.value) < float("inf") and size < float("inf")):
                raise Diverged(f"objective {meta.value}, meta-gradient norm {size}")
            skipped = distiller.skip_above is not None and meta.value > distiller.skip_above
            moved = state if skipped else _moved(distiller, state, meta.grad_s)
        except Diverged as error:
            raise Diverged(f"outer step {state.step}: {error}") from error
        state = replace(moved, step=state.step + 1, profile=meta.profile)
        yield Record(state.step - 1, meta.value, size, meta.window, state, meta.effective_positions, meta.cost, skipped)


@np.errstate(over="ignore", invalid="ignore")
def _moved(distiller: Distiller, state: OuterState, g: Leaves) -> OuterState:
    """The state with S, its slots and all averages one update on; Diverged where S is then not finite."""
    average = state.clip_average
    if distiller.clip is not None:
        g, average = distiller.clip(g, average)
    s, slots = distiller.outer.step(state.s, state.slots, state.step, g)
    length = norm(s)  # before the projection, which would bring a row that overflowed to 0
    if not length < float("inf"):
        raise Diverged(f"outer update diverged: ||S|| = {length} after it; lower the outer step size")
    s = s if distiller.sphere is None else on_sphere(s, distiller.sphere)
    smooth = None if state.s_average is None or distiller.ema_decay is None else ema(state.s_average, s, distiller.ema_decay)
    return replace(state, s=s, slots=slots, clip_average=average, s_average=smooth)
