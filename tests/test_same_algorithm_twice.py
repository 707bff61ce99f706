"""The same algorithm, twice: the sweep of `theory.distill` through the NumPy student and through a torch copy of it.

The copy takes its gradient and its products from autograd; its only formula is the loss. Both meta-gradients are held against one
autograd graph through the recorded window (float64, relative error <= 1e-10), for SGD, momentum and Adam, full, fixed and random
windows, in the inputs and in the learned labels of S, and in the log of the step size.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.oracles import OneGraph, Tensors, detached, one_graph, relative_error, to_numpy, to_torch, two_layer_loss
from tests.strategies import OPTIMISERS, generators, seeds, windows
from theory.distill.adjoint import Sweep, sweep, unroll
from theory.distill.distiller import Distiller, distil, start
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.matching import PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window

TOLERANCE = 1e-10


def batch_loss(theta: Tensors, s: Tensors, xi: Any) -> torch.Tensor:
    rows = slice(None) if xi is None else torch.from_numpy(xi)
    return two_layer_loss(theta, (s[0][rows], s[1][rows]))


@dataclass(frozen=True, eq=False)
class TorchCopy:
    """An InnerProblem whose derivatives are all autograd's; draws are those of the student it copies."""

    twin: Student

    def init(self, rng: np.random.Generator) -> Tensors:
        return to_torch(self.twin.init(rng))

    def draw(self, rng: np.random.Generator) -> Any:
        return self.twin.draw(rng)

    def gradient(self, theta: Tensors, s: Tensors, xi: Any) -> Tensors:
        theta = detached(theta)
        return torch.autograd.grad(batch_loss(theta, s, xi), theta)

    def second_order(self, theta: Tensors, s: Tensors, xi: Any, c: Tensors) -> tuple[Tensors, Tensors]:
        theta, s = detached(theta), detached(s)
        g = torch.autograd.grad(batch_loss(theta, s, xi), theta, create_graph=True)
        grads = torch.autograd.grad(g, theta + s, c, allow_unused=True, materialize_grads=True)
        return grads[: len(theta)], grads[len(theta) :]

    def mixed(self, theta: Tensors, s: Tensors, xi: Any, c: Tensors) -> Tensors:
        return self.second_order(theta, s, xi, c)[1]


@dataclass(frozen=True, eq=False)
class TorchReal:
    """The real loss by autograd."""

    twin: RealSample

    def draw(self, rng: np.random.Generator) -> Any:
        return self.twin.draw(rng)

    def loss_and_gradient(self, theta: Tensors, xi: Any) -> tuple[float, Tensors]:
        theta = detached(theta)
        loss = batch_loss(theta, to_torch((self.twin.x, self.twin.y)), xi)
        return float(loss.detach()), torch.autograd.grad(loss, theta)


