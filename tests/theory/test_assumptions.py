"""Every assumption holds on sound experiments and fails in each way of breaking it; clause by clause, margins cross zero at the bound."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs_check.changes import with_link
from proofs_check.edges import EDGES
from proofs_check.experiments import CONTROLS, D, sound
from tests.strategies import generators, seeds
from theory.assumptions import ASSUMPTIONS, HERE, PAPER, margins
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


distances = st.floats(-3.0, -1.0).map(lambda t: 10.0**t)
FEWER = settings(max_examples=max(3, settings.default.max_examples // 5))
"""There are many clauses."""


@pytest.mark.parametrize("edge", EDGES, ids=[f"{edge.assumption}: {edge.clause}" for edge in EDGES])
@FEWER
@given(seed=seeds, near=distances, far=distances)
def test_the_sign_turns_at_the_bound_of_every_clause(edge, seed, near, far):
    """Just inside the assumption holds and just outside it does not. The margin is the relative distance to the bound on both sides, so
    it is continuous there and falls further out: a jump or a dead zone would show.
    """
    inside, outside, beyond = (margin_at(edge, seed, edge.share(t)) for t in (near, -near, -near - far))
    assert inside.holds
    assert not outside.holds
    if edge.whole:
        assert inside.value >= 0 > outside.value >= beyond.value
    else:
        assert [inside.value, outside.value] == pytest.approx([near, -near], rel=1e-3)
        assert beyond.value == pytest.approx(-near - far, rel=1e-3)


def margin_at(edge, seed, share):
    rng = np.random.default_rng(seed)
    return ASSUMPTIONS[edge.assumption](edge.at(sound(rng), rng, share))


@pytest.mark.parametrize("edge", [edge for edge in EDGES if edge.whole], ids=lambda edge: edge.assumption)
def test_a_whole_number_at_its_bound_holds(edge):
    assert margin_at(edge, 0, 1.0).holds


def test_every_assumption_but_the_count_of_seeds_has_an_edge():
    assert {edge.assumption for edge in EDGES} == set(ASSUMPTIONS) - {"A24"}


@given(rng=generators, count=st.integers(1, 3))
def test_each_shared_seed_costs_one(rng, count):
    e = sound(rng)
    taken = tuple(int(k) for k in rng.permutation([1, 2, 6])[:count])
    assert ASSUMPTIONS["A24"](replace(e, seeds={**e.seeds, "test": (3, *taken)})).value == -count


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
            field, _, key = need.partition(".")
            rest = {name: value for name, value in getattr(e, field).items() if name != key} if key else None
            assert one(replace(e, **{field: rest})) is None


def test_what_is_ours_is_called_derived():
    assert ASSUMPTIONS["A24"].source == HERE
    assert ASSUMPTIONS["A23"].source.startswith(PAPER)
    assert ASSUMPTIONS["A23"].source.endswith(HERE)


def test_what_is_missing_is_named():
    e = sound(np.random.default_rng(5))
    assert ASSUMPTIONS["A10"].require(e).holds
    with pytest.raises(ValueError, match=r"A10 .* needs samples, preprocessed$"):
        ASSUMPTIONS["A10"].require(replace(e, samples=None, preprocessed=None))
    with pytest.raises(ValueError, match=r"A24 .* needs seeds.test, seeds.retrain$"):
        ASSUMPTIONS["A24"].require(replace(e, seeds={"train": (1,)}))
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
