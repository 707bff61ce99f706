"""The student as an inner problem, in every namespace, and its loss on real data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.conformance import InnerProblemConformance, ObjectiveCase, ObjectiveConformance, ProblemCase
from tests.oracles import relative_error, to_numpy, to_torch, two_layer_loss
from tests.strategies import generators, seeds, smooth_points
from theory import two_layer
from theory.distill.matching import PerformanceMatching


def host_loss(labels, theta, s, xi):
    """The loss by torch, on the rows that the step sees."""
    x, y = (to_numpy(s[0]), to_numpy(s[1] if labels is None else labels))
    rows = slice(None) if xi is None else xi
    return float(two_layer_loss(to_torch(theta), to_torch((x[rows], y[rows]))))


@st.composite
def cases(draw, xp):
    """Students of any small shape, on all of S or a sub-batch, with learned or fixed labels."""
    theta, s = draw(smooth_points())
    m, d = s[0].shape
    batch = draw(st.one_of(st.none(), st.integers(1, m)))
    fixed = draw(st.booleans())
    labels = xp.asarray(s[1]) if fixed else None
    width = theta[0].shape[0]
    problem = Student(d, width, "gaussian", points=m, batch=batch, labels=labels, xp=xp)
    inputs = tuple(problem.asarray(x) for x in s[: 1 if fixed else 2])
    return ProblemCase(
        problem,
        tuple(problem.asarray(x) for x in theta),
        inputs,
        problem.draw(draw(generators)),
        lambda theta, s, xi: host_loss(labels, theta, s, xi),
    )


class TestStudent(InnerProblemConformance):
    @pytest.fixture(autouse=True)
    def _namespace(self, xp):
        type(self).xp = xp

    @classmethod
    def cases(cls):
        return cases(cls.xp)


class TestRealSample(ObjectiveConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        theta, real = draw(smooth_points())
        batch = draw(st.one_of(st.none(), st.integers(1, real[0].shape[0])))
        return ObjectiveCase(PerformanceMatching(RealSample(*real, batch=batch)), theta, (real[0] + 1.0,))


@given(data=st.data(), rng=generators)
def test_points_outside_the_batch_get_exactly_nothing(xp, data, rng):
    case = data.draw(cases(xp))
    c = tuple(case.problem.asarray(rng.standard_normal(x.shape)) for x in case.theta)
    grad_s = case.problem.mixed(case.theta, case.s, case.xi, c)
    seen = np.arange(case.s[0].shape[0]) if case.xi is None else case.xi
    unseen = np.setdiff1d(np.arange(case.s[0].shape[0]), seen)
    assert all(np.all(to_numpy(part)[unseen] == 0.0) for part in grad_s)
    inside = two_layer.mixed(case.theta, case.problem._seen(case.s, case.xi), c)
    for part, expected in zip(grad_s, inside, strict=False):
        np.testing.assert_array_equal(to_numpy(part)[seen], to_numpy(expected))


@given(seed=seeds, half=st.integers(1, 6), d=st.integers(1, 5))
def test_symmetric_start_is_the_zero_function(xp, seed, half, d):
    rng = np.random.default_rng(seed)
    student = Student(d, 2 * half, xp=xp)
    a, w, b = student.init(rng)
    np.testing.assert_array_equal(to_numpy(a)[:half], -to_numpy(a)[half:])
    np.testing.assert_array_equal(to_numpy(w)[:half], to_numpy(w)[half:])
    assert set(np.abs(to_numpy(a))) == {1.0}
    assert np.all(to_numpy(b) == 0.0)
    np.testing.assert_allclose(np.linalg.norm(to_numpy(w), axis=1), 1.0, rtol=1e-14)
    x = student.asarray(rng.standard_normal((7, d)))
    assert np.max(np.abs(to_numpy(two_layer.value((a, w, b), x)))) < 1e-14 * (1 + half)


def test_gaussian_start_has_its_stated_variances():
    """Second moments of 2e5 entries lie within 4 standard errors (sqrt(2/n) relative) of 1/L and 1/d."""
    a, w, b = Student(8, 25_000, "gaussian").init(np.random.default_rng(0))
    for sample, variance in ((a, 1 / 25_000), (w, 1 / 8)):
        assert abs(np.mean(sample**2) / variance - 1) < 4 * np.sqrt(2 / sample.size)
        assert abs(np.mean(sample)) < 4 * np.sqrt(variance / sample.size)
    assert not b.any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_start_is_the_same_in_every_namespace(xp, dtype):
    here = Student(3, 4, dtype=dtype).init(np.random.default_rng(5))
    there = Student(3, 4, xp=xp, dtype=dtype).init(np.random.default_rng(5))
    assert all(x.dtype == getattr(xp, dtype) for x in there)
    assert relative_error(there, here) == 0.0


@given(rng=generators, m=st.integers(1, 8), data=st.data())
def test_batches_are_distinct_rows(rng, m, data):
    batch = data.draw(st.integers(1, m))
    rows = Student(2, 2, points=m, batch=batch).draw(rng)
    assert rows.shape == (batch,)
    assert len(set(rows.tolist())) == batch
    assert 0 <= rows.min() <= rows.max() < m


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"width": 3}, "even width: L=3"),
        ({"init_kind": "zeros"}, "unknown initialisation 'zeros'"),
        ({"d": 0}, "d=0"),
        ({"batch": 2}, "points=None"),
        ({"batch": 5, "points": 4}, "batch=5"),
        ({"batch": 0, "points": 4}, "batch=0"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_bad_students_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Student(**{"d": 2, "width": 4, **kwargs})


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match="N=0"):
        RealSample(np.ones((0, 2)), np.ones(0))
    with pytest.raises(ValueError, match="batch=3"):
        RealSample(np.ones((2, 2)), np.ones(2), batch=3)
