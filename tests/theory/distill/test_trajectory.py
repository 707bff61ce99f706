"""Trajectory matching: its value's properties, its exact gradient against one graph, and where TESLA departs from it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.conformance import ObjectiveCase, ObjectiveConformance
from tests.oracles import one_graph, relative_error, to_torch, two_layer_loss
from tests.strategies import generators, normal_like, seeds
from theory.distill.adjoint import sweep, unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.inner_optim import SGD
from theory.distill.leaves import Leaves, add, axpy, dot, norm, scale
from theory.distill.problem import Diverged, Objective
from theory.distill.trajectory import Experts, Segment, StartRange, TrajectoryMatching, errors_along
from theory.distill.truncation import Window

D, WIDTH, POINTS = 3, 5, 4


@dataclass(frozen=True, eq=False)
class Stored:
    """Experts in memory: runs[expert][epoch]."""

    runs: tuple[tuple[Leaves, ...], ...]

    @property
    def count(self) -> int:
        return len(self.runs)

    @property
    def epochs(self) -> int:
        return len(self.runs[0]) - 1 if self.runs else 0

    def snapshot(self, expert: int, epoch: int) -> Leaves:
        return self.runs[expert][epoch]


def trained(rng: np.random.Generator, count: int = 2, epochs: int = 4) -> Stored:
    """Plain SGD on a real sample, a snapshot every three steps."""
    student, runs = Student(D, WIDTH, "gaussian"), []
    real = RealSample(rng.standard_normal((20, D)), rng.standard_normal(20))
    for _ in range(count):
        a, w, b = student.init(rng)
        theta = (a, w, b + 0.3 * rng.standard_normal(WIDTH))
        run = [theta]
        for _ in range(epochs):
            for _ in range(3):
                theta = axpy(-0.1, real.loss_and_gradient(theta, None)[1], theta)
            run.append(theta)
        runs.append(tuple(run))
    return Stored(tuple(runs))


def distilled(rng: np.random.Generator) -> Leaves:
    return rng.standard_normal((POINTS, D)), rng.standard_normal(POINTS)


def off_kinks(tape, s: Leaves, margin: float = 1e-6) -> bool:
    return all(np.min(np.abs(s[0] @ e.state.theta[1].T + e.state.theta[2])) > margin for e in tape.entries)


class TestTrajectoryMatching(ObjectiveConformance):
    @staticmethod
    @st.composite
    def cases(draw: st.DrawFn) -> ObjectiveCase:
        rng = draw(generators)
        objective = TrajectoryMatching(trained(rng), StartRange(2), 2)
        theta = trained(rng, 1).snapshot(0, 4)
        return ObjectiveCase(objective, theta, distilled(rng))


@given(rng=generators, size=st.floats(1e-3, 1e3))
def test_the_value_is_zero_at_the_target_one_at_the_start_and_free_of_scale(rng, size):
    experts = trained(rng, 1)
    objective = TrajectoryMatching(experts, StartRange(1), 2)
    assert isinstance(objective, Objective)
    assert isinstance(experts, Experts)
    xi, s = objective.draw(rng), distilled(rng)
    assert objective.value_and_grad(xi.target, s, xi)[0] == 0.0
    assert objective.value_and_grad(objective.start(xi), s, xi)[0] == pytest.approx(1.0, rel=1e-12)
    theta = normal_like(rng, xi.start)
    scaled = Segment(scale(size, xi.start), scale(size, xi.target), 0, 0)
    value = objective.value_and_grad(theta, s, xi)[0]
    assert objective.value_and_grad(scale(size, theta), s, scaled)[0] == pytest.approx(value, rel=1e-9)


@given(rng=generators, steps=st.integers(1, 6), lr=st.floats(0.01, 0.3), batch=st.sampled_from([None, 2]))
def test_the_sweep_gives_the_gradient_of_one_graph_in_points_labels_and_step_size(rng, steps, lr, batch):
    student = Student(D, WIDTH, "gaussian", points=POINTS, batch=batch)
    objective = TrajectoryMatching(trained(rng), StartRange(2), 2)
    xi, s, optimiser = objective.draw(rng), distilled(rng), SGD(lr)
    noises = [student.draw(rng) for _ in range(steps)]
    tape = unroll(student, optimiser, s, objective.start(xi), noises, Window(0, steps))
    assume(off_kinks(tape, s))
    value, lam, _ = objective.value_and_grad(tape.end.theta, s, xi)
    found = sweep(student, optimiser, s, tape, lam)
    start, target = to_torch(xi.start), to_torch(xi.target)

    def inner(theta, points, rows):
        x, y = points
        return two_layer_loss(theta, (x, y) if rows is None else (x[torch.from_numpy(rows)], y[torch.from_numpy(rows)]))

    def distance(theta, _):
        gap = sum(((a - b) ** 2).sum() for a, b in zip(theta, target, strict=True))
        return gap / sum(((a - b) ** 2).sum() for a, b in zip(start, target, strict=True))

    graph = one_graph(inner, distance, optimiser, s, xi.start, noises, 0, steps)
    assert value == pytest.approx(graph.value, rel=1e-12)
    assert relative_error(found.grad_s, graph.grad_s) < 1e-10
    assert float(found.grad_log_lr) == pytest.approx(graph.grad_log_lr, rel=1e-9, abs=1e-12)


def tesla(
    student: Student, objective: TrajectoryMatching, s: Leaves, xi: Segment, steps: int, lr: float
) -> tuple[Leaves, Leaves, float, bool]:
    """(exact gradient, TESLA's by its own formula: lam frozen, theta_i constants; TESLA's in the step size, off kinks)."""
    tape = unroll(student, SGD(lr), s, objective.start(xi), [None] * steps, Window(0, steps))
    _, lam, _ = objective.value_and_grad(tape.end.theta, s, xi)
    total = add(xi.start, scale(-1.0, tape.end.theta))  # beta G
    span = add(xi.start, scale(-1.0, xi.target))
    weight = scale(2.0 / float(dot(span, span)), add(add(xi.target, scale(-1.0, xi.start)), total))
    parts = [student.mixed(e.state.theta, s, None, scale(lr, weight)) for e in tape.entries]
    grad = parts[0]
    for part in parts[1:]:
        grad = add(grad, part)
    return sweep(student, SGD(lr), s, tape, lam).grad_s, grad, lr * float(dot(weight, scale(1.0 / lr, total))), off_kinks(tape, s)


@given(rng=generators, steps=st.integers(1, 6))
def test_tesla_is_the_sweep_with_a_hessian_of_rank_zero(rng, steps):
    student, objective = Student(D, WIDTH, "gaussian"), TrajectoryMatching(trained(rng), StartRange(2), 2)
    xi, s, lr = objective.draw(rng), distilled(rng), 0.2
    exact, formula, in_lr, smooth = tesla(student, objective, s, xi, steps, lr)
    assume(smooth)
    tape = unroll(student, SGD(lr), s, objective.start(xi), [None] * steps, Window(0, steps))
    lam = objective.value_and_grad(tape.end.theta, s, xi)[1]
    frozen = sweep(student, SGD(lr), s, tape, lam, LowRankHessian(rank=0), rng)
    assert relative_error(frozen.grad_s, formula) < 1e-10
    assert float(frozen.grad_log_lr) == pytest.approx(in_lr, rel=1e-9, abs=1e-12)
    if steps == 1:
        assert relative_error(formula, exact) < 1e-12


def test_tesla_is_not_the_gradient_for_more_steps_and_nears_it_linearly_in_the_step_size():
    rng = np.random.default_rng(5)
    student, objective = Student(D, WIDTH, "gaussian"), TrajectoryMatching(trained(rng), StartRange(1), 2)
    xi, s = objective.draw(rng), distilled(rng)
    errors = []
    for lr in (0.2, 2e-3, 2e-4, 2e-5):
        exact, formula, _, smooth = tesla(student, objective, s, xi, 8, lr)
        assert smooth
        errors.append(relative_error(formula, exact))
    assert errors[0] > 0.05
    slopes = np.diff(np.log(errors[1:])) / np.diff(np.log([2e-3, 2e-4, 2e-5]))
    assert np.all(np.abs(slopes - 1.0) < 0.1), slopes


@given(rng=generators, seed=seeds, steps=st.integers(1, 5), lr=st.floats(0.01, 0.2), batch=st.sampled_from([None, 2]))
def test_errors_along_an_expert_are_those_of_students_run_by_hand_and_obey_the_recursion(rng, seed, steps, lr, batch):
    """P7: each of the three measured by itself; eps' = eps + I + delta; ||delta||^2 is L times the squared length of the segment."""
    student, experts, s = Student(D, WIDTH, "gaussian", points=POINTS, batch=batch), trained(rng, 1), distilled(rng)
    objective, noise = TrajectoryMatching(experts, StartRange(1), 1), np.random.default_rng(seed)
    eps = scale(0.0, experts.snapshot(0, 0))
    found = list(errors_along(student, SGD(lr), s, experts.runs[0], steps, np.random.default_rng(seed)))
    assert len(found) == experts.epochs
    for t, errors in enumerate(found):
        here, target = experts.snapshot(0, t), experts.snapshot(0, t + 1)
        rows = [student.draw(noise) for _ in range(steps)]

        def update(theta: Leaves, rows=rows) -> Leaves:
            moved = theta
            for row in rows:
                moved = axpy(-lr, student.gradient(moved, s, row), moved)
            return axpy(-1.0, theta, moved)

        delta = axpy(-1.0, axpy(-1.0, here, target), update(here))
        initial = axpy(-1.0, update(here), update(add(here, eps)))
        size = norm(here) + norm(eps)
        for mine, theirs in ((errors.matching, delta), (errors.initialisation, initial)):
            assert norm(axpy(-1.0, theirs, mine)) <= 1e-12 * size
        eps = add(add(eps, initial), delta)
        assert norm(axpy(-1.0, eps, errors.accumulated)) <= 1e-12 * size
        value = objective.value_and_grad(errors.fresh, s, Segment(here, target, 0, t))[0]
        assert norm(errors.matching) ** 2 == pytest.approx(value * norm(axpy(-1.0, here, target)) ** 2, rel=1e-9)
    assert norm(found[0].initialisation) == 0.0
    assert len(found) == 1 or norm(found[1].initialisation) > 0.0


