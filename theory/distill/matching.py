"""Objectives of distillation: what the distilled set is asked to reproduce.

    gradient matching (DC)      min_S  sum over initialisations of  dist(g_S(theta), g_T(theta))
    performance matching (DD)   min_S  real loss at the parameters trained on S

Gradient matching needs no sweep: with c = d dist / d g_S its gradient in S is Mc, the problem's mixed product. With many inner steps
it is summed along a training run on S whose states count as given (Zhao et al., ICLR 2021, algorithm 1): an objective of the path.
Performance matching is an Objective for the sweep. Distances take (g_S, g_T) and return (value, c).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from array_api_compat import array_namespace

from theory.distill.adjoint import Tape
from theory.distill.leaves import Leaves, add, axpy, dot, scale, zeros_like
from theory.distill.problem import InnerProblem, Noise

Distance: TypeAlias = Callable[[Leaves, Leaves], tuple[float, Leaves]]


def squared(g_s: Leaves, g_t: Leaves) -> tuple[float, Leaves]:
    """(1/2) ||g_S - g_T||^2."""
    diff = add(g_s, scale(-1.0, g_t))
    return 0.5 * float(dot(diff, diff)), diff


def inner_product(g_s: Leaves, g_t: Leaves) -> tuple[float, Leaves]:
    """-<g_S, g_T>: the part of `squared` that pulls S towards the task, without the repulsion among its points."""
    return -float(dot(g_s, g_t)), scale(-1.0, g_t)


def cosine(g_s: Leaves, g_t: Leaves) -> tuple[float, Leaves]:
    """Sum over leaves of 1 - cos(row of g_S, row of g_T), rows = slices along the first axis (Zhao et al., ICLR 2021, section 3.2).

    A leaf of one axis is a single row. Rows where either gradient vanishes contribute neither value nor gradient.
    """
    total, cotangent = 0.0, []
    for a, b in zip(g_s, g_t, strict=True):
        xp = array_namespace(a, b)
        u, v = (xp.reshape(z, (1, -1) if z.ndim < 2 else (z.shape[0], -1)) for z in (a, b))
        inner = xp.sum(u * v, axis=1, keepdims=True)
        nu, nv = (xp.sqrt(xp.sum(z * z, axis=1, keepdims=True)) for z in (u, v))
        live = (nu > 0) & (nv > 0)
        safe = xp.where(live, nu * nv, xp.ones_like(nu))
        safe_u = xp.where(live, nu, xp.ones_like(nu))
        total += float(xp.sum(xp.where(live, 1.0 - inner / safe, xp.zeros_like(inner))))
        grad = -v / safe + (inner / safe) * u / safe_u**2
        cotangent.append(xp.reshape(xp.where(live, grad, xp.zeros_like(grad)), a.shape))
    return total, tuple(cotangent)


DISTANCES: dict[str, Distance] = {"squared": squared, "inner_product": inner_product, "cosine": cosine}


def gradient_matching(problem: InnerProblem, distance: Distance, theta: Leaves, s: Leaves, xi: Noise, g_t: Leaves) -> tuple[float, Leaves]:
    """(dist(g_S(theta), g_T), its gradient in S) at one theta, for a real gradient g_T shaped as theta."""
    value, c = distance(problem.gradient(theta, s, xi), g_t)
    return value, problem.mixed(theta, s, xi, c)


@runtime_checkable
class RealLoss(Protocol):
    """The training loss on real data."""

    def draw(self, rng: np.random.Generator) -> Noise:
        """A real batch, as indices and augmentation parameters."""
        ...

    def loss_and_gradient(self, theta: Leaves, xi: Noise) -> tuple[float, Leaves]:
        """(loss, d loss / d theta) on the drawn batch."""
        ...


@dataclass(frozen=True)
class PerformanceMatching:
    """The real loss at the end of the unroll, as an Objective (Wang et al., arXiv:1811.10959)."""

    real: RealLoss

    def draw(self, rng: np.random.Generator) -> Noise:
        return self.real.draw(rng)

    def value_and_grad(self, theta: Leaves, s: Leaves, xi: Noise) -> tuple[float, Leaves, None]:
        value, grad = self.real.loss_and_gradient(theta, xi)
        return value, grad, None


@runtime_checkable
class PathObjective(Protocol):
    """A scalar function of S read along the recorded window of a run, the run's states being constants."""

    def draw(self, rng: np.random.Generator) -> Noise:
        """The noise of one evaluation, such as the indices of a real batch."""
        ...

    def along(self, problem: InnerProblem, s: Leaves, tape: Tape, xi: Noise) -> tuple[float, Leaves]:
        """(value, d value / d S) over the tape's entries."""
        ...


@dataclass(frozen=True)
class GradientMatching:
    """mean over the window's states theta_t of dist(g_S(theta_t), g_T(theta_t)), g_T on one real batch."""

    real: RealLoss
    distance: Distance = squared

    def draw(self, rng: np.random.Generator) -> Noise:
        return self.real.draw(rng)

    def along(self, problem: InnerProblem, s: Leaves, tape: Tape, xi: Noise) -> tuple[float, Leaves]:
        value, grad_s, share = 0.0, zeros_like(s), 1.0 / len(tape.entries)
        for k, entry in enumerate(tape.entries):
            theta = entry.state.theta
            one, c = self.distance(tape.gradient(k), self.real.loss_and_gradient(theta, xi)[1])
            value, grad_s = value + share * one, axpy(share, problem.mixed(theta, s, entry.xi, c), grad_s)
        return value, grad_s
