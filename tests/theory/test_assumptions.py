"""Every assumption holds on one sound experiment and fails on each of its negative controls; margins cross zero at their bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proofs_check.experiments import CONTROLS, M2, D, L, R, sound, with_link
from tests.strategies import generators
from theory.assumptions import ASSUMPTIONS, margins
from theory.margins import Assumption, Experiment, Thresholds, above, assumption, below


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


def test_what_is_missing_is_named():
    e = sound(np.random.default_rng(5))
    assert ASSUMPTIONS["A10"].require(e).holds
    with pytest.raises(ValueError, match=r"A10 .* needs samples, preprocessed$"):
        ASSUMPTIONS["A10"].require(replace(e, samples=None, preprocessed=None))
    with pytest.raises(ValueError, match=r"A10 .* another kind of experiment"):
        ASSUMPTIONS["A10"].require(replace(e, preprocessed=False))


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
