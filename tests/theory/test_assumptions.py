"""Every assumption holds on one sound experiment and fails on each of its negative controls; margins cross zero at their bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import generators
from theory import two_layer
from theory.assumptions import ASSUMPTIONS, margins
from theory.margins import Assumption, Experiment, Thresholds, above, assumption, below
from theory.multi_index import HermiteLink, MultiIndexModel, as_backend, draw_model

D, R, L, N, M1, M2 = 24, 2, 120, 300, 32, 130


def sound(rng):
    """An experiment of the theory's own kind on which every applicable assumption holds."""
    model = draw_model(D, R, "quadratic", rng)
    x = rng.standard_normal((N, D))
    design = np.column_stack([np.ones(N), x])
    y = model.clean(x)
    points0 = rng.standard_normal((M1, D))
    hessian = model.B @ model.link.hessian @ model.B.T
    return Experiment(
        model=model,
        degree=2,
        samples=16 * D**2,
        width=L,
        starts=8,
        m1=M1,
        preprocessed=True,
        x=x,
        y=y - design @ np.linalg.lstsq(design, y, rcond=None)[0],
        theta0=two_layer.symmetric_init(D, L, rng),
        points=1e3 * points0 @ hessian,
        points0=points0,
        labels1=np.ones(M1),
        decay=1.0,
        rows=rng.standard_normal((L, D)),
        biases=rng.standard_normal(L),
        features=rng.standard_normal((M2, L)),
        head=rng.standard_normal(L),
        labels2=rng.standard_normal(M2),
        lambda_s=1e-3,
        failure=1e-2,
        accuracy=0.05,
        seeds={"train": (1,), "distil": (2,), "test": (3,), "retrain": (4, 5), "bias": (6,)},
        # The statistical ones must not fail by chance in a long search.
        thresholds=Thresholds(significance=1e-9, sigma=7.0),
    )


def with_link(e, *terms):
    return replace(e, model=MultiIndexModel(e.model.B, HermiteLink(tuple(terms))))


def small(rng, low=1e-6):
    """A defect between `low` and one."""
    return 10.0 ** rng.uniform(math.log10(low), 0.0)


def off_subspace(e, rng):
    away = rng.standard_normal(D)
    away -= e.model.B @ (e.model.B.T @ away)
    size = small(rng)
    return replace(e, target=lambda x: e.model.clean(x) + size * (x @ away))


def bent_start(leaf):
    def spoil(e, rng):
        theta = [x.copy() for x in e.theta0]
        theta[leaf][tuple(rng.integers(n) for n in theta[leaf].shape)] += small(rng)
        return replace(e, theta0=tuple(theta))

    return spoil


def scaled_start(a, w):
    return lambda e, rng: replace(e, theta0=(a * e.theta0[0], w * e.theta0[1], e.theta0[2]))


def copied_point(e, rng):
    points0 = e.points0.copy()
    points0[rng.integers(M1)] = 2.0 * e.x[rng.integers(N)]
    return replace(e, points0=points0)


def on_a_gate(e, rng):
    points, w = e.points.copy(), e.theta0[1][rng.integers(L)]
    points[0] = rng.standard_normal(D)
    points[0] -= w * (w @ points[0]) / (w @ w)
    return replace(e, points=points)


def repeated_feature(e, rng):
    features = e.features.copy()
    features[:, 0] = features[:, 1]
    return replace(e, features=features)


def near_dependence(e, rng):
    features = e.features.copy()
    features[:, 0] = features[:, 1] + 1e-9 * features[:, 0]
    return replace(e, features=features, thresholds=replace(e.thresholds, head_error=1e-8))


def of_shape(d, r, link="quadratic"):
    return lambda e, rng: replace(e, model=draw_model(d, r, link, rng))


