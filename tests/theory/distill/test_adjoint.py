"""The truncated reverse sweep: against differences of the run itself, against windows composed by hand, and what a tape may hold."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.random import SeedSequence

from sims.student import RealSample, Student
from tests.oracles import dense_gradient, difference_along, one_graph, relative_error, to_torch, two_layer_loss
from tests.strategies import OPTIMISERS, generators, normal_like, optimisers, seeds, windows
from theory.distill.adaptive import PROFILES, AdaptiveWindow
from theory.distill.adjoint import State, Tape, sweep, unroll
from theory.distill.distiller import Distiller, meta_gradient
from theory.distill.inner_optim import SGD, Adam, Momentum
from theory.distill.leaves import add, axpy, dot, norm, scale, size
from theory.distill.matching import PerformanceMatching
from theory.distill.problem import Diverged
from theory.distill.stages import Stage
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window

# A unit that is nearly dead has a gradient of rounding alone, which Adam's step turns into 1 / eps as much.
tame_optimisers = optimisers.map(lambda o: replace(o, eps=1e-4) if isinstance(o, Adam) else o)


@dataclass(frozen=True, eq=False)
class Counting:
    """A student that counts what is asked of it."""

    inner: Student
    calls: dict = field(default_factory=lambda: {"gradient": 0, "second_order": 0})

    def init(self, rng):
        return self.inner.init(rng)

    def draw(self, rng):
        return self.inner.draw(rng)

    def gradient(self, theta, s, xi):
        self.calls["gradient"] += 1
        return self.inner.gradient(theta, s, xi)

    def second_order(self, theta, s, xi, c):
        self.calls["second_order"] += 1
        return self.inner.second_order(theta, s, xi, c)

    def mixed(self, theta, s, xi, c):
        return self.inner.mixed(theta, s, xi, c)


@dataclass(frozen=True, eq=False)
class Scene:
    student: Student
    real: RealSample
    s: tuple
    theta: tuple
    noises: list


def scene_of(rng, steps, batch=None, m=4):
    student = Student(3, 5, "gaussian", points=m, batch=batch)
    real = RealSample(rng.standard_normal((9, 3)), rng.standard_normal(9))
    s = (rng.standard_normal((m, 3)), rng.standard_normal(m))
    a, w, b = student.init(rng)
    return Scene(student, real, s, (a, w, b + 0.3 * rng.standard_normal(5)), [student.draw(rng) for _ in range(steps)])


def end_cotangent(scene, tape):
    return scene.real.loss_and_gradient(tape.end.theta, None)[1]


def run_from(scene, optimiser, state, stop):
    """A map S -> theta_stop that starts from a frozen state: the function a window differentiates, stepped by hand."""

    def end(s):
        theta, slots = state.theta, state.slots
        for t in range(state.t, stop):
            theta, slots = optimiser.step(theta, slots, t, scene.student.gradient(theta, s, scene.noises[t]))
        return theta

    return end


def smooth(scene, tape, margin=1e-4):
    states = [entry.state.theta for entry in tape.entries] + [tape.end.theta]
    return all(np.min(np.abs(x @ w.T + b)) > margin for _, w, b in states for x in (scene.s[0], scene.real.x))


@given(rng=generators, optimiser=optimisers, policy=windows(5))
def test_meta_gradient_is_the_difference_quotient_of_the_run(rng, optimiser, policy):
    """Every coordinate of S, the warm-up frozen: central differences of the real loss at theta_stop."""
    window = policy.draw(rng)
    scene = scene_of(rng, window.stop)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, window)
    assume(smooth(scene, tape))
    end = run_from(scene, optimiser, tape.entries[0].state, window.stop)
    grad_s = sweep(scene.student, optimiser, scene.s, tape, end_cotangent(scene, tape)).grad_s
    expected = dense_gradient(lambda s: scene.real.loss_and_gradient(end(s), None)[0], scene.s, step=1e-6)
    # Adam divides by gradients that a fitted S makes tiny; the quotient then has few digits, in proportion to the rounding below.
    rounding = 1e-16 / 1e-6 * (1.0 + norm(tape.end.theta) ** 4)
    assert norm(add(grad_s, scale(-1.0, expected))) <= 1e-5 * norm(expected) + 1e3 * rounding


@given(rng=generators, optimiser=optimisers, policy=windows())
def test_sweep_is_the_transpose_of_the_run(rng, optimiser, policy):
    """<lam_stop, J v> = <grad_S, v>, J v by one central difference of theta_stop along v, the warm-up frozen."""
    window = policy.draw(rng)
    scene = scene_of(rng, window.stop)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, window)
    assume(smooth(scene, tape))
    v, lam = normal_like(rng, scene.s), normal_like(rng, scene.theta)
    tangent = difference_along(run_from(scene, optimiser, tape.entries[0].state, window.stop), scene.s, v)
    grad_s = sweep(scene.student, optimiser, scene.s, tape, lam).grad_s
    size = norm(lam) * norm(tangent) + norm(grad_s) * norm(v) + 1e-3
    assert abs(float(dot(lam, tangent) - dot(grad_s, v))) <= 1e-5 * size


@given(seed=seeds, optimiser=tame_optimisers, horizon=st.integers(1, 6), stage=st.sampled_from(Stage), known=st.booleans())
def test_window_as_long_as_the_unroll_equals_full(seed, optimiser, horizon, stage, known):
    """As every policy draws it, and against one graph of all steps made anew from the seed."""
    rng = np.random.default_rng(seed)
    scene, inner = scene_of(rng, horizon, batch=2), optimiser
    profile = tuple(rng.uniform(0.1, 2.0, horizon)) if known else None
    init, noise = (np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[k]) for k in (1, 2))
    theta, noises = scene.student.init(init), [scene.student.draw(noise) for _ in range(horizon)]
    real = to_torch((scene.real.x, scene.real.y))

    def loss(theta, s, rows):
        return two_layer_loss(theta, (s[0][rows], s[1][rows]))

    def objective(theta, s):
        return two_layer_loss(theta, real) + 0.0 * sum(part.sum() for part in s)

    reference = one_graph(loss, objective, inner, scene.s, theta, noises, 0, horizon)
    assume(norm(reference.grad_s) > 1e-6)
    fixed = (FullWindow(horizon), FixedWindow(horizon, horizon), RandomWindow(horizon, horizon))
    adaptive = tuple(AdaptiveWindow(horizon, horizon, profile=which) for which in PROFILES)
    how = {"stage": stage, "profile": profile}
    metas = [
        meta_gradient(
            scene.student, PerformanceMatching(scene.real), Distiller(policy, inner, SGD(0.1)), scene.s, SeedSequence(seed), **how
        )
        for policy in (*fixed, *adaptive)
    ]
    for meta in metas:
        assert meta.window == Window(0, horizon)
        assert meta.value == pytest.approx(reference.value, rel=1e-12)
        assert relative_error(meta.grad_s, reference.grad_s) <= 1e-10
        assert relative_error(meta.grad_s, metas[0].grad_s) == 0.0


@given(rng=generators, data=st.data())
def test_full_gradient_is_the_sum_of_its_windows(rng, data):
    """SGD carries no slots, so the sweep of [0, c) started from the cotangent that [c, T) leaves completes it."""
    horizon = data.draw(st.integers(2, 7))
    cut = data.draw(st.integers(1, horizon - 1))
    optimiser = data.draw(OPTIMISERS["sgd"])
    scene = scene_of(rng, horizon, batch=3)
    whole, early, late = (
        unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, w)
        for w in (Window(0, horizon), Window(0, cut), Window(cut, horizon))
    )
    lam = end_cotangent(scene, whole)
    after = sweep(scene.student, optimiser, scene.s, late, lam)
    before = sweep(scene.student, optimiser, scene.s, early, after.lam)
    full = sweep(scene.student, optimiser, scene.s, whole, lam)
    together = (*add(before.grad_s, after.grad_s), *before.lam)
    assert relative_error(together, (*full.grad_s, *full.lam)) < 1e-12
    assert float(before.grad_log_lr + after.grad_log_lr) == pytest.approx(float(full.grad_log_lr), rel=1e-9, abs=1e-12)


@given(rng=generators, data=st.data())
def test_slots_carry_cotangents_to_the_start_of_the_window(rng, data):
    """The sweep's cotangents of the state at its start, slots included, against differences in that state."""
    optimiser = data.draw(st.one_of(OPTIMISERS["momentum"], OPTIMISERS["adam"]))
    scene = scene_of(rng, 5)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, Window(2, 5))
    assume(smooth(scene, tape))
    state = tape.entries[0].state
    lam = normal_like(rng, scene.theta)
    found = sweep(scene.student, optimiser, scene.s, tape, lam)
    d_theta, d_slots = normal_like(rng, state.theta), tuple(normal_like(rng, slot) for slot in state.slots)
    live = [np.abs(x[np.abs(x) > 0]) for x in state.slots[-1]]
    h = 1e-6 * min(1.0, *(float(x.min()) for x in live if x.size))
    # Slots that are exactly 0 belong to dead coordinates, where the second moment admits no negative step.
    d_slots = tuple(
        tuple(np.where(x == 0.0, 0.0, v) for x, v in zip(slot, d, strict=True)) for slot, d in zip(state.slots, d_slots, strict=True)
    )

    def end(sign):
        moved = State(
            axpy(sign * h, d_theta, state.theta), tuple(axpy(sign * h, d, slot) for d, slot in zip(d_slots, state.slots, strict=True)), 2
        )
        return run_from(scene, optimiser, moved, 5)(scene.s)

    tangent = scale(0.5 / h, add(end(1.0), scale(-1.0, end(-1.0))))
    pulled = dot(found.lam, d_theta) + sum(dot(m, d) for m, d in zip(found.slots, d_slots, strict=True))
    rounding = 1e-15 * norm(scene.theta) * norm(lam) / h
    assert abs(float(dot(lam, tangent) - pulled)) <= 1e-4 * (norm(lam) * norm(tangent)) + 10 * rounding


