"""The outer loop: continuation bit for bit, seeds, the objective's direct part, named divergence, running average, progress."""

import math
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.conformance import ObjectiveCase, ObjectiveConformance
from tests.oracles import relative_error
from tests.strategies import optimisers, seeds, smooth_points, windows
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.distiller import Distiller, distil, meta_gradient, start
from theory.distill.inner_optim import SGD, Adam, Momentum
from theory.distill.leaves import Leaves, add, norm, scale
from theory.distill.matching import PerformanceMatching
from theory.distill.outer import NormClip, ema
from theory.distill.problem import Diverged
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window


def scene(seed):
    rng = np.random.default_rng(seed)
    student = Student(3, 8, "gaussian", points=4, batch=2)
    real = RealSample(rng.standard_normal((24, 3)), rng.standard_normal(24), batch=12)
    return student, PerformanceMatching(real), (rng.standard_normal((4, 3)), rng.standard_normal(4))


def identical(one, other):
    assert (one.step, one.value, one.grad_norm, one.window) == (other.step, other.value, other.grad_norm, other.window)
    assert (one.state.step, one.state.clip_average) == (other.state.step, other.state.clip_average)
    for a, b in zip(
        (one.state.s, one.state.s_average or (), *one.state.slots),
        (other.state.s, other.state.s_average or (), *other.state.slots),
        strict=True,
    ):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(
    seed=seeds,
    policy=windows(5),
    inner=optimisers,
    outer=st.sampled_from([SGD(0.1), Momentum(0.1), Adam(0.02)]),
    clip=st.sampled_from([None, NormClip()]),
    decay=st.sampled_from([None, 0.8]),
    stop=st.integers(0, 4),
)
def test_a_continued_run_is_the_uninterrupted_one(seed, policy, inner, outer, clip, decay, stop):
    student, objective, s = scene(seed)
    distiller = Distiller(policy, inner, outer, clip, decay)
    whole = list(distil(student, objective, distiller, start(distiller, s), seed, 4))
    first = list(islice(distil(student, objective, distiller, start(distiller, s), seed, 4), stop))
    state = first[-1].state if first else start(distiller, s)
    again = first + list(distil(student, objective, distiller, state, seed, 4))
    assert [record.step for record in again] == [0, 1, 2, 3]
    for one, other in zip(whole, again, strict=True):
        identical(one, other)
    assert not list(distil(student, objective, distiller, again[-1].state, seed, 4)), "a finished run is not continued"


@given(seed=seeds)
def test_the_seed_chooses_windows_starts_and_batches(seed):
    student, objective, s = scene(0)
    distiller = Distiller(RandomWindow(20, 2), SGD(0.05), SGD(0.1))
    one, other = (list(distil(student, objective, distiller, start(distiller, s), k, 4)) for k in (seed, seed + 1))
    assert [record.window for record in one] != [record.window for record in other]
    assert one[0].value != other[0].value


@given(seed=seeds, decay=st.floats(0.0, 0.99))
def test_record_holds_the_update(seed, decay):
    """S after the step, the norm before the clip, and the running average, from the meta-gradient taken alone."""
    student, objective, s = scene(seed)
    distiller = Distiller(RandomWindow(4, 2), Adam(0.02), SGD(0.3), NormClip(factor=0.5), decay)
    average, before, clip_average = s, s, None
    for record in distil(student, objective, distiller, start(distiller, s), seed, 3):
        meta = meta_gradient(student, objective, distiller, before, np.random.SeedSequence(seed, spawn_key=(record.step,)))
        assert (record.value, record.grad_norm, record.window) == (meta.value, norm(meta.grad_s), meta.window)
        g, clip_average = NormClip(factor=0.5)(meta.grad_s, clip_average)
        assert record.state.clip_average == clip_average
        assert relative_error(record.state.s, add(before, scale(-0.3, g))) < 1e-14
        average, before = ema(average, record.state.s, decay), record.state.s
        assert relative_error(record.state.s_average, average) < 1e-14


