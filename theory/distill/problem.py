"""The seam: what an algorithm may ask of a training run, and nothing else.

One run on distilled data S is theta_{t+1} = Phi(theta_t, S; xi_t), where Phi is an inner optimiser fed with the gradient
g_t = d loss(theta_t, S; xi_t) / d theta. xi_t is the step's noise (batch indices, augmentation parameters) as data, so that
a reverse sweep replays the forward run exactly.
"""

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from theory.distill.leaves import Leaves

Noise: TypeAlias = Any
"""Whatever a problem draws for one step; opaque to the algorithms, drawn from a numpy Generator, replayed as it is."""


@runtime_checkable
class InnerProblem(Protocol):
    """What algorithms see of training on S: where it starts, its gradient, and the transpose of that gradient's derivatives."""

    def init(self, rng: np.random.Generator) -> Leaves:
        """A fresh theta_0."""
        ...

    def draw(self, rng: np.random.Generator) -> Noise:
        """The noise xi of one step."""
        ...

    def gradient(self, theta: Leaves, s: Leaves, xi: Noise) -> Leaves:
        """g = d loss / d theta at (theta, s; xi), shaped as theta."""
        ...

    def second_order(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> tuple[Leaves, Leaves]:
        """(Hc, Mc) = ((d g / d theta)^T c, (d g / d s)^T c), both at (theta, s; xi)."""
        ...

    def mixed(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> Leaves:
        """Mc = (d g / d s)^T c alone."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A scalar function of the trained parameters (and of S, where it depends on S directly)."""

    def draw(self, rng: np.random.Generator) -> Noise:
        """The noise of one evaluation, such as the indices of a real batch."""
        ...

    def value_and_grad(self, theta: Leaves, s: Leaves, xi: Noise) -> tuple[float, Leaves, Leaves | None]:
        """(value, d value / d theta, direct d value / d s or None where the value does not see S)."""
        ...


@runtime_checkable
class GuidedObjective(Objective, Protocol):
    """An objective that also says where the student starts, and that may move with the outer step."""

    def at(self, step: int) -> "GuidedObjective":
        """The objective of outer step `step`."""
        ...

    def start(self, xi: Noise) -> Leaves:
        """theta_0 for the drawn evaluation, in place of the problem's fresh parameters."""
        ...


class Diverged(FloatingPointError):
    """A run met NaN or Inf. The message names the quantity and the step; nothing is replaced by a number."""