@dataclass(frozen=True, eq=False)
class Scene:
    """One student, its distilled set, its real sample, and where a run starts."""

    student: Student
    real: RealSample
    s: tuple[np.ndarray, ...]
    theta: tuple[np.ndarray, ...]


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Small random ones; some with sub-batches, some with a unit that is dead on every point (Adam's second moment stays 0)."""
    d, half, m, n = (draw(st.integers(1, high)) for high in (4, 3, 5, 6))
    batch = draw(st.one_of(st.none(), st.integers(1, m)))
    rng = draw(generators)
    student = Student(d, 2 * half, draw(st.sampled_from(["symmetric", "gaussian"])), points=m, batch=batch)
    a, w, b = student.init(rng)
    b = b + 0.3 * rng.standard_normal(b.shape)
    if draw(st.booleans()):
        b[-1] = -100.0
    s = (rng.standard_normal((m, d)), rng.standard_normal(m))
    real = RealSample(rng.standard_normal((n, d)), rng.standard_normal(n), batch=draw(st.one_of(st.none(), st.integers(1, n))))
    return Scene(student, real, s, (a, w, b))


def kink_distance(scene: Scene, states: list[tuple[np.ndarray, ...]], xi: Any) -> float:
    """The smallest |w_i.x + b_i| met by the recorded states on S and by the last one on the real batch."""
    rows = slice(None) if xi is None else xi
    met = [*((p, scene.s[0]) for p in states), (states[-1], scene.real.x[rows])]
    return min(float(np.min(np.abs(x @ theta[1].T + theta[2]))) for theta, x in met)


class Comparison(NamedTuple):
    """The gradients of one window by the student, by its torch copy and by one graph, and the run's distance from kinks."""

    numpy: Sweep
    torch: Sweep
    oracle: OneGraph
    kink_distance: float


def compare(scene: Scene, optimiser: InnerOptimiser, window: Window, rng: np.random.Generator) -> Comparison:
    """Runs all three from the same draws."""
    noises = [scene.student.draw(rng) for _ in range(window.stop)]
    xi = scene.real.draw(rng)

    tape = unroll(scene.student, optimiser, scene.s, scene.theta, noises, window)
    distance = kink_distance(scene, [entry.state.theta for entry in tape.entries] + [tape.end.theta], xi)
    value, lam, _ = PerformanceMatching(scene.real).value_and_grad(tape.end.theta, scene.s, xi)
    numpy_sweep = sweep(scene.student, optimiser, scene.s, tape, lam)

    copy, s, theta = TorchCopy(scene.student), to_torch(scene.s), to_torch(scene.theta)
    tape = unroll(copy, optimiser, s, theta, noises, window)
    _, lam, _ = PerformanceMatching(TorchReal(scene.real)).value_and_grad(tape.end.theta, s, xi)
    torch_sweep = sweep(copy, optimiser, s, tape, lam)

    real = to_torch((scene.real.x, scene.real.y))
    oracle = one_graph(batch_loss, lambda p, _: batch_loss(p, real, xi), optimiser, scene.s, scene.theta, noises, window.start, window.stop)
    assert abs(value - oracle.value) <= TOLERANCE * abs(oracle.value)
    return Comparison(numpy_sweep, torch_sweep, oracle, distance)


@pytest.mark.parametrize("kind", OPTIMISERS)
@given(data=st.data(), scene=scenes(), policy=windows(), rng=generators)
def test_both_sweeps_equal_one_graph(kind, data, scene, policy, rng):
    """All cotangents of a window together: in tiny scenes one of them may cancel to nothing (Adam's first step is a bare sign)."""
    result = compare(scene, data.draw(OPTIMISERS[kind]), policy.draw(rng), rng)
    assume(result.kink_distance > 1e-7)
    oracle = result.oracle
    for mine in (result.numpy, result.torch):
        together = (*mine.grad_s, *mine.lam, np.asarray(float(mine.grad_log_lr)))
        assert relative_error(together, (*oracle.grad_s, *oracle.lam, np.asarray(oracle.grad_log_lr))) <= TOLERANCE


@pytest.mark.parametrize("batch", [None, 4], ids=["whole set", "sub-batches"])
@pytest.mark.parametrize("policy", [FullWindow(12), FixedWindow(12, 5), FixedWindow(12, 5, 2), RandomWindow(12, 5)], ids=repr)
@pytest.mark.parametrize("optimiser", [SGD(0.05), Momentum(0.02), Adam(0.01)], ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_each_part_equals_one_graph(seed, optimiser, policy, batch):
    """At the sizes of a small experiment every part agrees on its own: inputs, labels, step size, state at the window's start."""
    rng = np.random.default_rng(seed)
    student = Student(6, 16, "gaussian", points=8, batch=batch)
    real = RealSample(rng.standard_normal((40, 6)), rng.standard_normal(40), batch=20)
    scene = Scene(student, real, (rng.standard_normal((8, 6)), rng.standard_normal(8)), student.init(rng))
    result = compare(scene, optimiser, policy.draw(rng), rng)
    oracle = result.oracle
    for mine in (result.numpy, result.torch):
        for part, expected in zip((*mine.grad_s, *mine.lam), (*oracle.grad_s, *oracle.lam), strict=True):
            assert relative_error((part,), (expected,)) <= TOLERANCE
        assert float(mine.grad_log_lr) == pytest.approx(oracle.grad_log_lr, rel=TOLERANCE)


@given(seed=seeds, inner=st.sampled_from([SGD(0.1), Momentum(0.05), Adam(0.02)]), batch=st.sampled_from([None, 3]))
def test_both_distil_the_same_set(seed, inner, batch):
    """Whole outer runs: windows, starts, batches and real batches drawn alike, updates equal to rounding."""
    rng = np.random.default_rng(seed)
    student = Student(3, 6, "gaussian", points=4, batch=batch)
    real = RealSample(rng.standard_normal((12, 3)), rng.standard_normal(12), batch=8)
    s = (rng.standard_normal((4, 3)), rng.standard_normal(4))
    distiller = Distiller(RandomWindow(5, 3), inner, Momentum(0.05), NormClip(), 0.9)

    here = list(distil(student, PerformanceMatching(real), distiller, start(distiller, s), seed, 4))
    there = list(distil(TorchCopy(student), PerformanceMatching(TorchReal(real)), distiller, start(distiller, to_torch(s)), seed, 4))
    for mine, theirs in zip(here, there, strict=True):
        assert mine.window == theirs.window
        assert abs(mine.value - theirs.value) <= 1e-9 * abs(theirs.value)
        assert relative_error(mine.state.s, theirs.state.s) <= 1e-9
        assert relative_error(mine.state.s_average, theirs.state.s_average) <= 1e-9
    assert not np.array_equal(to_numpy(here[-1].state.s[1]), s[1]), "the labels are learned too"