@given(
    low=st.integers(0, 5),
    grow=st.integers(0, 8),
    rest=st.integers(0, 8),
    growth=st.integers(0, 20),
    step=st.integers(0, 60),
    rng=generators,
)
def test_the_start_range_grows_and_stops_and_epochs_stay_inside(low, grow, rest, growth, step, rng):
    first = low + 1 + grow
    starts = StartRange(first + rest, low, first, growth)
    ends = [starts.at(k) for k in range(61)]
    assert ends == sorted(ends)
    assert ends[0] == (first if growth else first + rest)
    assert ends[growth] == first + rest
    experts = Stored((tuple((np.array([float(k)]),) for k in range(first + rest + 2)),) * 3)
    segment = TrajectoryMatching(experts, starts, 2).at(step).draw(rng)
    assert low <= segment.epoch < starts.at(step)
    assert float(segment.target[0][0] - segment.start[0][0]) == 2.0


def test_every_expert_and_epoch_is_drawn():
    experts = Stored(tuple(tuple((np.array([float(k)]),) for k in range(6)) for _ in range(3)))
    objective, rng = TrajectoryMatching(experts, StartRange(4, 1), 2), np.random.default_rng(0)
    seen = {(segment.expert, segment.epoch) for segment in (objective.draw(rng) for _ in range(400))}
    assert seen == {(e, t) for e in range(3) for t in (1, 2, 3)}