CONTROLS = {
    "A1": [
        lambda e, rng: replace(e, x=2.0 * e.x),
        lambda e, rng: replace(e, x=e.x + 1.0),
        lambda e, rng: replace(e, x=np.repeat(e.x[:30], 10, axis=0)),
    ],
    "A2": [of_shape(2, 2), lambda e, rng: replace(e, model=as_backend(e.model, np, np.float32))],
    "A3": [off_subspace],
    "A4": [lambda e, rng: replace(e, degree=1), lambda e, rng: replace(e, target=lambda x: np.sin(x @ e.model.B[:, 0]))],
    "A5": [
        lambda e, rng: with_link(e, (1.0 + small(rng), (2, 0))),
        lambda e, rng: replace(with_link(e, (1.0, (2, 0)), (small(rng), (0, 0))), preprocessed=False),
        lambda e, rng: replace(with_link(e, (0.6, (2, 0)), (0.8, (0, 1))), preprocessed=False),
    ],
    "A6": [of_shape(D, R, "odd"), lambda e, rng: with_link(e, (0.8, (2, 0)), (0.6, (0, 3)))],
    "A7": [of_shape(D, R, "odd"), lambda e, rng: with_link(e, (1.0, (2, 0)), (0.01, (0, 2)))],
    "A8": [
        bent_start(0),
        bent_start(1),
        bent_start(2),
        lambda e, rng: replace(e, theta0=two_layer.gaussian_init(D, L, rng)),
        lambda e, rng: replace(e, theta0=tuple(x[:-1] for x in e.theta0)),
    ],
    "A9": [scaled_start(1.0, 3.0), scaled_start(2.0, 1.0)],
    "A10": [lambda e, rng: replace(e, samples=2 * D**2), of_shape(D, R, "odd")],
    "A10-raw": [lambda e, rng: replace(e, preprocessed=False)],
    "A11": [of_shape(8, 6), lambda e, rng: with_link(e, (1.0, (2, 0)), (0.01, (0, 2)))],
    "A12": [
        lambda e, rng: replace(e, y=e.y + small(rng)),
        lambda e, rng: replace(e, y=e.y + e.x @ np.full(D, 0.5)),
    ],
    "A13": [lambda e, rng: replace(e, decay=1.0 + small(rng)), lambda e, rng: replace(e, decay=0.0)],
    "A14": [
        lambda e, rng: replace(e, points=e.points0 + small(rng) * e.points0),
        lambda e, rng: replace(e, points=e.points0, distil_decay=0.5),
    ],
    "A15": [
        lambda e, rng: replace(e, labels1=np.where(np.arange(M1) == rng.integers(M1), -1.0, 1.0)),
        lambda e, rng: replace(e, labels1=np.where(np.arange(M1) == rng.integers(M1), 0.0, 1.0)),
        lambda e, rng: replace(e, labels1=np.zeros(M1)),
    ],
    "A16": [
        lambda e, rng: replace(e, points0=e.points0 * np.where(np.arange(D) == 0, 30.0, 1.0)),
        lambda e, rng: replace(e, points0=e.points0 + 5.0),
        lambda e, rng: replace(e, points0=e.points0 @ e.model.B @ e.model.B.T),
        copied_point,
    ],
    "A17": [lambda e, rng: replace(e, m1=R - 1), lambda e, rng: replace(of_shape(D, 1)(e, rng), m1=4)],
    "A17-sufficient": [lambda e, rng: replace(e, m1=int(rng.integers(R, R**2)))],
    "A18": [lambda e, rng: replace(e, starts=1)],
    "A19": [
        lambda e, rng: replace(e, biases=10.0 * e.biases),
        lambda e, rng: replace(e, biases=np.zeros(L)),
        lambda e, rng: replace(e, rows=None, biases=np.where(np.arange(L) == 0, e.biases[1], e.biases)),
        lambda e, rng: replace(e, rows=np.zeros((L, D))),
    ],
    "A20": [lambda e, rng: replace(e, accuracy=1e-3), of_shape(D, R, "odd")],
    "A21": [lambda e, rng: replace(e, features=e.features[: L - 1], labels2=None), repeated_feature, near_dependence],
    "A22": [lambda e, rng: replace(e, lambda_s=1e3), lambda e, rng: replace(e, labels2=np.zeros(M2))],
    "A23": [lambda e, rng: replace(e, width=4), lambda e, rng: replace(e, samples=10), of_shape(D, 6)],
    "A24": [
        lambda e, rng: replace(e, seeds={**e.seeds, "test": (1,)}),
        lambda e, rng: replace(e, seeds={**e.seeds, "bias": (4,)}),
    ],
    "A25": [on_a_gate],
}


def test_every_assumption_has_a_control():
    assert list(CONTROLS) == list(ASSUMPTIONS)
    assert len({one.label for one in ASSUMPTIONS.values()}) == len(ASSUMPTIONS)
    assert all(one.statement and one.source for one in ASSUMPTIONS.values())


@given(rng=generators)
def test_all_hold_on_a_sound_experiment(rng):
    found = margins(sound(rng))
    assert found.pop("A10-raw") is None, "the other one of A10 applies"
    failing = {name: margin.value for name, margin in found.items() if not (margin.holds and margin.value >= 0)}
    assert not failing


@pytest.mark.parametrize(("name", "control"), [(name, control) for name, controls in CONTROLS.items() for control in range(len(controls))])
@given(rng=generators)
def test_control_turns_the_sign(name, control, rng):
    margin = ASSUMPTIONS[name](CONTROLS[name][control](sound(rng), rng))
    assert margin.name == name
    assert not margin.holds
    assert margin.value < 0 or (margin.value == 0 and ASSUMPTIONS[name].strict)