@given(rng=generators, policy=windows(), optimiser=optimisers)
def test_tape_holds_the_window_and_the_run_stops_with_it(rng, policy, optimiser):
    window = policy.draw(rng)
    scene = scene_of(rng, policy.horizon)
    problem = Counting(scene.student)
    tape = unroll(problem, optimiser, scene.s, scene.theta, scene.noises, window)
    assert [entry.state.t for entry in tape.entries] == list(range(window.start, window.stop))
    assert tape.end.t == window.stop
    assert problem.calls == {"gradient": window.stop, "second_order": 0}
    assert tape.gradient_norms == ()
    sweep(problem, optimiser, scene.s, tape, end_cotangent(scene, tape))
    assert problem.calls == {"gradient": window.stop, "second_order": window.length}, "stored gradients are not computed twice"
    for k, (entry, after) in enumerate(zip(tape.entries, [*tape.entries[1:], None], strict=True)):
        before, state = entry.state, tape.end if after is None else after.state
        g = problem.gradient(before.theta, scene.s, entry.xi)
        assert relative_error(optimiser.step(before.theta, before.slots, before.t, g)[0], state.theta) == 0.0
        assert relative_error(tape.gradient(k), g) <= (1e-12 if entry.g is None else 0.0)
    stored = len(before.slots) + 1 + (entry.g is not None)
    assert stored == (2 if isinstance(optimiser, SGD | Momentum) else 3)
    assert tape.cost.stored_floats == window.length * stored * size(scene.theta)