def test_an_expert_that_stands_still_is_named():
    still = Stored((((np.ones(2),),) * 4,))
    objective = TrajectoryMatching(still, StartRange(1), 2)
    xi = objective.draw(np.random.default_rng(0))
    with pytest.raises(Diverged, match=r"expert 0 moves by 0\.0 between epochs 0 and 2"):
        objective.value_and_grad((np.zeros(2),), (), xi)


def test_settings_are_refused_with_their_values():
    experts = Stored((((np.ones(2),),) * 4,))
    with pytest.raises(ValueError, match=r"last segment would end at epoch 4, the experts at 3: lower the last start epoch \(2\)"):
        TrajectoryMatching(experts, StartRange(3), 2)
    with pytest.raises(ValueError, match="at least one epoch of the expert: length=0"):
        TrajectoryMatching(experts, StartRange(1), 0)
    with pytest.raises(ValueError, match="at least one expert"):
        TrajectoryMatching(Stored(()), StartRange(1), 1)
    for settings in ((3, 3, None, 0), (2, -1, None, 0), (3, 0, 4, 0)):
        with pytest.raises(ValueError, match=f"0 <= low < first <= high: low={settings[1]}"):
            StartRange(*settings)
    with pytest.raises(ValueError, match="growth=-1"):
        StartRange(3, growth=-1)
