"""Trajectory matching through the outer loop: starts, range, step size, skipped steps, TESLA, running average, continuation.

Properties of the methods' digest that are this package's, by number: P1 here (a vanishing step size) and in test_trajectory, P2 and P3 here
and in test_step_size, P4 here and in test_trajectory, P5 and P6 in test_flatness, P10 and P14 here; P7 is a lemma of proofs_check.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.oracles import one_graph, relative_error, to_numpy, to_torch, two_layer_loss
from tests.strategies import generators, seeds
from theory.distill.adjoint import unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.distiller import Distiller, MetaGradient, distil, meta_gradient, start
from theory.distill.inner_optim import SGD, Momentum
from theory.distill.leaves import Leaves, axpy, dot, norm
from theory.distill.outer import PerLeaf, ema
from theory.distill.problem import Diverged, GuidedObjective
from theory.distill.step_size import with_step_size
from theory.distill.trajectory import Segment, StartRange, TrajectoryMatching
from theory.distill.truncation import FullWindow, RandomWindow, Window

D, WIDTH, POINTS = 3, 6, 4


@dataclass(frozen=True, eq=False)
class Runs:
    """Plain SGD on a real sample, three steps an epoch."""

    runs: tuple[tuple[Leaves, ...], ...]

    @staticmethod
    def trained(rng: np.random.Generator, count: int = 2, epochs: int = 6) -> "Runs":
        student, runs = Student(D, WIDTH, "gaussian"), []
        real = RealSample(rng.standard_normal((20, D)), rng.standard_normal(20))
        for _ in range(count):
            run = [student.init(rng)]
            for _ in range(epochs):
                theta = run[-1]
                for _ in range(3):
                    theta = axpy(-0.1, real.loss_and_gradient(theta, None)[1], theta)
                run.append(theta)
            runs.append(tuple(run))
        return Runs(tuple(runs))

    @property
    def count(self) -> int:
        return len(self.runs)

    @property
    def epochs(self) -> int:
        return len(self.runs[0]) - 1

    def snapshot(self, expert: int, epoch: int) -> Leaves:
        return self.runs[expert][epoch]


def scene(rng: np.random.Generator, alpha: float = 0.1, batch: int | None = None) -> tuple[Student, TrajectoryMatching, Leaves]:
    student = Student(D, WIDTH, "gaussian", points=POINTS, batch=batch)
    data = (rng.standard_normal((POINTS, D)), rng.standard_normal(POINTS))
    return student, TrajectoryMatching(Runs.trained(rng), StartRange(4, first=1, growth=6), 2), with_step_size(data, alpha)


def method(steps: int, **more) -> Distiller:
    """The released recipes' form: momentum 0.5 for points and step size, 0.9 for labels."""
    outer = PerLeaf((Momentum(0.1, 0.5), Momentum(0.05, 0.9), Momentum(0.02, 0.5)))
    return Distiller(FullWindow(steps), SGD(1.0), outer, learn_step=True, **more)


def drawn(objective: TrajectoryMatching, student: Student, seed: int, steps: int) -> tuple[Segment, list]:
    """What a meta-gradient with this seed draws: the segment and the step noise."""
    children = np.random.SeedSequence(seed).spawn(6)
    noise = np.random.default_rng(children[2])
    return objective.draw(np.random.default_rng(children[3])), [student.draw(noise) for _ in range(steps)]


def smooth(student: Student, s: Leaves, alpha: float, xi: Segment, noises: list, margin: float) -> bool:
    """Whether the run from the segment's start keeps off every kink."""
    tape = unroll(student, SGD(alpha), s[:-1], xi.start, noises, Window(0, len(noises)))
    return all(np.min(np.abs(s[0] @ e.state.theta[1].T + e.state.theta[2])) > margin for e in tape.entries)


def meta(student: Student, objective: TrajectoryMatching, distiller: Distiller, s: Leaves, seed: int) -> MetaGradient:
    return meta_gradient(student, objective, distiller, s, np.random.SeedSequence(seed))


