"""Every lemma holds in all its checks, names the code it guards, and gives the same numbers each time."""

import dataclasses
import importlib
import json

import pytest

from proofs_check.registry import known
from proofs_check.runner import PROFILES, Profile, check, replay
from proofs_check.search import canonical, survey

LEMMAS = known()
FAST = Profile("fast", 0.25)


@pytest.fixture(scope="module", params=list(LEMMAS))
def lemma(request):
    return LEMMAS[request.param]


@pytest.fixture(scope="module")
def outcome(lemma):
    return check(lemma, FAST, seed=1)


def test_the_first_lemmas_are_there():
    assert {"hermite-coefficients", "arc-cosine-kernel", "matching-gradient", "retrained-rows"} <= set(LEMMAS)


def test_a_lemma_passes_every_check(lemma, outcome):
    assert outcome.passed, outcome.failures
    assert outcome.symbolic
    assert all(proof.holds for proof in outcome.symbolic)
    # Hypothesis may draw an instance twice; only distinct ones count.
    assert 0.6 * FAST.examples(lemma) <= outcome.search.examples <= FAST.examples(lemma)
    assert outcome.search.worst.margin > 0


def test_each_needed_assumption_breaks_the_conclusion_clearly(lemma, outcome):
    verdicts = {control.assumption: control.verdict for control in outcome.controls}
    assert verdicts.pop("row_norms", "not needed") == "not needed"
    assert set(verdicts.values()) == {"needed"}
    assert {control.assumption for control in outcome.controls} == set(lemma.assumptions), "every assumption has its control"


def test_the_guarded_code_exists(lemma):
    assert lemma.code
    for name in lemma.code:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_a_run_depends_on_the_seed_alone(lemma, outcome):
    again = check(lemma, FAST, seed=1)
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(outcome, seconds=0.0)
    first, second = (survey(lemma.margin, lemma.instances, 5, seed) for seed in (1, 2))
    assert first != second


def test_replay_repeats_the_margin_to_the_last_bit(lemma, outcome):
    worst = outcome.search.worst
    stored = json.loads(json.dumps(worst.instance))
    now = replay(lemma, stored)
    assert now.margin.hex() == worst.margin.hex()
    assert canonical(now.instance) == canonical(worst.instance)


def test_profiles_scale_the_examples(lemma):
    ci, deep = PROFILES["ci"], PROFILES["deep"]
    assert deep.examples(lemma) == 100 * ci.examples(lemma) == 100 * lemma.examples
    assert ci.control_examples(lemma) >= 5
