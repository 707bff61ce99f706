"""Gradient matching along a run, several starts an outer step, and distillation in phases: against one autograd graph and differences."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.conformance import InnerProblemConformance, ProblemCase
from tests.oracles import dense_gradient, detached, one_graph, relative_error, to_numpy, to_torch, two_layer_loss
from tests.strategies import OPTIMISERS, generators, optimisers, seeds, smooth_points, windows
from theory import two_layer
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.adjoint import unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.distiller import Distiller, distil, meta_gradient, start
from theory.distill.inner_optim import SGD, Adam, Momentum
from theory.distill.leaves import add, norm, scale
from theory.distill.matching import DISTANCES, GradientMatching, PathObjective, PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.problem import Diverged
from theory.distill.progressive import Phase, distil_in_phases, train, union
from theory.distill.truncation import FullWindow, RandomWindow, Window

MARGIN = 1e-7


def batch_loss(theta, s, xi=None):
    rows = slice(None) if xi is None else torch.from_numpy(xi)
    return two_layer_loss(theta, (s[0][rows], s[1][rows]))


def scene(rng, points=4):
    """A student, a real sample and a set; the scale of the start is drawn too, so that gates differ along a run."""
    student = Student(3, 6, "gaussian", init_scale=0.7, points=points, batch=None)
    real = RealSample(rng.standard_normal((9, 3)), rng.standard_normal(9), batch=6)
    return student, real, (rng.standard_normal((points, 3)), rng.standard_normal(points))


def away_from_kinks(tape, s, real):
    met = [entry.state.theta for entry in tape.entries] + [tape.end.theta]
    return min(float(np.min(np.abs(x @ w.T + b))) for _, w, b in met for x in (s[0], real.x)) > MARGIN


class TestGradientMatchingAlongARun:
    def test_it_is_an_objective_of_the_path(self):
        matching = GradientMatching(RealSample(np.ones((2, 1)), np.ones(2)))
        assert isinstance(matching, PathObjective)
        assert not isinstance(PerformanceMatching(matching.real), PathObjective)

    @pytest.mark.parametrize("name", ["squared", "inner_product"])
    @given(data=st.data(), policy=windows(5), optimiser=optimisers, rng=generators)
    def test_gradient_is_that_of_one_graph_a_state_and_of_differences(self, name, data, policy, optimiser, rng):
        """States count as given: a graph a state by autograd, and the value differenced in S at the recorded states."""
        student, real, s = scene(rng)
        objective, window, xi = GradientMatching(real, DISTANCES[name]), policy.draw(rng), np.arange(5)
        tape = unroll(student, optimiser, s, student.init(rng), [None] * window.stop, window)
        assume(away_from_kinks(tape, s, real))
        value, grad_s = objective.along(student, s, tape, xi)

        q, total = detached(to_torch(s)), torch.zeros((), dtype=torch.float64)
        sample = to_torch((real.x, real.y))
        for entry in tape.entries:
            theta = detached(to_torch(entry.state.theta))
            g_s = torch.autograd.grad(batch_loss(theta, q), theta, create_graph=True)
            g_t = torch.autograd.grad(batch_loss(theta, sample, xi), theta)
            pairs = list(zip(g_s, g_t, strict=True))
            terms = [0.5 * ((a - b) ** 2).sum() if name == "squared" else -(a * b).sum() for a, b in pairs]
            total = total + sum(terms) / len(tape.entries)
        assert value == pytest.approx(float(total.detach()), rel=1e-10, abs=1e-12)
        assert relative_error(grad_s, torch.autograd.grad(total, q)) < 1e-10

        def matched(moved):
            entries = [(entry.state.theta, real.loss_and_gradient(entry.state.theta, xi)[1]) for entry in tape.entries]
            return sum(DISTANCES[name](student.gradient(theta, moved, None), g_t)[0] for theta, g_t in entries) / len(entries)

        assert relative_error(grad_s, dense_gradient(matched, s)) < 1e-5

    @given(seed=seeds)
    def test_one_step_is_gradient_matching_at_the_start(self, seed):
        student, real, s = scene(np.random.default_rng(seed))
        distiller = Distiller(FullWindow(1), SGD(0.1), SGD(0.1))
        meta = meta_gradient(student, GradientMatching(real), distiller, s, np.random.SeedSequence(seed))
        init, draws = (np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[k]) for k in (1, 3))
        theta, xi = student.init(init), real.draw(draws)
        value, c = DISTANCES["squared"](student.gradient(theta, s, None), real.loss_and_gradient(theta, xi)[1])
        assert meta.value == value
        assert relative_error(meta.grad_s, student.mixed(theta, s, None, c)) < 1e-13

    def test_a_non_finite_distance_stops_the_run_and_names_the_step(self):
        student, real, s = scene(np.random.default_rng(0))
        distiller = Distiller(FullWindow(2), SGD(0.1), SGD(1e100))
        run = distil(student, GradientMatching(real), distiller, start(distiller, s), 0, 5)
        next(run)
        with pytest.raises(Diverged, match=r"^outer step 1: "):
            next(run)


class TestStarts:
    @given(seed=seeds, starts=st.integers(2, 4), objective=st.sampled_from([PerformanceMatching, GradientMatching]))
    def test_the_meta_gradient_is_the_mean_over_starts(self, seed, starts, objective):
        """One window and one real batch an outer step; the starts follow each other in the draws."""
        rng = np.random.default_rng(seed)
        student, real, s = scene(rng)
        objective, inner = objective(real), SGD(0.1)
        meta = meta_gradient(
            student, objective, Distiller(RandomWindow(4, 2), inner, SGD(1.0), starts=starts), s, np.random.SeedSequence(seed)
        )
        window_rng, init_rng, _, real_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4))
        window, xi = RandomWindow(4, 2).draw(window_rng), real.draw(real_rng)
        assert meta.window == window
        thetas = [student.init(init_rng) for _ in range(starts)]

        def mean_value(moved):
            tapes = [unroll(student, inner, moved, theta, [None] * window.stop, window) for theta in thetas]
            return sum(objective.value_and_grad(tape.end.theta, moved, xi)[0] for tape in tapes) / starts

        if isinstance(objective, PerformanceMatching):
            assert meta.value == pytest.approx(mean_value(s), rel=1e-12)
            parts = [
                one_graph(
                    lambda p, q, _: batch_loss(p, q),
                    lambda p, _: batch_loss(p, to_torch((real.x, real.y)), xi),
                    inner, s, theta, [None] * window.stop, window.start, window.stop,
                ).grad_s
                for theta in thetas
            ]  # fmt: skip
            together = tuple(sum(part[i] for part in parts) / starts for i in range(2))
        else:
            tapes = [unroll(student, inner, s, theta, [None] * window.stop, window) for theta in thetas]
            parts = [objective.along(student, s, tape, xi)[1] for tape in tapes]
            together = tuple(sum(part[i] for part in parts) / starts for i in range(2))
        assert relative_error(meta.grad_s, together) < 1e-9

    @given(seed=seeds, starts=st.integers(1, 4), sketched=st.booleans(), policy=st.sampled_from([RandomWindow(4, 2), AdaptiveWindow(4, 2)]))
    def test_when_a_start_is_carried_out_changes_no_bit(self, seed, starts, sketched, policy):
        """All draws belong to the start they serve, and sums are taken in the order of the starts: here the last one comes first."""
        student, real, s = scene(np.random.default_rng(seed))
        distiller = Distiller(policy, SGD(0.1), SGD(1.0), starts=starts, hessian=LowRankHessian(2) if sketched else None)
        seen = []

        def backwards(works):
            found = [work() for work in reversed(list(works))]
            seen.append(len(found))
            return reversed(found)

        one, other = (
            meta_gradient(student, PerformanceMatching(real), distiller, s, np.random.SeedSequence(seed), **how)
            for how in ({}, {"carry_out": backwards})
        )
        assert seen == [starts]
        assert (one.value, one.window, one.profile, one.cost) == (other.value, other.window, other.profile, other.cost)
        assert all(np.array_equal(a, b) for a, b in zip(one.grad_s, other.grad_s, strict=True))

    @given(seed=seeds)
    def test_fixed_starts_stay_and_fresh_ones_do_not(self, seed):
        """At an outer step size of almost 0 and the whole real sample only the starts can change the objective."""
        rng = np.random.default_rng(seed)
        student, real, s = scene(rng)
        real = RealSample(real.x, real.y)
        for fixed in (True, False):
            distiller = Distiller(FullWindow(2), SGD(0.1), SGD(1e-300), starts=2, fixed_starts=fixed)
            values = [record.value for record in distil(student, PerformanceMatching(real), distiller, start(distiller, s), seed, 3)]
            assert (len(set(values)) == 1) is fixed
        other = distil(student, PerformanceMatching(real), Distiller(FullWindow(2), SGD(0.1), SGD(1e-300), starts=2, fixed_starts=True),
                       start(distiller, s), seed + 1, 1)  # fmt: skip
        assert next(other).value != values[0]

    def test_a_window_given_changes_nothing_else(self):
        student, real, s = scene(np.random.default_rng(3))
        distiller = Distiller(RandomWindow(9, 2), SGD(0.1), SGD(0.1), starts=2)
        seed = np.random.SeedSequence(5)
        drawn = meta_gradient(student, PerformanceMatching(real), distiller, s, np.random.SeedSequence(5))
        same = meta_gradient(student, PerformanceMatching(real), distiller, s, seed, window=drawn.window)
        assert drawn.value == same.value
        assert relative_error(drawn.grad_s, same.grad_s) == 0.0
        whole = meta_gradient(
            student, PerformanceMatching(real), distiller, s, np.random.SeedSequence(5), window=Window(0, drawn.window.stop)
        )
        assert whole.value == drawn.value
        assert relative_error(whole.grad_s, drawn.grad_s) > 1e-3

    def test_no_start_is_refused(self):
        with pytest.raises(ValueError, match="starts=0"):
            Distiller(FullWindow(1), SGD(0.1), SGD(0.1), starts=0)


class TestPhase(InnerProblemConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        """The second of two phases: the loss is that of the union, and S the new rows."""
        theta, s = draw(smooth_points())
        rng, fixed = draw(generators), draw(st.booleans())
        d, width, own = theta[1].shape[1], theta[0].shape[0], s[0].shape[0]
        old = (rng.standard_normal((2, d)), rng.standard_normal(2))
        assume(float(np.min(np.abs(old[0] @ theta[1].T + theta[2]))) > 1e-3)
        labels = np.concatenate([old[1], s[1]]) if fixed else None
        problems = tuple(Student(d, width, "gaussian", labels=None if labels is None else labels[:m]) for m in (2, 2 + own))
        keep = slice(0, 1) if fixed else slice(0, 2)
        phase = Phase(problems, (old[keep],), SGD(0.05), 2)

        def loss(theta, new, xi):
            y = labels if fixed else np.concatenate([old[1], to_numpy(new[1])])
            return float(two_layer_loss(to_torch(theta), to_torch((np.concatenate([old[0], to_numpy(new[0])]), y))))

        return ProblemCase(phase, theta, s[keep], None, loss)


def phased(rng, sizes=(2, 3), d=3):
    student = Student(d, 6, "gaussian", init_scale=0.8)
    subsets = tuple((rng.standard_normal((m, d)), rng.standard_normal(m)) for m in sizes)
    return (student,) * len(sizes), subsets, RealSample(rng.standard_normal((12, d)), rng.standard_normal(12), batch=8)


class TestPhases:
    @pytest.mark.parametrize("kind", OPTIMISERS)
    @given(data=st.data(), rng=generators, seed=seeds)
    def test_meta_gradient_of_a_later_stage(self, kind, data, rng, seed):
        """Against one autograd graph over the union, and against differences of the whole curriculum run anew."""
        problems, subsets, real = phased(rng)
        inner = data.draw(OPTIMISERS[kind])
        phase = Phase(problems, subsets[:1], inner, 3)
        meta = meta_gradient(
            phase, PerformanceMatching(real), Distiller(FullWindow(3), inner, SGD(1.0)), subsets[1], np.random.SeedSequence(seed)
        )
        init_rng, real_rng = (np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[k]) for k in (1, 3))
        theta, xi = problems[0].init(init_rng), real.draw(real_rng)
        middle = train(problems, subsets[:1], inner, 3, theta, rng)
        tape = unroll(problems[0], inner, union(subsets), middle, [None] * 3, Window(0, 3))
        assume(away_from_kinks(tape, union(subsets), real))
        sample = to_torch((real.x, real.y))
        oracle = one_graph(
            lambda p, q, _: batch_loss(p, q), lambda p, _: batch_loss(p, sample, xi), inner, union(subsets), middle, [None] * 3, 0, 3
        )
        assert meta.value == pytest.approx(oracle.value, rel=1e-10)
        own = tuple(part[2:] for part in oracle.grad_s)
        assert norm(add(meta.grad_s, scale(-1.0, own))) <= 1e-9 * norm(oracle.grad_s) + 1e-13

        def curriculum(moved):
            end = train(problems, (subsets[0], moved), inner, 3, theta, rng)
            return two_layer.loss(end, (real.x[xi], real.y[xi]))

        if kind != "adam":  # Adam's first step is a bare sign, where a difference sees a jump
            assert norm(add(meta.grad_s, scale(-1.0, dense_gradient(curriculum, subsets[1])))) <= 1e-5 * norm(meta.grad_s) + 1e-8

    @given(seed=seeds, stop=st.integers(0, 6), outer=st.sampled_from([SGD(0.1), Momentum(0.1), Adam(0.02)]))
    def test_a_continued_run_is_the_uninterrupted_one(self, seed, stop, outer):
        problems, subsets, real = phased(np.random.default_rng(seed), sizes=(2, 1))
        distiller, objective = Distiller(RandomWindow(4, 2), SGD(0.1), outer, NormClip()), PerformanceMatching(real)
        whole = list(distil_in_phases(problems, objective, distiller, subsets, seed, 3))
        first = list(islice(distil_in_phases(problems, objective, distiller, subsets, seed, 3), stop))
        state = first[-1].state if first else None
        again = first + list(distil_in_phases(problems, objective, distiller, subsets, seed, 3, state))
        assert [(r.phase, r.record.step) for r in again] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        for one, other in zip(whole, again, strict=True):
            assert (one.record.value, one.record.window) == (other.record.value, other.record.window)
            assert relative_error(union(one.state.subsets), union(other.state.subsets)) == 0.0
        assert relative_error(again[-1].state.past[0], again[2].state.subsets[0]) == 0.0, "a finished subset stays"
        assert again[2].state.past == ()

    @given(seed=seeds)
    def test_one_stage_is_the_plain_loop(self, seed):
        problems, subsets, real = phased(np.random.default_rng(seed), sizes=(3,))
        distiller, objective = Distiller(FullWindow(3), SGD(0.1), Adam(0.02)), PerformanceMatching(real)
        own = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        plain = list(distil(problems[0], objective, distiller, start(distiller, subsets[0]), own, 2))
        for mine, theirs in zip(distil_in_phases(problems, objective, distiller, subsets, seed, 2), plain, strict=True):
            assert mine.record.value == theirs.value
            assert relative_error(mine.state.outer.s, theirs.state.s) == 0.0

    def test_divergence_in_a_stage_is_named(self):
        problems, subsets, real = phased(np.random.default_rng(1))
        distiller = Distiller(FullWindow(3), SGD(0.1), SGD(1e100))
        with pytest.raises(Diverged, match=r"^outer step 1: inner run diverged"):
            list(distil_in_phases(problems, PerformanceMatching(real), distiller, subsets, 0, 2))

    def test_bad_stages_are_refused(self):
        problems, subsets, real = phased(np.random.default_rng(1))
        with pytest.raises(ValueError, match="1 problems, 1 earlier subsets"):
            Phase(problems[:1], subsets[:1], SGD(0.1), 2)
        with pytest.raises(ValueError, match="steps=0"):
            Phase(problems, (), SGD(0.1), 0)
        with pytest.raises(ValueError, match="1 problems, 2 subsets"):
            list(distil_in_phases(problems[:1], PerformanceMatching(real), Distiller(FullWindow(1), SGD(0.1), SGD(0.1)), subsets, 0, 1))


@pytest.mark.parametrize("scale_of_start", [0.0, -1.0, math.nan, math.inf])
def test_bad_scales_of_the_start_are_refused(scale_of_start):
    with pytest.raises(ValueError, match=f"init_scale={scale_of_start}"):
        Student(2, 4, init_scale=scale_of_start)


@given(seed=seeds, factor=st.floats(0.01, 10.0))
def test_the_scale_multiplies_the_whole_start(seed, factor):
    one, other = (Student(3, 4, init_scale=k).init(np.random.default_rng(seed)) for k in (1.0, factor))
    assert relative_error(other, scale(factor, one)) < 1e-15