@given(rng=generators, seed=seeds, steps=st.integers(1, 6), batch=st.sampled_from([None, 2]), alpha=st.floats(0.02, 0.3))
def test_the_student_starts_at_the_snapshot_and_the_gradient_is_that_of_one_graph(rng, seed, steps, batch, alpha):
    """P3: stored states against the whole graph, for points, labels and step size; memory is N times (theta and its gradient)."""
    student, objective, s = scene(rng, alpha, batch)
    xi, noises = drawn(objective.at(3), student, seed, steps)
    assume(smooth(student, s, alpha, xi, noises, 1e-6))
    found = meta(student, objective.at(3), method(steps), s, seed)
    first, target = to_torch(xi.start), to_torch(xi.target)

    def inner(theta, data, rows):
        return two_layer_loss(theta, data if rows is None else tuple(x[rows] for x in data))

    def distance(theta, _):
        gap = sum(((a - b) ** 2).sum() for a, b in zip(theta, target, strict=True))
        return gap / sum(((a - b) ** 2).sum() for a, b in zip(first, target, strict=True))

    graph = one_graph(inner, distance, SGD(alpha), s[:-1], xi.start, noises, 0, steps)
    assert found.value == pytest.approx(graph.value, rel=1e-12)
    assert relative_error(found.grad_s, (*graph.grad_s, np.asarray(graph.grad_log_lr))) < 1e-10
    assert found.cost.stored_floats == 2 * steps * sum(x.size for x in xi.start)


@given(rng=generators, seed=seeds, steps=st.integers(1, 4))
def test_the_gradient_is_that_of_central_differences(rng, seed, steps):
    """P2."""
    student, objective, s = scene(rng)
    xi, noises = drawn(objective, student, seed, steps)
    assume(smooth(student, s, 0.1, xi, noises, 1e-3))
    found = meta(student, objective, method(steps), s, seed).grad_s
    for k in range(3):
        v = tuple(rng.standard_normal(x.shape) if i == k else np.zeros(x.shape) for i, x in enumerate(s))
        up, down = (meta(student, objective, method(steps), axpy(h, v, s), seed).value for h in (1e-6, -1e-6))
        assert abs(float(dot(found, v)) - (up - down) / 2e-6) < 1e-6 * norm(found) * norm(v) + 1e-8


def test_a_vanishing_step_size_leaves_the_loss_at_one_and_moves_nothing():
    """P1: 1 - L and the gradient are of order alpha."""
    student, objective, s = scene(np.random.default_rng(0))
    found = [meta(student, objective, method(5), with_step_size(s[:-1], alpha), 1) for alpha in (1e-4, 1e-5, 1e-6)]
    for sizes in ([abs(1.0 - one.value) for one in found], [norm(one.grad_s) for one in found]):
        assert sizes[0] < 0.1
        np.testing.assert_allclose(-np.diff(np.log10(sizes)), 1.0, atol=0.02)


@given(rng=generators, seed=seeds, steps=st.integers(1, 6))
def test_tesla_is_the_gradient_for_one_step_and_another_one_for_more(rng, seed, steps):
    """P4, for data, labels and step size: TESLA is the exact sweep with its cotangent held at the end."""
    student, objective, s = scene(rng)
    xi, noises = drawn(objective, student, seed, steps)
    assume(smooth(student, s, 0.1, xi, noises, 1e-6))
    exact = meta(student, objective, method(steps), s, seed)
    frozen = meta(student, objective, method(steps, hessian=LowRankHessian(rank=0)), s, seed)
    assert frozen.value == exact.value
    error = relative_error(frozen.grad_s, exact.grad_s)
    assert error < 1e-12 if steps == 1 else error > 1e-5
    thetas = [xi.start]
    for row in noises:
        thetas.append(axpy(-0.1, student.gradient(thetas[-1], s[:-1], row), thetas[-1]))
    lam = objective.value_and_grad(thetas[-1], s, xi)[1]
    held = -sum(float(np.sum(q * (a - b))) for q, a, b in zip(lam, thetas[0], thetas[-1], strict=True))
    assert float(frozen.grad_s[-1]) == pytest.approx(held, rel=1e-10, abs=1e-12)