@given(rng=generators, horizon=st.integers(1, 6))
def test_profile_is_the_gradient_norm_of_every_step(rng, horizon):
    scene = scene_of(rng, horizon)
    window = Window(horizon - 1, horizon)
    plain, profiled = (unroll(scene.student, SGD(0.1), scene.s, scene.theta, scene.noises, window, profile=flag) for flag in (False, True))
    every = unroll(scene.student, SGD(0.1), scene.s, scene.theta, scene.noises, Window(0, horizon))
    assert list(profiled.gradient_norms) == [norm(entry.g) for entry in every.entries]
    assert relative_error(plain.end.theta, profiled.end.theta) == 0.0


@given(seed=seeds, optimiser=optimisers)
def test_points_outside_the_windows_batches_get_exactly_nothing(seed, optimiser):
    """Batches of the warm-up do not count: only what the recorded steps saw can have a meta-gradient."""
    rng = np.random.default_rng(seed)
    scene = scene_of(rng, 5, batch=2, m=12)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, Window(3, 5))
    grad_s = sweep(scene.student, optimiser, scene.s, tape, end_cotangent(scene, tape)).grad_s
    seen = np.union1d(scene.noises[3], scene.noises[4])
    outside = np.setdiff1d(np.arange(12), seen)
    assert all(not part[outside].any() for part in grad_s)
    assert grad_s[0][seen].any()