@dataclass(frozen=True, eq=False)
class Noted:
    """A student that keeps the noise of every gradient it is asked for, run by run."""

    inner: Student
    runs: list = field(default_factory=list)

    def init(self, rng):
        self.runs.append([])
        return self.inner.init(rng)

    def draw(self, rng):
        self.runs[-1].append(self.inner.draw(rng))
        return self.runs[-1][-1]

    def gradient(self, theta, s, xi):
        return self.inner.gradient(theta, s, xi)

    def second_order(self, theta, s, xi, c):
        return self.inner.second_order(theta, s, xi, c)

    def mixed(self, theta, s, xi, c):
        return self.inner.mixed(theta, s, xi, c)


def noises_of(policy, seed, starts, window, profile=None):
    _, objective, s = scene(0)
    problem = Noted(Student(3, 8, "gaussian", points=4, batch=2))
    distiller = Distiller(policy, SGD(0.05), SGD(0.1), starts=starts)
    meta_gradient(problem, objective, distiller, s, np.random.SeedSequence(seed), window=window, profile=profile)
    return problem.runs


@given(seed=seeds, starts=st.integers(1, 3), stop=st.integers(4, 7))
def test_a_window_given_leaves_the_noise_of_every_start_as_it_was(seed, starts, stop):
    """[0, 3) against [0, stop): the first three batches of each start agree, and the starts differ. So with steps beyond the window."""
    short, long = (noises_of(FullWindow(7), seed, starts, Window(0, k)) for k in (3, stop))
    assert [len(run) for run in short] == [3] * starts
    assert [len(run) for run in long] == [stop] * starts
    for one, other in zip(short, long, strict=True):
        np.testing.assert_array_equal(one, other[:3])
    assert len({str(run) for run in long}) == starts
    beyond = noises_of(AdaptiveWindow(7, 2), seed, starts, Window(0, 3))
    for one, other in zip(short, beyond, strict=True):
        np.testing.assert_array_equal(one, other[:3])
    assert len({str(run[3:]) for run in beyond}) == starts


@given(seed=seeds, spawned=st.integers(0, 3))
def test_the_seed_passed_in_is_left_as_it_is(seed, spawned):
    """The same object gives the same meta-gradient again: that of a fresh seed, and of its fresh children."""
    student, objective, s = scene(0)
    distiller = Distiller(RandomWindow(20, 2), SGD(0.05), SGD(0.1), starts=2)
    used = np.random.SeedSequence(seed, spawn_key=(3,))
    used.spawn(spawned)
    first, again, fresh = (
        meta_gradient(student, objective, distiller, s, child) for child in (used, used, np.random.SeedSequence(seed, spawn_key=(3,)))
    )
    assert used.n_children_spawned == spawned
    for other in (again, fresh):
        assert (first.value, first.window) == (other.value, other.window)
        assert relative_error(first.grad_s, other.grad_s) == 0.0
    drawn = RandomWindow(20, 2).draw(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)).spawn(6)[0]))
    assert first.window == drawn


def test_without_decay_there_is_no_running_average():
    distiller = Distiller(FullWindow(2), SGD(0.1), SGD(0.1))
    student, objective, s = scene(1)
    assert start(distiller, s).s_average is None
    assert next(iter(distil(student, objective, distiller, start(distiller, s), 0, 1))).state.s_average is None


@dataclass(frozen=True, eq=False)
class Anchored:
    """real(theta) + (1/2) ||S - anchor||^2 + extra: an objective that sees S directly."""

    real: PerformanceMatching
    anchor: Leaves
    extra: float = 0.0

    def draw(self, rng):
        return self.real.draw(rng)

    def value_and_grad(self, theta, s, xi):
        value, grad, _ = self.real.value_and_grad(theta, s, xi)
        away = add(s, scale(-1.0, self.anchor))
        return value + 0.5 * norm(away) ** 2 + self.extra, grad, away