@given(seed=seeds, stop=st.integers(0, 4), skip=st.sampled_from([None, 0.7]), decay=st.sampled_from([None, 0.9]))
def test_a_continued_run_is_the_uninterrupted_one(seed, stop, skip, decay):
    student, objective, s = scene(np.random.default_rng(seed), batch=2)
    distiller = method(3, skip_above=skip, ema_decay=decay)
    whole = list(distil(student, objective, distiller, start(distiller, s), seed, 5))
    first = list(islice(distil(student, objective, distiller, start(distiller, s), seed, 5), stop))
    again = first + list(distil(student, objective, distiller, first[-1].state if first else start(distiller, s), seed, 5))
    for one, other in zip(whole, again, strict=True):
        assert (one.step, one.value, one.grad_norm, one.skipped) == (other.step, other.value, other.grad_norm, other.skipped)
        for a, b in zip((one.state.s, *one.state.slots), (other.state.s, *other.state.slots), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(seed=seeds)
def test_the_running_average_sees_the_run_and_leaves_it_alone(seed):
    """P10."""
    student, objective, s = scene(np.random.default_rng(seed))
    plain, averaged = (list(distil(student, objective, one, start(one, s), seed, 4)) for one in (method(3), method(3, ema_decay=0.8)))
    mean = s
    for one, other in zip(plain, averaged, strict=True):
        mean = ema(mean, one.state.s, 0.8)
        assert all(np.array_equal(a, b) for a, b in zip(one.state.s, other.state.s, strict=True))
        assert relative_error(other.state.s_average, mean) < 1e-14


@given(seed=seeds, threshold=st.floats(0.6, 1.2))
def test_steps_above_the_threshold_leave_everything_but_their_count(seed, threshold):
    """P14: points, labels, step size, momenta and averages of a skipped step are those before it; all others move."""
    student, objective, s = scene(np.random.default_rng(seed))
    distiller = method(3, skip_above=threshold, ema_decay=0.5)
    before = start(distiller, s)
    for record in distil(student, objective, distiller, before, seed, 6):
        now = record.state
        assert record.skipped == (record.value > threshold)
        assert now.step == before.step + 1
        same = [a is b for a, b in zip((now.s, now.slots, now.s_average), (before.s, before.slots, before.s_average), strict=True)]
        assert all(same) if record.skipped else not any(same)
        before = now


@dataclass(frozen=True, eq=False)
class Watched(TrajectoryMatching):
    """Keeps the outer steps it was asked for and the epochs that were drawn at each."""

    seen: tuple[list[tuple[int, int]], ...] = ([],)

    def draw(self, rng: np.random.Generator) -> Segment:
        segment = super().draw(rng)
        self.seen[0].append((self.step, segment.epoch))
        return segment


def test_the_range_of_starts_grows_with_the_outer_step():
    """P14: from {0} to {0 .. 3} in six outer steps; a continued run goes on where the range stands."""
    student, objective, s = scene(np.random.default_rng(3))
    watched = Watched(objective.experts, objective.starts, objective.length)
    distiller = method(2)
    *_, last = distil(student, watched, distiller, start(distiller, s), 0, 40)
    list(distil(student, watched, distiller, last.state, 0, 45))
    assert [step for step, _ in watched.seen[0]] == list(range(45))
    assert all(epoch < objective.starts.at(step) for step, epoch in watched.seen[0])
    assert {epoch for step, epoch in watched.seen[0] if step < 2} == {0}
    assert {epoch for step, epoch in watched.seen[0] if step > 5} == {0, 1, 2, 3}


def test_matching_lowers_its_own_loss_and_learns_a_step_size():
    """A set made to follow one expert halves the normalised distance; its step size rises from too small a one."""
    rng = np.random.default_rng(5)
    student, _, s = scene(rng, 0.02)
    objective = TrajectoryMatching(Runs.trained(rng, 1), StartRange(1), 4)
    distiller = Distiller(FullWindow(10), SGD(1.0), PerLeaf((Momentum(0.3, 0.5), Momentum(0.3, 0.5), Momentum(0.05, 0.5))), learn_step=True)
    records = list(distil(student, objective, distiller, start(distiller, s), 0, 80))
    assert records[-1].value < 0.5 * records[0].value < 0.5
    assert math.exp(float(records[-1].state.s[-1])) > 0.03


def test_windows_inside_the_run_start_from_the_snapshot_too():
    student, objective, s = scene(np.random.default_rng(8))
    distiller = replace(method(4), windows=RandomWindow(4, 2))
    found = meta(student, objective, distiller, s, 2)
    xi, noises = drawn(objective, student, 2, found.window.stop)
    tape = unroll(student, SGD(0.1), s[:-1], xi.start, noises, found.window)
    assert found.value == pytest.approx(objective.value_and_grad(tape.end.theta, s, xi)[0], rel=1e-12)


def test_a_snapshot_that_is_not_finite_stops_the_run_and_names_the_step():
    student, objective, s = scene(np.random.default_rng(1))
    runs = objective.experts.runs
    broken = Runs(tuple((*run[:2], *(tuple(np.full_like(x, np.nan) for x in theta) for theta in run[2:])) for run in runs))
    distiller = method(2)
    run = distil(student, TrajectoryMatching(broken, StartRange(1), 2), distiller, start(distiller, s), 0, 2)
    with pytest.raises(Diverged, match=r"^outer step 0: expert [01] moves by nan between epochs 0 and 2"):
        next(run)


def test_thresholds_are_refused_with_their_value():
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"skip_above={bad}"):
            method(2, skip_above=bad)
    assert isinstance(scene(np.random.default_rng(0))[1], GuidedObjective)
    assert to_numpy(scene(np.random.default_rng(0))[2][-1]) == pytest.approx(math.log(0.1))
