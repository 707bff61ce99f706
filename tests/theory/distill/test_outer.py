"""The norm clip, the projection and the running average of the data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import relative_error, to_numpy
from tests.strategies import generators, scales
from theory.distill.inner_optim import SGD, Adam, Momentum
from theory.distill.leaves import norm, scale
from theory.distill.outer import NormClip, OuterOptimiser, PerLeaf, ema, on_sphere
from theory.distill.problem import Diverged

clips = st.builds(
    NormClip, factor=st.floats(0.2, 4.0), decay=st.floats(0.0, 0.99), spike=st.one_of(st.just(math.inf), st.floats(1.0, 20.0))
)


def of_norm(n):
    return (np.array([0.6 * n, 0.0]), np.array([[0.8 * n]]))


@given(clip=clips, norms=st.lists(scales(), min_size=1, max_size=8))
def test_average_follows_its_recursion_and_bounds_the_norm(clip, norms):
    average = None
    for n in norms:
        g = of_norm(n)
        before = average
        clipped, average = clip(g, before)
        expected = n if before is None else clip.decay * before + (1 - clip.decay) * min(n, clip.spike * before)
        assert average == pytest.approx(expected, rel=1e-12)
        assert norm(clipped) <= clip.factor * average * (1 + 1e-12)
        assert norm(clipped) <= n * (1 + 1e-12)
        assert relative_error(scale(n / norm(clipped), clipped), g) < 1e-12, "the direction is kept"
        if before is not None:
            assert average <= before * (clip.decay + (1 - clip.decay) * clip.spike) * (1 + 1e-12), "a spike is bounded"


@given(n=scales(), steps=st.integers(1, 20))
def test_constant_norms_are_never_clipped(xp, n, steps):
    clip, average = NormClip(), None
    g = tuple(xp.asarray(x) for x in of_norm(n))
    for _ in range(steps):
        clipped, average = clip(g, average)
        assert all(np.array_equal(to_numpy(a), to_numpy(b)) for a, b in zip(clipped, g, strict=True))


def test_released_rule_lets_a_spike_through_at_its_own_rate():
    """Norm 1, then a spike of n: the average is .9 + .1 n and the clipped norm 1.8 + .2 n (spike = inf), bounded by 3.8 with spike = 10."""
    for spike, expected in ((math.inf, 1.8 + 0.2 * 1000.0), (10.0, 2 * (0.9 + 0.1 * 10.0))):
        clip = NormClip(spike=spike)
        _, average = clip(of_norm(1.0), None)
        assert average == 1.0
        clipped, _ = clip(of_norm(1000.0), average)
        assert norm(clipped) == pytest.approx(expected)


def test_zero_gradients_pass():
    clipped, average = NormClip()(of_norm(0.0), None)
    assert norm(clipped) == average == 0.0


@pytest.mark.parametrize("spike", [10.0, math.inf])
def test_an_average_of_zero_starts_anew(spike):
    """Norms 0, 0, 1, 1, 1 pass as they are: the average counts from the first norm that is not 0."""
    clip, average, seen = NormClip(spike=spike), None, []
    for n in (0.0, 0.0, 1.0, 1.0, 1.0):
        clipped, average = clip(of_norm(n), average)
        seen.append((norm(clipped), average))
    assert seen == [(n, n) for n in (0.0, 0.0, 1.0, 1.0, 1.0)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("average", [None, 1.0])
def test_non_finite_gradients_stop_the_run(bad, average):
    with pytest.raises(Diverged, match=r"meta-gradient norm is (nan|inf)"):
        NormClip()((np.array([1.0, bad]),), average)


@pytest.mark.parametrize(
    "kwargs", [{"factor": 0.0}, {"factor": math.nan}, {"decay": 1.0}, {"decay": -0.1}, {"spike": 0.5}, {"spike": math.nan}]
)
def test_bad_clips_are_refused(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        NormClip(**kwargs)


@given(rng=generators, decay=st.floats(0.0, 0.99), steps=st.integers(1, 10))
def test_running_average_is_the_geometric_sum(xp, rng, decay, steps):
    xs = rng.standard_normal((steps + 1, 3))
    average = (xp.asarray(xs[0]),)
    for x in xs[1:]:
        average = ema(average, (xp.asarray(x),), decay)
    weights = (1 - decay) * decay ** np.arange(steps)[::-1]
    expected = decay**steps * xs[0] + weights @ xs[1:]
    np.testing.assert_allclose(to_numpy(average[0]), expected, atol=1e-13 * np.max(np.abs(xs)))


@given(rng=generators, shape=st.sampled_from([(3, 4), (2, 3, 2, 2)]), radius=scales())
def test_rows_come_to_the_sphere_in_their_own_direction(xp, rng, shape, radius):
    images, labels = rng.standard_normal(shape), rng.standard_normal(shape[0])
    images[0] = 0.0
    projected, same = (to_numpy(x) for x in on_sphere((xp.asarray(images), xp.asarray(labels)), radius))
    rows, before = projected.reshape(shape[0], -1), images.reshape(shape[0], -1)
    assert not rows[0].any(), "a row of zeros has no direction"
    np.testing.assert_allclose(rows[1:], radius * before[1:] / np.linalg.norm(before[1:], axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(same, labels)


@given(rng=generators, steps=st.integers(1, 6))
def test_each_leaf_moves_as_it_would_alone(xp, rng, steps):
    """Images, labels, step size: three optimisers with 1, 2 and 0 slots, a leaf of each number of axes."""
    each = (Momentum(10.0, 0.5), Adam(0.1), SGD(1e-3))
    together, shapes = PerLeaf(each), ((4, 2, 2), (4,), ())
    s = tuple(xp.asarray(rng.standard_normal(shape)) for shape in shapes)
    slots, alone = together.init(s), [(one.init((x,)), (x,)) for one, x in zip(each, s, strict=True)]
    assert [len(own) for own in slots] == [1, 2, 0]
    for t in range(steps):
        g = tuple(xp.asarray(rng.standard_normal(shape)) for shape in shapes)
        s, slots = together.step(s, slots, t, g)
        for k, one in enumerate(each):
            theta, own = one.step(alone[k][1], alone[k][0], t, (g[k],))
            alone[k] = (own, theta)
            assert np.array_equal(to_numpy(s[k]), to_numpy(theta[0]))
            assert all(np.array_equal(to_numpy(a), to_numpy(b[0])) for a, b in zip(slots[k], own, strict=True))
    assert isinstance(together, OuterOptimiser)


def test_momentum_of_images_is_that_of_the_released_code():
    """v <- 0.5 v + g, x <- x - lr v: constant gradients add up to twice the plain step."""
    outer = PerLeaf((Momentum(100.0, 0.5),))
    s, g = (np.zeros(1),), (np.ones(1),)
    slots, seen = outer.init(s), []
    for t in range(3):
        s, slots = outer.step(s, slots, t, g)
        seen.append(float(s[0][0]))
    assert seen == [-100.0, -250.0, -425.0]


def test_an_optimiser_a_leaf_is_required():
    with pytest.raises(ValueError, match="2 optimisers, 1 leaves"):
        PerLeaf((SGD(0.1), SGD(0.1))).init((np.zeros(2),))