class TestAnchored(ObjectiveConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        theta, real = draw(smooth_points())
        return ObjectiveCase(Anchored(PerformanceMatching(RealSample(*real)), tuple(0.3 * x for x in real)), theta, real)


@given(seed=seeds)
def test_direct_part_is_added(seed):
    student, objective, s = scene(seed)
    distiller = Distiller(RandomWindow(4, 2), SGD(0.1), SGD(0.1))
    anchor = tuple(0.5 * x for x in s)
    plain, anchored = (
        meta_gradient(student, f, distiller, s, np.random.SeedSequence(seed)).grad_s for f in (objective, Anchored(objective, anchor))
    )
    assert relative_error(add(anchored, scale(-1.0, plain)), anchor) < 1e-12


@pytest.mark.parametrize("sphere", [None, 1.0])
@pytest.mark.parametrize("bad", [1e200, 1e308])
def test_an_outer_update_that_overflows_is_named_in_its_own_step(bad, sphere):
    """Not by the inner run that would start from it, and the state is that before it; a projection hides nothing."""
    student, objective, s = scene(2)
    rates = [0.1, bad]

    @dataclass(frozen=True)
    class Jumping(SGD):
        def step(self, theta, slots, t, g):
            return SGD(rates[t]).step(theta, slots, t, g)

    distiller = Distiller(FullWindow(3), SGD(0.1), Jumping(1.0), sphere=sphere)
    run = distil(student, objective, distiller, start(distiller, s), 0, 5)
    assert norm(next(run).state.s) < math.inf
    with pytest.raises(Diverged, match=r"^outer step 1: outer update diverged: \|\|S\|\| = (inf|nan) after it"):
        next(run)


def test_divergence_names_the_outer_step_and_keeps_what_was_done():
    student, objective, s = scene(2)
    distiller = Distiller(FullWindow(3), SGD(0.1), SGD(1e100))
    run = distil(student, objective, distiller, start(distiller, s), 0, 5)
    record = next(run)
    assert math.isfinite(record.value)
    with pytest.raises(Diverged, match=r"^outer step 1: inner run diverged: .* after [123] of 3 steps"):
        next(run)


@pytest.mark.parametrize("clip", [None, NormClip()])
@pytest.mark.parametrize("extra", [math.nan, math.inf])
def test_a_non_finite_objective_stops_the_run(extra, clip):
    student, objective, s = scene(3)
    distiller = Distiller(FullWindow(2), SGD(0.1), SGD(0.1), clip)
    with pytest.raises(Diverged, match=rf"^outer step 0: objective {extra}"):
        next(distil(student, Anchored(objective, s, extra), distiller, start(distiller, s), 0, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_meta_gradient_stops_the_run(bad):
    student, objective, s = scene(3)
    distiller = Distiller(FullWindow(2), SGD(0.1), SGD(0.1))
    broken = replace(Anchored(objective, s), anchor=(np.full((4, 3), bad), s[1]))
    with pytest.raises(Diverged, match=r"^outer step 0"):
        next(distil(student, broken, distiller, start(distiller, s), 0, 2))


@pytest.mark.parametrize("policy", [FullWindow(10), FixedWindow(10, 4), RandomWindow(10, 4)], ids=repr)
@pytest.mark.parametrize("inner", [SGD(0.3), Adam(0.05)], ids=["sgd", "adam"])
def test_outer_loss_falls(policy, inner):
    """A target that the student can fit, the same few outer steps under every window: the loss halves at least."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((64, 3))
    objective = PerformanceMatching(RealSample(x, np.abs(x[:, 0])))
    distiller = Distiller(policy, inner, Adam(0.05), NormClip())
    s = (rng.standard_normal((6, 3)), rng.standard_normal(6))
    values = [record.value for record in distil(Student(3, 16, "gaussian"), objective, distiller, start(distiller, s), 0, 60)]
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:10])


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_bad_running_averages_are_refused(decay):
    with pytest.raises(ValueError, match=f"ema_decay={decay}"):
        Distiller(FullWindow(1), SGD(0.1), SGD(0.1), None, decay)
