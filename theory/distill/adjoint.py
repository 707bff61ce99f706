"""The truncated reverse sweep: d objective / d S through a window of a training run.

Forward: theta_{t+1}, slots_{t+1} = Phi(theta_t, slots_t, g_t), g_t = g(theta_t, S; xi_t). With cotangents lam of theta and mu of
the slots, each step backwards is

    lam, mu, c, d_lr <- adjoint of Phi
    Hc, Mc           <- second-order products of the problem at (theta_t, S; xi_t)
    lam += Hc ;  grad_S += Mc ;  grad_lr += d_lr

What is stored is the path itself, (theta, slots) a step and g where the slots do not tell it, and no graph; so memory beyond that is one
step's product. The slots' cotangents start from zero at the window's end and are dropped at its start, where the slots count as given.
Recomputing each step from its stored state goes back to Maclaurin et al., ICML 2015; the sweep itself is derived here. Where asked, Hc
comes from a low-rank Hessian.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from theory.distill.curvature import LowRankHessian, Sketch
from theory.distill.inner_optim import InnerOptimiser, Slots
from theory.distill.leaves import Leaves, add, dot, norm, size, zeros_like
from theory.distill.problem import Diverged, InnerProblem, Noise
from theory.distill.truncation import Window


@dataclass(frozen=True)
class Cost:
    """What a meta-gradient asked of the problem, and what it kept; costs of several runs add."""

    gradients: int = 0
    """Inner gradients: plain steps, recorded or not."""
    products: int = 0
    """Joint products (Hc, Mc)."""
    mixed: int = 0
    """Products Mc alone, where a low-rank Hessian gives Hc."""
    hessian_products: int = 0
    """Hessian-vector products spent on low-rank Hessians."""
    stored_floats: int = 0
    """Floats of recorded states, and of gradients where they are stored, at most at a time in a run."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.gradients + other.gradients,
            self.products + other.products,
            self.mixed + other.mixed,
            self.hessian_products + other.hessian_products,
            max(self.stored_floats, other.stored_floats),
        )


@dataclass(frozen=True, eq=False)
class State:
    """The inner state before step t: parameters, optimiser slots, global step count."""

    theta: Leaves
    slots: Slots
    t: int


@dataclass(frozen=True, eq=False)
class TapeEntry:
    """One differentiated step: the state before it, its noise, and its gradient where the optimiser's slots do not tell it."""

    state: State
    xi: Noise
    g: Leaves | None


@dataclass(frozen=True, eq=False)
class Tape:
    """The recorded window, and the state after its last step."""

    optimiser: InnerOptimiser
    entries: tuple[TapeEntry, ...]
    end: State
    gradient_norms: tuple[float, ...]
    """||g_t|| of every step that was run where asked for, else empty."""
    cost: Cost = Cost()

    def gradient(self, k: int) -> Leaves:
        """g of the k-th recorded step, stored or recovered from the states around it."""
        entry, last = self.entries[k], k + 1 == len(self.entries)
        after = self.end if last else self.entries[k + 1].state
        g = self.optimiser.recovered(entry.state.theta, entry.state.slots, after.slots) if entry.g is None else entry.g
        assert g is not None  # recorded without g only by an optimiser that recovers it
        return g


@dataclass(frozen=True, eq=False)
class Sweep:
    """Result of a reverse sweep: cotangents of S, of log(lr), and of the state at the window's start."""

    grad_s: Leaves
    grad_log_lr: Any
    lam: Leaves
    slots: Slots
    cost: Cost


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found at the end and named
def unroll(
    problem: InnerProblem,
    optimiser: InnerOptimiser,
    s: Leaves,
    theta: Leaves,
    noises: Sequence[Noise],
    window: Window,
    *,
    profile: bool = False,
    steps: int | None = None,
) -> Tape:
    """Runs window.stop steps from theta and records those of the window.

    `noises` holds one draw a step. `profile` also keeps ||g_t|| of every step. `steps` > window.stop runs on to that step for the
    norms alone; the end of the tape stays the state at window.stop.
    """
    steps = window.stop if steps is None else max(steps, window.stop)
    if len(noises) < steps:
        raise ValueError(f"need one noise a step: {len(noises)} given, the run stops at {steps}")
    state = end = State(theta, optimiser.init(theta), 0)
    stores = optimiser.recovered(theta, state.slots, state.slots) is None
    entries: list[TapeEntry] = []
    squares: list[Any] = []
    for t in range(steps):
        g = problem.gradient(state.theta, s, noises[t])
        if profile:
            squares.append(dot(g, g))  # read at the end: on a device the run need not wait for it
        if window.start <= t < window.stop:
            entries.append(TapeEntry(state, noises[t], g if stores else None))
        theta_next, slots_next = optimiser.step(state.theta, state.slots, t, g)
        state = State(theta_next, slots_next, t + 1)
        if t + 1 == window.stop:
            end = state
    length = norm(state.theta)
    if not length < float("inf"):
        raise Diverged(f"inner run diverged: {_broken(problem, optimiser, s, theta, noises[:steps])}; lower the inner step size")
    floats = size(theta) * (1 + len(end.slots) + stores) * len(entries)
    return Tape(optimiser, tuple(entries), end, tuple(float(q) ** 0.5 for q in squares), Cost(gradients=steps, stored_floats=floats))


