"""The adaptive window: the conformance suite, and the laws of position and length over every policy that construction admits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.conformance import PolicyCase, WindowPolicyConformance
from tests.strategies import generators, scales, seeds
from theory.distill.adaptive import CHANGES, PLACEMENTS, SCORES, AdaptiveWindow
from theory.distill.problem import Diverged
from theory.distill.stages import Stage
from theory.distill.truncation import RandomWindow, Window

stages = st.sampled_from(list(Stage))


@st.composite
def policies(draw, max_horizon=300, max_positions=None):
    horizon = draw(st.integers(1, max_horizon))
    base = draw(st.integers(1 if max_positions is None else max(1, horizon - max_positions + 1), horizon))
    return AdaptiveWindow(
        horizon,
        base,
        draw(st.integers(0, min(base - 1, horizon - base))),
        draw(scales(0.1, 10.0)),
        draw(st.sampled_from(sorted(SCORES))),
        draw(st.sampled_from(sorted(CHANGES))),
        draw(st.sampled_from(PLACEMENTS)),
    )


@st.composite
def profiles(draw, horizon):
    """Gradient norms as runs have them (decaying, noisy), and as they should not (constant, few values, zeros, huge)."""
    rng = draw(generators)
    t = np.arange(horizon)
    kind = draw(st.sampled_from(["decaying", "noisy", "constant", "few", "zero", "huge"]))
    g = {
        "decaying": lambda: 6.0 * np.exp(-t / 7.0) + 1e-3 * rng.random(horizon),
        "noisy": lambda: rng.random(horizon),
        "constant": lambda: np.full(horizon, 0.1),
        "few": lambda: rng.integers(0, 3, horizon).astype(float),
        "zero": lambda: np.zeros(horizon),
        "huge": lambda: 10.0 ** rng.uniform(-300, 300, horizon),
    }[kind]()
    return tuple(map(float, g))


@st.composite
def placed(draw, **limits):
    policy = draw(policies(**limits))
    return policy.at(draw(stages), draw(profiles(policy.horizon)))


class TestAdaptiveWindow(WindowPolicyConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        found = draw(placed(max_positions=13))
        policy = found.policy
        likely = tuple(found.window(i) for i, p in enumerate(found.probabilities) if p > 0.05)
        return PolicyCase(found, likely, (policy.base - policy.spread, policy.base + policy.spread))


@given(found=placed())
def test_law_and_windows_keep_their_bounds_at_every_position(found):
    """One property over everything that construction admits, each position looked at rather than drawn."""
    policy = found.policy
    p = found.probabilities
    assert len(p) == len(found.lengths) == policy.horizon - policy.base + 1
    assert np.all(np.isfinite(p))
    assert np.all(p >= 0)
    assert abs(p.sum() - 1.0) < 1e-12
    assert 1.0 - 1e-9 <= found.effective_positions <= len(p) * (1 + 1e-9)
    for i in range(len(p)):
        window = found.window(i)
        assert 0 <= window.start < window.stop <= policy.horizon
        assert policy.base - policy.spread <= window.length == found.lengths[i] <= policy.base + policy.spread


@given(found=placed())
def test_a_position_is_the_last_or_the_first_step_of_its_window(found):
    """The edge moves a window only where it would not fit, and then by no more than its length exceeds the base."""
    policy = found.policy
    for i, length in enumerate(found.lengths):
        window = found.window(i)
        if policy.placement == "end":
            moved = window.stop - 1 - (policy.base - 1 + i)
            assert moved == 0 or (window.start == 0 and 0 < moved <= length - policy.base)
        else:
            moved = i - window.start
            assert moved == 0 or (window.stop == policy.horizon and 0 < moved <= length - policy.base)


@given(policy=policies(), data=st.data())
def test_larger_norms_are_likelier_early_and_unlikelier_late(policy, data):
    profile = data.draw(profiles(policy.horizon))
    first = policy.base - 1 if policy.placement == "end" else 0
    g = np.asarray(profile)[first : first + policy.horizon - policy.base + 1]
    order = np.argsort(g, kind="stable")
    for stage, sign in ((Stage.EARLY, 1.0), (Stage.LATE, -1.0)):
        p = policy.at(stage, profile).probabilities
        assert np.all(sign * np.diff(p[order]) >= 0)
        if g.max() > g.min():
            assert sign * (p[order[-1]] - p[order[0]]) > 0
    assert np.all(policy.at(Stage.MIDDLE, profile).probabilities == 1.0 / len(g))


@given(policy=policies(), rng=generators)
def test_late_is_early_of_the_mirrored_profile(policy, rng):
    g = rng.integers(0, 1024, policy.horizon) / 1024
    late, mirrored = policy.at(Stage.LATE, tuple(g)).probabilities, policy.at(Stage.EARLY, tuple(1.0 - g)).probabilities
    np.testing.assert_allclose(late, mirrored, rtol=1e-9)


@given(policy=policies(), rng=generators, shift=st.sampled_from([0.0, 1.0, 8.0]), factor=scales())
def test_what_leaves_the_law_alone(policy, rng, shift, factor):
    """A shift of the profile; its scale, where scores are standardised or the temperature goes with it; the order of positions."""
    g = rng.integers(0, 1024, policy.horizon) / 1024
    p = policy.at(Stage.EARLY, tuple(g)).probabilities
    np.testing.assert_allclose(policy.at(Stage.EARLY, tuple(g + shift)).probabilities, p, rtol=1e-9)
    scaled = policy if policy.scores == "standardised" else replace(policy, temperature=factor * policy.temperature)
    np.testing.assert_allclose(scaled.at(Stage.EARLY, tuple(factor * g)).probabilities, p, rtol=1e-9)
    count = len(p)
    first = policy.base - 1 if policy.placement == "end" else 0
    order = rng.permutation(count)
    shuffled = g.copy()
    shuffled[first : first + count] = g[first : first + count][order]
    np.testing.assert_allclose(policy.at(Stage.EARLY, tuple(shuffled)).probabilities, p[order], rtol=1e-9)


@given(policy=policies(), rng=generators)
def test_temperature_runs_from_the_extreme_to_uniform(policy, rng):
    g = tuple(map(float, rng.permutation(policy.horizon)))
    count = policy.horizon - policy.base + 1
    first = policy.base - 1 if policy.placement == "end" else 0
    cold, hot = replace(policy, temperature=1e-300), replace(policy, temperature=1e9)
    for stage, best in ((Stage.EARLY, np.argmax), (Stage.LATE, np.argmin)):
        law = cold.at(stage, g)
        assert law.probabilities[best(g[first : first + count])] == 1.0
        assert law.effective_positions == 1.0
        np.testing.assert_allclose(hot.at(stage, g).probabilities, 1.0 / count, rtol=1e-5)
        assert hot.at(stage, g).effective_positions == pytest.approx(count)


@given(policy=policies(), stage=stages, level=scales(1e-8, 1e8))
def test_equal_norms_leave_all_positions_alike_and_the_base_length(policy, stage, level):
    for profile in (None, (level,) * policy.horizon):
        law = policy.at(stage, profile)
        np.testing.assert_allclose(law.probabilities, 1.0 / len(law.probabilities), rtol=1e-12)
        assert set(law.lengths) == {policy.base}


@given(policy=policies(), data=st.data(), stage=stages)
def test_length_rises_with_the_change_of_the_norm(policy, data, stage):
    profile = data.draw(profiles(policy.horizon))
    law = policy.at(stage, profile)
    change = np.abs(np.diff(profile))
    change = np.concatenate([change[:1], change]) if len(change) else np.zeros(1)
    first = policy.base - 1 if policy.placement == "end" else 0
    change = change[first : first + len(law.lengths)]
    lengths = law.lengths[np.argsort(change, kind="stable")]
    assert np.all(np.diff(lengths) >= 0)
    distinct = np.sort(change)
    if policy.change != "sigmoid" and len(distinct) > 1 and distinct[0] < distinct[1] and distinct[-2] < distinct[-1]:
        assert (lengths[0], lengths[-1]) == (policy.base - policy.spread, policy.base + policy.spread), "the whole range is used"
    assert np.array_equal(law.lengths, policy.at(Stage.MIDDLE, profile).lengths), "the length does not depend on the stage"


@pytest.mark.parametrize(("horizon", "base", "spread"), [(200, 40, 10), (300, 100, 30)])
def test_the_base_never_moves(horizon, base, spread):
    """A thousand outer steps through every stage: lengths stay about the base they were given (the released code lets it drift)."""
    policy = AdaptiveWindow(horizon, base, spread)
    rng = np.random.default_rng(horizon)
    lengths = []
    for k in range(1000):
        window = policy.at(list(Stage)[k % 3], tuple(rng.random(horizon))).draw(rng)
        assert window.stop <= horizon
        lengths.append(window.length)
    assert policy == AdaptiveWindow(horizon, base, spread)
    assert (min(lengths), max(lengths)) == (base - spread, base + spread)
    assert abs(np.mean(lengths) - base) < 4 * spread / (3 * 1000) ** 0.5, "uniform ranks: four standard errors"


@given(policy=policies(), seed=seeds, data=st.data())
def test_without_spread_the_middle_stage_is_the_random_window_bit_for_bit(policy, seed, data):
    law = replace(policy, spread=0).at(Stage.MIDDLE, data.draw(profiles(policy.horizon)))
    mine, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    rat = RandomWindow(policy.horizon, policy.base)
    assert [law.draw(mine) for _ in range(30)] == [rat.draw(theirs) for _ in range(30)]
    assert mine.bit_generator.state == theirs.bit_generator.state


@pytest.mark.parametrize(("scores", "placement"), [("standardised", "end"), ("norms", "start")])
@pytest.mark.parametrize("stage", list(Stage))
def test_drawn_frequencies_are_those_of_the_law(stage, scores, placement):
    """Chi-square of 20,000 draws over the 21 positions of a decaying profile, cells of at least 5 expected draws."""
    policy = AdaptiveWindow(30, 10, 0, 0.7, scores, "rank", placement)
    law = policy.at(stage, tuple(3.0 * np.exp(-np.arange(30) / 5.0)))
    rng = np.random.default_rng([len(scores), len(placement), len(stage)])
    counts = np.bincount([law.draw(rng).start for _ in range(20_000)], minlength=21)
    expected = 20_000 * law.probabilities
    large = expected >= 5
    observed, expected = np.append(counts[large], counts[~large].sum()), np.append(expected[large], expected[~large].sum())
    kept = expected > 0
    assert chisquare(observed[kept], expected[kept]).pvalue > 1e-3


def test_how_selective_the_default_is():
    """Norms of a ConvNet at T = 200, of the order 6 falling to 5e-4: raw norms at temperature 1 nearly one step early and no choice
    at all late; standardised, both stages choose."""
    t = np.arange(200)
    profile = tuple(6.0 * np.exp(-1.2 * t**0.5) + 5e-4)
    effective = {
        (scores, stage): AdaptiveWindow(200, 40, 10, scores=scores, placement="start").at(stage, profile).effective_positions
        for scores in SCORES
        for stage in (Stage.EARLY, Stage.LATE)
    }
    assert effective["norms", Stage.EARLY] < 0.5 * 161
    assert effective["norms", Stage.LATE] > 0.98 * 161
    assert effective["standardised", Stage.EARLY] < effective["norms", Stage.EARLY]
    assert effective["standardised", Stage.LATE] < effective["norms", Stage.LATE]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_profile_stops_the_run(bad):
    with pytest.raises(Diverged, match=rf"gradient norm at inner step 2 is {bad}"):
        AdaptiveWindow(4, 2).at(Stage.EARLY, (1.0, 1.0, bad, 1.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AdaptiveWindow(10, 3, 3), "base=3, spread=3, horizon=10"),
        (lambda: AdaptiveWindow(10, 8, 3), "base=8, spread=3, horizon=10"),
        (lambda: AdaptiveWindow(10, 0), "base=0"),
        (lambda: AdaptiveWindow(10, 5, -1), "spread=-1"),
        (lambda: AdaptiveWindow(10, 5, 1, 0.0), "temperature=0.0"),
        (lambda: AdaptiveWindow(10, 5, 1, math.nan), "temperature=nan"),
        (lambda: AdaptiveWindow(10, 5, scores="ranks"), "unknown scores 'ranks'; known: standardised, norms"),
        (lambda: AdaptiveWindow(10, 5, change="softmax"), "unknown change 'softmax'"),
        (lambda: AdaptiveWindow(10, 5, placement="middle"), "unknown placement 'middle'"),
        (lambda: AdaptiveWindow(10, 5, profile="probe"), "unknown profile 'probe'"),
        (lambda: AdaptiveWindow(3, 2).at(Stage.EARLY, (1.0, 1.0)), "2 given, horizon=3"),
        (lambda: AdaptiveWindow(3, 2).at(Stage.EARLY, (1.0, -1.0, 0.0)), "-1.0"),
    ],
)
def test_impossible_policies_and_profiles_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_windows_at_the_edges():
    """T = 6, M = 3, d = 1, the largest change at the first position (END) or the last (START): its window of 4 steps is pushed inside."""
    end = AdaptiveWindow(6, 3, 1, placement="end").at(Stage.MIDDLE, (0.0, 0.0, 9.0, 8.0, 8.0, 6.0))
    assert [end.window(i) for i in range(4)] == [Window(0, 4), Window(1, 4), Window(3, 5), Window(3, 6)]
    start = AdaptiveWindow(6, 3, 1, placement="start").at(Stage.MIDDLE, (0.0, 0.0, 1.0, 9.0, 0.0, 0.0))
    assert [start.window(i) for i in range(4)] == [Window(0, 2), Window(1, 3), Window(2, 5), Window(2, 6)]
