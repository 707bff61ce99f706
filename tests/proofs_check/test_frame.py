"""The frame: searches count, shrink and repeat; controls tell needed from not needed; proofs are exact."""

import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.runner import Profile, check, proofs, prove, replay
from proofs_check.search import evaluate, search, survey
from sims.lab.files import RunError

FAST = Profile("fast", 1.0)


def make(margin=lambda rng, x, lift=0: 1.0 - lift, **changes):
    """A lemma that holds unless it is lifted."""
    fields = {
        "name": "toy",
        "latex": "x = x",
        "plain": "nothing in particular",
        "source": Source("derived", "by hand"),
        "assumptions": {"low": "lift is zero", "free": "says nothing"},
        "instances": {"x": st.integers(0, 10**6)},
        "margin": margin,
        "controls": (Control("low", "lift 3", {"lift": st.just(3)}),),
        "examples": 50,
    }
    return Lemma(**(fields | changes))


def test_a_counterexample_shrinks_to_the_simplest_one():
    found = search(lambda rng, x: 37 - x, {"x": st.integers(0, 10**6)}, 100, seed=5)
    assert found.counterexample.instance == {"x": 37}
    assert found.counterexample.margin == 0
    assert found.failed == 1
    assert not found.holds
    assert found.worst.margin <= 0
    lists = search(lambda rng, xs: 100 - sum(xs), {"xs": st.lists(st.integers(0, 1000))}, 200, seed=5)
    assert lists.counterexample.instance == {"xs": [100]}


def test_the_search_climbs_towards_small_margins():
    def narrow(rng, x):
        return abs(x - 777_123) / 1e5 - 1e-4

    assert search(narrow, {"x": st.integers(0, 10**6)}, 300, seed=1).failed == 1
    assert survey(narrow, {"x": st.integers(0, 10**6)}, 300, seed=1).failed == 0


def test_examples_are_counted_once_each():
    found = search(lambda rng, x: 1.0, {"x": st.integers(0, 3)}, 500, seed=0)
    assert (found.examples, found.failed, found.holds) == (4, 0, True)
    assert found.worst.margin == 1.0
    counted = survey(lambda rng, x: 1 if x % 2 else -3, {"x": st.integers(0, 9)}, 500, seed=0)
    assert (counted.examples, counted.failed, counted.worst.margin) == (10, 5, -3.0)
    twice = survey(lambda rng, x: 0.5 - x, {"x": st.integers(0, 9).map(lambda n: n % 2)}, 500, seed=0)
    assert (twice.examples, twice.failed) == (2, 1)


def test_an_error_is_a_failure_with_its_instance():
    def brittle(rng, x):
        return 1.0 / (x != 12)

    found = search(brittle, {"x": st.integers(0, 20)}, 200, seed=0)
    assert found.counterexample.instance == {"x": 12}
    assert found.counterexample.margin is None
    assert "ZeroDivisionError" in found.counterexample.error


def test_a_margin_that_is_no_number_fails():
    for value in (math.nan, math.inf, -math.inf):
        example = evaluate(lambda rng, value=value: value, {})
        assert not example.holds
        assert str(value) in example.error


def test_shrinking_does_not_slip_from_a_wrong_value_to_an_error():
    def both(rng, x):
        if 0 < x < 10:
            raise ValueError("degenerate")
        return 40 - x

    found = search(both, {"x": st.integers(0, 10**6)}, 100, seed=3)
    assert found.counterexample.instance == {"x": 40}


def test_the_noise_is_a_function_of_the_instance():
    draws = [evaluate(lambda rng, x: rng.standard_normal(), {"x": x}).margin for x in (0.1, 0.1, 0.1 + 2**-56)]
    assert draws[0] == draws[1] != draws[2]


def test_instances_reach_the_margin_as_json_gives_them_back():
    seen = []
    search(lambda rng, p: seen.append(p) or 1.0, {"p": st.tuples(st.integers(), st.booleans())}, 5, seed=0)
    assert all(isinstance(p, list) for p in seen)