def _broken(problem: InnerProblem, optimiser: InnerOptimiser, s: Leaves, theta: Leaves, noises: Sequence[Noise]) -> str:
    """The first step of a run whose result is not finite, found by running it once more."""
    slots, done, g = optimiser.init(theta), 0, zeros_like(theta)
    while norm(theta) < float("inf") and done < len(noises):
        g = problem.gradient(theta, s, noises[done])
        theta, slots = optimiser.step(theta, slots, done, g)
        done += 1
    return f"||theta|| = {norm(theta)} after {done} of {len(noises)} steps, the last gradient's norm {norm(g)}, lr={optimiser.lr}"


def cut(tape: Tape, window: Window) -> Tape:
    """The part of a tape that starts at step 0 which a shorter run would have recorded: `window`, chosen once the run is known."""
    end = tape.entries[window.stop].state if window.stop < len(tape.entries) else tape.end
    return replace(tape, entries=tape.entries[window.start : window.stop], end=end)


def sweep(
    problem: InnerProblem,
    optimiser: InnerOptimiser,
    s: Leaves,
    tape: Tape,
    lam: Leaves,
    hessian: LowRankHessian | None = None,
    rng: np.random.Generator | None = None,
) -> Sweep:
    """Transposes the recorded window: from lam = d objective / d theta_stop to d objective / d S.

    With `hessian`, Hc comes from its sketches, whose test matrices `rng` draws; exact otherwise.
    """
    if hessian is not None and rng is None:
        raise ValueError("a low-rank Hessian draws test matrices: give the sweep a generator, rng=None")
    grad_s = zeros_like(s)
    mu = tuple(zeros_like(slot) for slot in tape.end.slots)
    grad_log_lr: Any = 0.0
    sketch, cost = None, Cost()
    for k in reversed(range(len(tape.entries))):
        entry, state = tape.entries[k], tape.entries[k].state
        lam, mu, c, d_lr = optimiser.adjoint(state.theta, state.slots, state.t, tape.gradient(k), lam, mu)
        if hessian is None or rng is None:
            h_c, m_c = problem.second_order(state.theta, s, entry.xi, c)
            cost += Cost(products=1)
        else:
            sketch, spent = _sketched(problem, s, entry, hessian, sketch, rng)
            h_c, m_c = sketch.apply(c), problem.mixed(state.theta, s, entry.xi, c)
            cost += Cost(mixed=1, hessian_products=spent)
        lam, grad_s, grad_log_lr = add(lam, h_c), add(grad_s, m_c), grad_log_lr + optimiser.lr * d_lr
    return Sweep(grad_s, grad_log_lr, lam, mu, cost)


def _sketched(
    problem: InnerProblem, s: Leaves, entry: TapeEntry, hessian: LowRankHessian, sketch: Sketch | None, rng: np.random.Generator
) -> tuple[Sketch, int]:
    """The sketch that serves this step, and the Hessian-vector products it costs now."""
    theta, t = entry.state.theta, entry.state.t
    if sketch is not None and not hessian.stale(sketch, t, theta):
        return sketch, 0
    fresh = hessian.sketch(lambda u: problem.second_order(theta, s, entry.xi, u)[0], t, theta, rng)
    return fresh, fresh.products
