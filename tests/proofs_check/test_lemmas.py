"""Every lemma holds in all its checks, names the code it guards, and gives the same numbers each time."""

import importlib
import json
from pathlib import Path

import pytest

from proofs_check.registry import known
from proofs_check.runner import PROFILES, Profile, check, property_seed, replay
from proofs_check.search import canonical, search, survey
from theory.assumptions import ASSUMPTIONS

ROOT = Path(__file__).resolve().parents[2]
LEMMAS = known()
FAST = Profile("fast", 0.25)


@pytest.fixture(scope="module", params=list(LEMMAS))
def lemma(request):
    return LEMMAS[request.param]


@pytest.fixture(scope="module")
def outcome(lemma):
    return check(lemma, FAST, seed=1)


NOT_NEEDED = {
    "arc-cosine-kernel": {"row_norms"},
    "dc-dd-agree": {"symmetric_init"},
}
"""Assumptions that turned out not to be needed."""


def test_every_statement_has_its_row():
    numbers = [lemma.number for lemma in LEMMAS.values()]
    assert set(range(1, 21)) <= set(numbers)
    assert len(set(numbers)) == len(numbers)
    assert numbers[: len(LEMMAS)] == sorted(numbers[: len(LEMMAS)])
    assert [lemma.name.split("-")[0].upper() for lemma in LEMMAS.values() if lemma.number and lemma.number >= 100] == [
        name.split("-")[0] for name in ASSUMPTIONS
    ]


def test_a_lemma_passes_every_check(lemma, outcome):
    assert outcome.passed, outcome.failures
    assert bool(outcome.symbolic) == (lemma.number < 100)
    assert all(proof.holds for proof in outcome.symbolic)
    # Hypothesis may draw an instance twice; only distinct ones count.
    assert 0.4 * FAST.examples(lemma) <= outcome.search.examples <= FAST.examples(lemma)
    assert outcome.search.worst.margin > 0


def test_each_needed_assumption_breaks_the_conclusion_clearly(lemma, outcome):
    verdicts = {control.assumption: control.verdict for control in outcome.controls}
    assert {name for name, verdict in verdicts.items() if verdict != "needed"} == NOT_NEEDED.get(lemma.name, set())
    assert {control.assumption for control in outcome.controls} == set(lemma.assumptions), "every assumption has its control"


def test_controls_of_an_assumption_are_named_by_clause():
    assert list(LEMMAS["a13-start-erased"].assumptions) == [
        "far outside: way 1 of 2",
        "far outside: way 2 of 2",
        "just beyond: decay above",
        "just beyond: decay below",
    ]


def test_the_guarded_code_exists(lemma):
    assert lemma.code
    for name in lemma.code:
        assert resolve(name) is not None


def test_tests_named_as_further_oracles_exist(lemma):
    for name in lemma.also:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("name", ["matching-gradient", "dc-dd-agree", "sweep-is-adjoint", "two-layer-derivatives"])
def test_derivatives_name_their_autograd_oracle(name):
    assert LEMMAS[name].also


def test_each_statement_says_where_it_comes_from(lemma):
    source = lemma.source
    assert str(source).startswith(("stated: ", "derived here"))
    assert source.sentence.startswith(("stated in the paper (", "derived here"))
    assert source.where or lemma.number >= 100


def resolve(name):
    """A module, or an attribute of one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def test_a_run_depends_on_the_seed_alone(lemma, outcome):
    again = search(lemma.margin, lemma.instances, FAST.examples(lemma), property_seed(1, lemma))
    assert again == outcome.search
    seen = [], []
    for seed, drawn in enumerate(seen):
        survey(lambda rng, drawn=drawn, **instance: drawn.append(canonical(instance)) or 1.0, lemma.instances, 10, seed)
    assert seen[0] != seen[1]


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