@pytest.mark.parametrize("strategy", [st.just(math.nan), st.just(1j), st.builds(np.zeros, st.just(2))])
def test_what_cannot_be_stored_is_refused(strategy):
    outcome = check(make(instances={"x": strategy}), FAST, seed=0)
    assert not outcome.passed
    assert "plain finite JSON" in outcome.failures[0]


def test_an_unsatisfiable_strategy_is_reported():
    found = search(lambda rng, x: 1.0, {"x": st.integers().filter(lambda n: False)}, 10, seed=0)
    assert not found.holds
    assert found.error


def test_controls_tell_needed_from_not_needed():
    both = (Control("low", "lift 3", {"lift": st.just(3)}), Control("free", "anything", {}))
    outcome = check(make(controls=both), FAST, seed=0)
    assert [control.verdict for control in outcome.controls] == ["needed", "not needed"]
    assert outcome.passed


def test_a_small_breach_is_no_proof_of_need():
    outcome = check(make(controls=(Control("low", "hardly", {"lift": st.just(1.5)}),)), FAST, seed=0)
    assert outcome.controls[0].verdict == "not needed"


def test_a_lemma_that_nothing_breaks_fails():
    outcome = check(make(margin=lambda rng, x, lift=0: 1.0), FAST, seed=0)
    assert not outcome.passed
    assert "shows nothing" in outcome.failures[-1]


def test_an_error_in_a_control_fails_the_lemma():
    outcome = check(make(controls=(Control("low", "a misspelt name", {"lfit": st.just(3)}),)), FAST, seed=0)
    assert outcome.controls[0].verdict == "error"
    assert any("lfit" in reason for reason in outcome.failures)


def test_proofs():
    x = sp.Symbol("x")
    assert prove(Identity("square", (x + 1) ** 2, x**2 + 2 * x + 1)).holds
    wrong = prove(Identity("square", (x + 1) ** 2, x**2 + 1))
    assert not wrong.holds
    assert wrong.residual == "2*x"
    third = prove(Identity("a float is a value of the code", 1 / 3, sp.Rational(1, 3)))
    assert third.holds
    for near in (1 / 3 + 1e-14, math.nan, -1 / 3):
        assert not prove(Identity("not quite", near, sp.Rational(1, 3))).holds
    assert prove(Identity("zero", 0.0, sp.Integer(0))).holds
    assert type(prove(Identity("NumPy's float", np.float64(0.5), sp.Rational(1, 2))).holds) is bool  # which JSON can write
    assert not prove(Identity("zero", 1e-300, sp.Integer(0))).holds


def test_an_error_while_proving_is_a_failed_proof():
    def broken():
        yield Identity("fine", 1, 1)
        raise KeyError("gone")

    good, bad = proofs(make(symbolic=broken))
    assert good.holds
    assert not bad.holds
    assert "KeyError" in bad.residual
    assert not check(make(symbolic=broken), FAST, seed=0).passed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Toy lemma"}, "name='Toy lemma'"),
        ({"name": "report"}, "choose another name"),
        ({"latex": None}, "latex must be a string: latex=None"),
        ({"plain": 3}, "plain must be a string"),
        ({"source": "a book"}, "source must be a Source"),
        ({"assumptions": ["low"]}, "assumptions must be a dict"),
        ({"instances": [st.none()]}, "instances must be a dict"),
        ({"controls": Control("low", "", {})}, "controls must be a tuple, of one entry"),
        ({"controls": ("low",)}, "each entry of controls must be a Control: 'low'"),
        ({"code": ("theory.x")}, "code must be a tuple, of one entry .*: code='theory.x'"),
        ({"code": (3,)}, "each entry of code must be a string: 3"),
        ({"also": "a::b"}, "also must be a tuple"),
        ({"examples": 0}, "examples=0"),
        ({"controls": ()}, "no negative control"),
        ({"controls": (Control("high", "", {}),)}, "drops 'high'"),
        ({"controls": (Control("low", "", {}),) * 2}, "twice"),
    ],
)
def test_a_badly_declared_lemma_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_replay_refuses_an_instance_that_does_not_fit():
    assert replay(make(), {"x": 3}).margin == 1.0
    for instance in ({}, {"y": 3}):
        with pytest.raises(RunError, match="does not fit lemma toy"):
            replay(make(), instance)
