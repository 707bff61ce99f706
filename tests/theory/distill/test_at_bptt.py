"""AT-BPTT in the outer loop: what it shares with RaT-BPTT bit for bit, where its profile comes from, what it costs, how it continues."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.oracles import relative_error
from tests.strategies import optimisers, seeds
from tests.theory.distill.test_adjoint import Counting, scene_of
from tests.theory.distill.test_distiller import identical, scene
from theory.distill.adaptive import AdaptiveWindow, latest
from theory.distill.adjoint import cut, unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.distiller import Distiller, distil, meta_gradient, observed, start
from theory.distill.inner_optim import SGD, Adam
from theory.distill.leaves import norm, size
from theory.distill.matching import PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.stages import Stage, StageClock
from theory.distill.truncation import FixedWindow, RandomWindow, Window

SOURCES = ("previous", "current")


@pytest.mark.parametrize("profile", SOURCES)
@pytest.mark.parametrize("placement", ["end", "start"])
@given(seed=seeds, inner=optimisers, base=st.integers(1, 6))
def test_without_spread_the_middle_stage_is_rat_bptt_bit_for_bit(profile, placement, seed, inner, base):
    student, objective, s = scene(seed)
    adaptive = Distiller(AdaptiveWindow(6, base, 0, placement=placement, profile=profile), inner, Adam(0.02), NormClip())
    rat = replace(adaptive, windows=RandomWindow(6, base))
    mine = distil(student, objective, adaptive, start(adaptive, s, Stage.MIDDLE), seed, 3)
    for one, other in zip(mine, distil(student, objective, rat, start(rat, s), seed, 3), strict=True):
        identical(one, other)


def test_so_it_is_with_several_starts():
    """The first step runs on to T for its profile; that must not move the draws of the second start."""
    student, objective, s = scene(0)
    adaptive = Distiller(AdaptiveWindow(9, 3), SGD(0.1), SGD(0.1), starts=3)
    rat = replace(adaptive, windows=RandomWindow(9, 3))
    mine = distil(student, objective, adaptive, start(adaptive, s, Stage.MIDDLE), 5, 4)
    for one, other in zip(mine, distil(student, objective, rat, start(rat, s), 5, 4), strict=True):
        identical(one, other)


@pytest.mark.parametrize("profile", SOURCES)
@pytest.mark.parametrize("hessian", [None, LowRankHessian(2, 1, 0, 2)], ids=["exact", "low rank"])
def test_a_continued_run_is_the_uninterrupted_one(profile, hessian):
    """Stage, profile and projection included, an accuracy fed after every step, wherever the run is taken up."""
    student, objective, s = scene(6)
    policy, clock = AdaptiveWindow(5, 3, 1, profile=profile), StageClock(3, 5.0, 5.0)
    distiller = Distiller(policy, Adam(0.05), Adam(0.02), NormClip(), 0.9, clock=clock, hessian=hessian, sphere=1.5)
    accuracies = (10.0, 20.0, 21.0, 22.0, 23.0)

    def run(state, until):
        records = []
        while state.step < until:
            records += distil(student, objective, distiller, state, 8, state.step + 1)
            state = observed(distiller, records[-1].state, accuracies[records[-1].state.step])
        return records, state

    first = observed(distiller, start(distiller, s), accuracies[0])
    whole, end = run(first, 4)
    assert end.stage.stage is Stage.LATE
    assert len(end.profile) == 5
    for stop in range(4):
        after, again = run(observed(distiller, whole[stop].state, accuracies[stop + 1]), 4)
        assert (again.stage, again.profile) == (end.stage, end.profile)
        for one, other in zip(whole[stop + 1 :], after, strict=True):
            identical(one, other)
            assert (one.effective_positions, one.cost, one.state.profile) == (other.effective_positions, other.cost, other.state.profile)


@given(seed=seeds, window=st.builds(lambda stop, start: Window(start % stop, stop), st.integers(1, 6), st.integers(0, 5)), inner=optimisers)
def test_a_cut_tape_is_that_of_the_shorter_run(seed, window, inner):
    scene = scene_of(np.random.default_rng(seed), 6, batch=2)
    whole = unroll(scene.student, inner, scene.s, scene.theta, scene.noises, Window(0, 6), profile=True)
    part, direct = cut(whole, window), unroll(scene.student, inner, scene.s, scene.theta, scene.noises, window)
    on = unroll(scene.student, inner, scene.s, scene.theta, scene.noises, window, profile=True, steps=6)
    for tape in (part, on):
        assert [entry.state.t for entry in tape.entries] == [entry.state.t for entry in direct.entries]
        assert tape.end.t == direct.end.t == window.stop
        assert relative_error(tape.end.theta, direct.end.theta) == 0.0
        assert tape.gradient_norms == whole.gradient_norms
        for mine, theirs in zip(tape.entries, direct.entries, strict=True):
            assert relative_error(mine.state.theta, theirs.state.theta) == 0.0
            assert mine.xi is theirs.xi
        for k in range(window.length):
            assert relative_error(tape.gradient(k), direct.gradient(k)) == 0.0


@given(seed=seeds, stage=st.sampled_from(list(Stage)))
def test_the_current_profile_is_that_of_the_run_itself(seed, stage):
    """The window is a draw from the norms of this very run, whose meta-gradient is that of a fixed window there."""
    student, objective, s = scene(seed)
    policy = AdaptiveWindow(8, 3, 2, profile="current")
    distiller = Distiller(policy, SGD(0.1), SGD(0.1))
    meta = meta_gradient(student, objective, distiller, s, np.random.SeedSequence(seed), stage=stage)
    window_rng, init_rng, noise_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    theta, noises = student.init(init_rng), [student.draw(noise_rng) for _ in range(8)]
    tape = unroll(student, SGD(0.1), s, theta, noises, Window(0, 8))
    norms = tuple(norm(tape.gradient(k)) for k in range(8))
    assert meta.profile == norms
    assert meta.window == policy.at(stage, norms).draw(window_rng)
    assert meta.effective_positions == policy.at(stage, norms).effective_positions
    fixed = replace(distiller, windows=FixedWindow(8, meta.window.length, meta.window.start))
    direct = meta_gradient(student, objective, fixed, s, np.random.SeedSequence(seed))
    assert meta.value == direct.value
    assert relative_error(meta.grad_s, direct.grad_s) == 0.0


@given(seed=seeds)
def test_the_previous_profile_is_the_last_norm_seen_at_each_step(seed):
    student, objective, s = scene(seed)
    distiller = Distiller(AdaptiveWindow(8, 3, 2), SGD(0.1), SGD(0.1))
    state = start(distiller, s)
    assert state.profile is None
    known = None
    for record in distil(student, objective, distiller, state, seed, 3):
        child = np.random.SeedSequence(seed, spawn_key=(record.step,))
        alone = meta_gradient(student, objective, distiller, state.s, child, profile=known)
        assert (alone.window, alone.profile) == (record.window, record.state.profile)
        child = np.random.SeedSequence(seed, spawn_key=(record.step,))
        full = meta_gradient(student, objective, replace(distiller, windows=AdaptiveWindow(8, 3, 2, profile="current")), state.s, child)
        if known is None:
            assert record.effective_positions == pytest.approx(6.0), "nothing known yet: every position alike"
            assert record.window.length == 3
        assert record.state.profile[: record.window.stop] == full.profile[: record.window.stop]
        if known is not None:
            assert record.state.profile[record.window.stop :] == known[record.window.stop :]
        assert len(record.state.profile) == 8
        known, state = record.state.profile, record.state


def test_profiles_of_several_starts_are_averaged():
    assert latest([(1.0, 2.0), (3.0, 6.0)], (9.0, 9.0, 5.0)) == (2.0, 4.0, 5.0)
    assert latest([(1.0, 2.0)], None) == (1.0, 2.0)


@pytest.mark.parametrize("profile", SOURCES)
@given(seed=seeds, hessian=st.sampled_from([None, LowRankHessian(2, 1, 0, 2, np.inf)]))
def test_costs_are_those_that_were_paid(profile, seed, hessian):
    """No second run for the profile: T plain steps with the current one, stop with the previous one (T once, at the first step)."""
    student, objective, s = scene(seed)
    problem = Counting(student)
    distiller = Distiller(AdaptiveWindow(8, 3, 2, profile=profile), Adam(0.05), SGD(0.1), hessian=hessian)
    for record in distil(problem, objective, distiller, start(distiller, s), seed, 2):
        window, cost = record.window, record.cost
        whole = profile == "current" or record.step == 0
        assert cost.gradients == problem.calls["gradient"] == (8 if whole else window.stop)
        assert cost.products + cost.hessian_products == problem.calls["second_order"]
        assert (cost.products, cost.mixed) == ((window.length, 0) if hessian is None else (0, window.length))
        assert cost.hessian_products == (0 if hessian is None else 3 * 2 * -(-window.length // 2))
        kept = 8 if profile == "current" else window.length
        assert cost.stored_floats == kept * 3 * size(student.init(np.random.default_rng(0)))
        problem.calls.update(gradient=0, second_order=0)


def test_costs_of_several_starts_add_and_memory_does_not():
    student, objective, s = scene(1)
    one, three = (Distiller(FixedWindow(4, 2), SGD(0.1), SGD(0.1), starts=n) for n in (1, 3))
    single, triple = (meta_gradient(student, objective, d, s, np.random.SeedSequence(0)).cost for d in (one, three))
    assert (triple.gradients, triple.products) == (3 * single.gradients, 3 * single.products) == (12, 6)
    assert triple.stored_floats == single.stored_floats > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_full_rank_hessian_gives_the_exact_meta_gradient(seed):
    student, objective, s = scene(seed)
    exact = Distiller(RandomWindow(6, 3), Adam(0.05, eps=1e-4), SGD(0.1))
    p = size(student.init(np.random.default_rng(0)))
    low = replace(exact, hessian=LowRankHessian(p, 0, 0, max_age=1))
    one, other = (meta_gradient(student, objective, d, s, np.random.SeedSequence(seed)) for d in (exact, low))
    assert (one.window, one.value) == (other.window, other.value)
    assert relative_error(other.grad_s, one.grad_s) <= 1e-10


def test_stages_move_by_observed_accuracies_alone():
    student, objective, s = scene(2)
    free = Distiller(AdaptiveWindow(6, 2, 1), SGD(0.1), SGD(0.1))
    clocked = replace(free, clock=StageClock(3))
    for distiller, after in ((free, Stage.EARLY), (clocked, Stage.MIDDLE)):
        state = observed(distiller, start(distiller, s), 10.0)
        *_, last = distil(student, objective, distiller, state, 0, 2)
        assert last.state.stage == state.stage
        assert observed(distiller, last.state, 10.5).stage.stage is after


@pytest.mark.parametrize("profile", SOURCES)
@pytest.mark.parametrize("stage", list(Stage))
def test_outer_loss_falls_in_every_stage(profile, stage):
    """The scene of the other policies' test: the loss halves within the same 60 outer steps."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((64, 3))
    objective = PerformanceMatching(RealSample(x, np.abs(x[:, 0])))
    distiller = Distiller(AdaptiveWindow(10, 4, 2, profile=profile), SGD(0.3), Adam(0.05), NormClip())
    s = (rng.standard_normal((6, 3)), rng.standard_normal(6))
    state = start(distiller, s, stage)
    values = [record.value for record in distil(Student(3, 16, "gaussian"), objective, distiller, state, 0, 60)]
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:10])


@given(seed=seeds, radius=st.sampled_from([0.5, 1.0, 3.0]))
def test_projected_images_stay_on_their_sphere(seed, radius):
    student, objective, s = scene(seed)
    distiller = Distiller(RandomWindow(4, 2), SGD(0.1), Adam(0.1), sphere=radius)
    state = start(distiller, s)
    np.testing.assert_array_equal(state.s[1], s[1])
    for record in distil(student, objective, distiller, state, seed, 3):
        np.testing.assert_allclose(np.linalg.norm(record.state.s[0], axis=1), radius, rtol=1e-12)
    assert not np.array_equal(record.state.s[0], state.s[0])
    assert np.ptp(np.abs(record.state.s[1])) > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"windows": AdaptiveWindow(4, 2, profile="current"), "starts": 2}, "starts=2, use 'previous'"),
        ({"sphere": 0.0}, "sphere=0.0"),
        ({"sphere": float("nan")}, "sphere=nan"),
    ],
)
def test_what_does_not_go_together_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        replace(Distiller(RandomWindow(4, 2), SGD(0.1), SGD(0.1)), **more)