def test_empty_tape_leaves_the_cotangent_alone():
    scene = scene_of(np.random.default_rng(0), 1)
    lam, optimiser = scene.theta, Momentum(0.1)
    empty = Tape(optimiser, (), State(scene.theta, optimiser.init(scene.theta), 0), ())
    result = sweep(scene.student, optimiser, scene.s, empty, lam)
    assert relative_error(result.lam, lam) == 0.0
    assert norm(result.grad_s) == 0.0


def test_a_missing_draw_is_refused():
    scene = scene_of(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="3 given, the run stops at 4"):
        unroll(scene.student, SGD(0.1), scene.s, scene.theta, scene.noises, Window(0, 4))


@pytest.mark.parametrize("optimiser", [SGD(1e200), Momentum(1e200), Adam(1e308)])
def test_a_diverging_run_names_its_step_size(optimiser):
    scene = scene_of(np.random.default_rng(0), 8)
    with pytest.raises(Diverged, match=r"inner run diverged: \|\|theta\|\| = (nan|inf) after 1 of 8 steps.*lr=1e"):
        unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, Window(0, 8))


@dataclass(frozen=True, eq=False)
class Breaking(Counting):
    """A student whose gradient is `bad` in the steps whose noise says so."""

    bad: float = np.nan

    def gradient(self, theta, s, xi):
        g = super().gradient(theta, s, None)
        return g if xi is None else scale(self.bad, g)


@pytest.mark.parametrize("optimiser", [SGD(0.1), Momentum(0.1), Adam(0.1)])
@pytest.mark.parametrize("step", [0, 2, 4, 6])
@pytest.mark.parametrize("window", [Window(0, 5), Window(3, 5)])
def test_the_first_step_that_is_not_finite_is_named(optimiser, step, window):
    """Steps beyond the window count too; a run that stays finite is not run twice."""
    scene = scene_of(np.random.default_rng(0), 1)
    problem = Breaking(scene.student)
    noises = [None if t != step else "bad" for t in range(8)]
    with pytest.raises(
        Diverged, match=rf"^inner run diverged: \|\|theta\|\| = nan after {step + 1} of 8 steps, the last gradient's norm nan"
    ):
        unroll(problem, optimiser, scene.s, scene.theta, noises, window, steps=8)
    assert problem.calls["gradient"] == 8 + step + 1
    unroll(problem, optimiser, scene.s, scene.theta, [None] * 8, window, steps=8)
    assert problem.calls["gradient"] == 16 + step + 1


def test_a_start_that_is_not_finite_is_named_as_such():
    scene = scene_of(np.random.default_rng(0), 3)
    with pytest.raises(Diverged, match=r"= nan after 0 of 3 steps"):
        unroll(scene.student, SGD(0.1), scene.s, scale(np.nan, scene.theta), scene.noises, Window(0, 3))
