"""A smooth inner problem on which derivatives are exact to rounding: f(x) = sum_i a_i tanh(w_i.x + b_i) with squared loss.

    theta = (a (L,), W (L, d), b (L,)),  S = (x (M, d), y (M,)),  loss = (1/2m) sum over the seen rows of (f - y)^2

First derivatives are written out; second ones are complex-step derivatives of them, Im g(z + i h c)/h with h = 1e-30, whose only error is
rounding because tanh is analytic. `tangent` pushes a direction through a whole training run the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.distill.inner_optim import InnerOptimiser, Slots
from theory.distill.leaves import Leaves, axpy, zip_map

TINY = 1e-30


@dataclass(frozen=True)
class Smooth:
    """The inner problem; the noise of a step is the tuple of rows it sees."""

    d: int
    width: int
    points: int

    def init(self, rng: np.random.Generator) -> Leaves:
        """A generic start."""
        return rng.standard_normal(self.width), rng.standard_normal((self.width, self.d)), rng.standard_normal(self.width)

    def draw(self, rng: np.random.Generator) -> list[int]:
        """The rows of one step: at least one, without repetition."""
        return sorted(rng.choice(self.points, size=int(rng.integers(1, self.points + 1)), replace=False).tolist())

    def _both(self, theta: Leaves, s: Leaves, xi: Sequence[int]) -> tuple[Leaves, Leaves]:
        """(d loss / d theta, d loss / d S)."""
        a, w, b = theta
        rows = list(xi)
        x, y = s[0][rows], s[1][rows]
        h = np.tanh(x @ w.T + b)
        slope = (1.0 - h * h) * a
        e = (h @ a - y) / len(rows)
        back = e[:, None] * slope
        grad_x, grad_y = np.zeros_like(s[0] + 0 * e[0]), np.zeros_like(s[1] + 0 * e[0])
        grad_x[rows], grad_y[rows] = back @ w, -e
        return (e @ h, back.T @ x, np.sum(back, axis=0)), (grad_x, grad_y)

    def gradient(self, theta: Leaves, s: Leaves, xi: Sequence[int]) -> Leaves:
        """d loss / d theta."""
        return self._both(theta, s, xi)[0]

    def second_order(self, theta: Leaves, s: Leaves, xi: Sequence[int], c: Leaves) -> tuple[Leaves, Leaves]:
        """Second derivatives are symmetric: the joint gradient's derivative along (c, 0) holds both products."""
        parts = self._both(axpy(1j * TINY, c, theta), s, xi)
        return slope_of(parts[0]), slope_of(parts[1])

    def mixed(self, theta: Leaves, s: Leaves, xi: Sequence[int], c: Leaves) -> Leaves:
        """(d gradient / d S)^T c."""
        return self.second_order(theta, s, xi, c)[1]


def slope_of(z: Leaves) -> Leaves:
    """The derivative that a complex step left in z."""
    return zip_map(lambda a: np.imag(a) / TINY, z)


def run(
    problem: Smooth, optimiser: InnerOptimiser, s: Leaves, theta: Leaves, slots: Slots, noises: Sequence[Any], start: int = 0
) -> tuple[Leaves, Slots]:
    """Steps start, start + 1, ... of a training run, one a noise; real or complex."""
    for t, xi in enumerate(noises, start):
        theta, slots = optimiser.step(theta, slots, t, problem.gradient(theta, s, xi))
    return theta, slots


def tangent(
    problem: Smooth,
    optimiser: InnerOptimiser,
    s: Leaves,
    theta: Leaves,
    slots: Slots,
    noises: Sequence[Any],
    along: tuple[Leaves, Leaves],
    start: int = 0,
) -> Leaves:
    """Derivative of the end point along (d theta, d S): forward mode through all steps at once."""
    d_theta, d_s = along
    shifted = axpy(1j * TINY, d_theta, theta)
    return slope_of(run(problem, optimiser, axpy(1j * TINY, d_s, s), shifted, slots, noises, start)[0])
