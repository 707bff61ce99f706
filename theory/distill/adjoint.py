"""The truncated reverse sweep: d objective / d S through a window of a training run.

Forward: theta_{t+1}, slots_{t+1} = Phi(theta_t, slots_t, g_t), g_t = g(theta_t, S; xi_t). With cotangents lam of theta and mu of
the slots, each step backwards is

    lam, mu, c, d_lr <- adjoint of Phi
    Hc, Mc           <- second-order products of the problem at (theta_t, S; xi_t)
    lam += Hc ;  grad_S += Mc ;  grad_lr += d_lr

What is stored is the path itself, (theta, slots, g) a step, and no graph; so memory beyond that is one step's product. The slots'
cotangents start from zero at the window's end and are dropped at its start, where the slots count as given. Recomputing each step from
its stored state goes back to Maclaurin et al., ICML 2015; the sweep itself is derived here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.distill.inner_optim import InnerOptimiser, Slots
from theory.distill.leaves import Leaves, add, norm, zeros_like
from theory.distill.problem import Diverged, InnerProblem, Noise
from theory.distill.truncation import Window


@dataclass(frozen=True, eq=False)
class State:
    """The inner state before step t: parameters, optimiser slots, global step count."""

    theta: Leaves
    slots: Slots
    t: int


@dataclass(frozen=True, eq=False)
class TapeEntry:
    """One differentiated step: the state before it, its gradient, its noise."""

    state: State
    g: Leaves
    xi: Noise


@dataclass(frozen=True, eq=False)
class Tape:
    """The recorded window, and the state after its last step."""

    entries: tuple[TapeEntry, ...]
    end: State
    gradient_norms: tuple[float, ...]
    """||g_t|| for t = 0 .. stop - 1 where asked for, else empty."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Result of a reverse sweep: cotangents of S, of log(lr), and of the state at the window's start."""

    grad_s: Leaves
    grad_log_lr: Any
    lam: Leaves
    slots: Slots


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
) -> Tape:
    """Runs window.stop steps from theta and records those of the window.

    `noises` holds one draw a step (at least window.stop). `profile` also keeps ||g_t|| of every step.
    """
    if len(noises) < window.stop:
        raise ValueError(f"need one noise a step: {len(noises)} given, window stops at {window.stop}")
    state = State(theta, optimiser.init(theta), 0)
    entries: list[TapeEntry] = []
    norms: list[float] = []
    for t in range(window.stop):
        g = problem.gradient(state.theta, s, noises[t])
        if profile:
            norms.append(norm(g))
        if t >= window.start:
            entries.append(TapeEntry(state, g, noises[t]))
        theta_next, slots_next = optimiser.step(state.theta, state.slots, t, g)
        state = State(theta_next, slots_next, t + 1)
    size = norm(state.theta)
    if not size < float("inf"):
        raise Diverged(f"inner run diverged: ||theta|| = {size} after {window.stop} steps; lower the inner step size (lr={optimiser.lr})")
    return Tape(tuple(entries), state, tuple(norms))


def sweep(problem: InnerProblem, optimiser: InnerOptimiser, s: Leaves, tape: Tape, lam: Leaves) -> Sweep:
    """Transposes the recorded window: from lam = d objective / d theta_stop to d objective / d S."""
    grad_s = zeros_like(s)
    mu = tuple(zeros_like(slot) for slot in tape.end.slots)
    grad_log_lr: Any = 0.0
    for entry in reversed(tape.entries):
        state = entry.state
        lam, mu, c, d_lr = optimiser.adjoint(state.theta, state.slots, state.t, entry.g, lam, mu)
        h_c, m_c = problem.second_order(state.theta, s, entry.xi, c)
        lam, grad_s, grad_log_lr = add(lam, h_c), add(grad_s, m_c), grad_log_lr + optimiser.lr * d_lr
    return Sweep(grad_s, grad_log_lr, lam, mu)