def test_raw_labels_need_the_cube():
    e = sound(np.random.default_rng(0))
    assert ASSUMPTIONS["A10-raw"](replace(e, preprocessed=False, samples=8 * D**3)).value == 0.0
    assert ASSUMPTIONS["A10"](replace(e, preprocessed=False)) is None


@given(rng=generators, factor=st.floats(0.05, 20.0))
def test_margins_are_relative_to_their_bounds(rng, factor):
    """The quantity is set to factor times its bound: lower bounds read factor - 1, upper bounds 1 - factor."""
    e = sound(rng)
    c, kappa = e.thresholds, e.model.link.kappa
    bound = c.samples * D**2 * kappa**2 * R
    head = np.full(L, 1.0)
    cases = [
        ("A7", replace(e, thresholds=replace(c, kappa=kappa / factor)), 1.0 - factor),
        ("A10", replace(e, samples=max(1, round(factor * bound))), max(1, round(factor * bound)) / bound - 1.0),
        ("A11", replace(e, thresholds=replace(c, dimension=D / (factor * kappa * R**1.5))), factor - 1.0),
        ("A13", replace(e, decay=1.0 + factor * c.exact), 1.0 - factor),
        ("A14", replace(e, points=(1.0 + factor * c.erase) * e.points0), factor - 1.0),
        ("A18", replace(e, thresholds=replace(c, directions=L * 8 / (factor * R * D))), factor - 1.0),
        ("A20", replace(e, accuracy=factor * c.width * R**2 * kappa**4 / L), factor - 1.0),
        ("A22", replace(e, head=head, labels2=np.full(M2, 2.0), lambda_s=factor * M2 / L), 1.0 - factor),
        ("A23", replace(e, thresholds=replace(c, nontrivial=(R**2 * D + L) / (factor * L * D))), 1.0 - factor),
    ]
    for name, experiment, expected in cases:
        margin = ASSUMPTIONS[name](experiment)
        assert margin.value == pytest.approx(expected, rel=1e-5, abs=1e-5)
        if abs(expected) > 1e-4:
            assert margin.holds == (expected > 0)


def test_ways_around_a_bound():
    e = sound(np.random.default_rng(1))
    assert ASSUMPTIONS["A18"](replace(e, starts=1, centred=True)).value == math.inf
    assert ASSUMPTIONS["A14"](replace(e, points=e.points0, distil_decay=1.0)).holds
    assert ASSUMPTIONS["A22"](replace(e, lambda_s=0.0)).value == 1.0
    assert ASSUMPTIONS["A5"](replace(with_link(e, (1.0, (2, 0)), (0.8, (0, 1))), preprocessed=True)).holds, "the linear part is removed"


def test_chen_bound_is_that_of_the_pseudo_inverse():
    """s is the largest singular value of y^+ a_T with NumPy's own pseudo-inverse."""
    rng = np.random.default_rng(2)
    e = sound(rng)
    largest = np.linalg.svd(np.linalg.pinv(e.labels2[None, :]) @ e.head[None, :], compute_uv=False)[0]
    assert ASSUMPTIONS["A22"](e).value == pytest.approx(1.0 - e.lambda_s * 4 * largest**2)


def test_what_is_not_given_is_not_judged():
    assert all(margin is None for margin in margins(Experiment()).values())
    e = sound(np.random.default_rng(3))
    for one in ASSUMPTIONS.values():
        assert one.needs
        for need in one.needs:
            assert one(replace(e, **{need: None})) is None


def test_not_a_number_fails():
    e = sound(np.random.default_rng(4))
    margin = ASSUMPTIONS["A13"](replace(e, decay=math.nan))
    assert margin.value == -math.inf
    assert not margin.holds


@given(quantity=st.floats(0.0, 1e6), bound=st.floats(1e-6, 1e6))
def test_bounds_have_the_sign_of_the_inequality(quantity, bound):
    assert (below(quantity, bound) >= 0) == (quantity <= bound) or quantity / bound == pytest.approx(1.0)
    assert (above(quantity, bound) >= 0) == (quantity >= bound) or quantity / bound == pytest.approx(1.0)


@pytest.mark.parametrize("strict", [False, True])
def test_boundary_belongs_to_the_assumption_unless_it_is_strict(strict):
    one = assumption("A0", "statement", "source", "m1", strict=strict)(lambda e, m1: above(m1, 3))
    assert isinstance(one, Assumption)
    assert [one(Experiment(m1=m)).holds for m in (2, 3, 4)] == [False, not strict, True]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Experiment(samples=0), "samples=0"),
        (lambda: Experiment(m1=-2), "m1=-2"),
        (lambda: Thresholds(kappa=0.0), "kappa=0.0"),
        (lambda: Thresholds(rank=math.nan), "rank=nan"),
    ],
)
def test_bad_descriptions_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
