"""The checks can fail: each closed form, altered on purpose, is caught by the property or by an identity of the lemma that owns it."""

import json
import math

import numpy as np
import pytest
import sympy as sp

from proofs_check.lemmas import arc_cosine_kernel, hermite_coefficients, matching_gradient, retrained_rows
from proofs_check.runner import proofs, replay
from proofs_check.search import search, survey
from theory import hermite, two_layer

gate, relu, coefficients = hermite.gate_coefficient, hermite.relu_coefficient, hermite.coefficients
HERMITE = {
    "gate: sign": ("gate_coefficient", lambda k: -gate(k)),
    "gate: factor 2": ("gate_coefficient", lambda k: 2 * gate(k)),
    "gate: missing term": ("gate_coefficient", lambda k: 0.0 if k == 3 else gate(k)),
    "gate: wrong constant": ("gate_coefficient", lambda k: gate(k) * math.sqrt(2.0) if k else 0.5),
    "gate: index": ("gate_coefficient", lambda k: gate(k + 1)),
    "relu: sign": ("relu_coefficient", lambda k: relu(k) * (-1.0) ** (k == 2)),
    "relu: wrong constant": ("relu_coefficient", lambda k: 1.0 / math.sqrt(math.pi) if k == 0 else relu(k)),
    "relu: missing term": ("relu_coefficient", lambda k: 0.0 if k == 1 else relu(k)),
    "polynomial: factor 2": ("coefficients", lambda *a: 2 * coefficients(*a)),
    "polynomial: sign": ("coefficients", lambda *a: coefficients(*a) * (-1.0) ** np.arange(a[1] + 1)),
    "polynomial: missing term": ("coefficients", lambda *a: coefficients(*a) * (np.arange(a[1] + 1) != 2)),
}
KERNEL = {
    "sign": lambda rho, m=math: (m.pi - 2 * m.asin(rho)) / (4 * m.pi),
    "factor 2": lambda rho, m=math: (m.pi + 2 * m.asin(rho)) / (2 * m.pi),
    "missing term": lambda rho, m=math: 2 * m.asin(rho) / (4 * m.pi),
    "wrong constant": lambda rho, m=math: (m.pi + m.asin(rho)) / (4 * m.pi),
    "linear in rho": lambda rho, m=math: (m.pi + 2 * rho) / (4 * m.pi),
}
closed_form = matching_gradient.closed_form


def _scaled(first: float, second: float):
    def mutant(*arrays):
        parts = closed_form(*arrays)
        return first * parts[0], second * parts[1]

    return mutant


def _per_point(*arrays):
    parts, m = closed_form(*arrays), len(arrays[2])
    return parts[0], sp.Integer(m) * parts[1] if parts[1].dtype == object else m * parts[1]


def _without_labels(gate_, x, y, g):
    return closed_form(gate_, x, y / y, g)


MATCHING = {
    "sign": _scaled(-1, -1),
    "sign of the second term": _scaled(1, -1),
    "factor 2": _scaled(2, 2),
    "missing first term": _scaled(0, 1),
    "missing second term": _scaled(1, 0),
    "wrong constant (1/M once)": _per_point,
    "labels forgotten": _without_labels,
}
mean_row, retrained_noise = retrained_rows.mean_row, retrained_rows.retrained_noise
ROWS = {
    "mean: sign": ("mean_row", lambda *a: -mean_row(*a)),
    "mean: factor 2": ("mean_row", lambda *a: 2 * mean_row(*a)),
    "mean: missing normalisation": ("mean_row", lambda s, u, m=math: s @ u / m.sqrt(2 * m.pi)),
    "mean: wrong constant": ("mean_row", lambda s, u, m=math: s @ u / m.sqrt(m.pi * (u @ s @ u))),
    "mean: Sigma forgotten": ("mean_row", lambda s, u, m=math: u / m.sqrt(2 * m.pi * (u @ s @ u))),
    "noise: sign": ("retrained_noise", lambda r, m1: (1.0 - math.pi * r) / m1),
    "noise: factor 2": ("retrained_noise", lambda r, m1: 2 * retrained_noise(r, m1)),
    "noise: missing term": ("retrained_noise", lambda r, m1: math.pi * r / m1),
    "noise: wrong constant": ("retrained_noise", lambda r, m1: (3.0 * r - 1.0) / m1),
    "noise: power of r": ("retrained_noise", lambda r, m1: (math.pi * r * r - 1.0) / m1),
    "noise: power of M1": ("retrained_noise", lambda r, m1: (math.pi * r - 1.0) / m1**2),
}
CASES = [
    *((hermite_coefficients, name, hermite, *case) for name, case in HERMITE.items()),
    *((arc_cosine_kernel, name, arc_cosine_kernel, "kernel", mutant) for name, mutant in KERNEL.items()),
    *((matching_gradient, name, matching_gradient, "closed_form", mutant) for name, mutant in MATCHING.items()),
    *((retrained_rows, name, retrained_rows, *case) for name, case in ROWS.items()),
]


def caught_by(lemma) -> set[str]:
    """The checks that notice by a wrong number; a mutant that only crashes would prove nothing."""
    found = survey(lemma.margin, lemma.instances, 20, seed=0)
    assert found.worst.error is None
    failed = [proof.claim for proof in proofs(lemma) if not proof.holds]
    assert "the identities can be formed" not in failed
    return ({"property"} if found.failed else set()) | ({"symbolic"} if failed else set())


@pytest.mark.parametrize(("module", "name", "where", "attribute", "mutant"), CASES, ids=[f"{c[0].LEMMA.name}: {c[1]}" for c in CASES])
def test_a_wrong_closed_form_is_caught(module, name, where, attribute, mutant, monkeypatch):
    monkeypatch.setattr(where, attribute, mutant)
    assert caught_by(module.LEMMA)


squared = matching_gradient.squared


def _match(factor, g_s, g_t):
    value, c = squared(g_s, g_t)
    return factor * value, tuple(factor * part for part in c)


WRONG_CODE = {
    "gate open below zero too": (arc_cosine_kernel, "forward", lambda theta, x: two_layer.forward((*theta[:2], theta[2] + 0.2), x)),
    "match without its half": (matching_gradient, "squared", lambda s, t: _match(2.0, s, t)),
    "match of the wrong sign": (matching_gradient, "squared", lambda s, t: _match(-1.0, s, t)),
    "unpaired start": (matching_gradient, "symmetric_init", two_layer.gaussian_init),
    "gradient not averaged": (retrained_rows, "gradient", lambda theta, s: two_layer.gradient(theta, (len(s[1]) * s[0], s[1]))),
}


@pytest.mark.parametrize("name", WRONG_CODE)
def test_wrong_code_is_caught_by_the_property(name, monkeypatch):
    module, attribute, mutant = WRONG_CODE[name]
    monkeypatch.setattr(module, attribute, mutant)
    assert "property" in caught_by(module.LEMMA)


@pytest.mark.parametrize("module", [arc_cosine_kernel, hermite_coefficients, matching_gradient, retrained_rows])
def test_unaltered_lemmas_are_not_caught(module):
    assert caught_by(module.LEMMA) == set()


SMALLEST = {
    "arc-cosine-kernel": (arc_cosine_kernel, arc_cosine_kernel, "kernel", KERNEL["sign"], lambda i: len(i["pairs"]) == 1),
    "hermite-coefficients": (hermite_coefficients, hermite, *HERMITE["gate: missing term"], lambda i: i["hundredths"] == [0, 0, 0, 1]),
    "matching-gradient": (
        matching_gradient,
        matching_gradient,
        "closed_form",
        MATCHING["missing second term"],
        lambda i: i["sizes"]["d"] == i["sizes"]["half"] == i["sizes"]["M"] == 1,
    ),
    "retrained-rows": (retrained_rows, retrained_rows, *ROWS["mean: factor 2"], lambda i: (i["r"], i["m1"], i["tilt"]) == (1, 1, 0.0)),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_counterexample_to_a_wrong_lemma_is_small_and_replays_exactly(name, monkeypatch):
    module, where, attribute, mutant, small = SMALLEST[name]
    monkeypatch.setattr(where, attribute, mutant)
    found = search(module.LEMMA.margin, module.LEMMA.instances, 50, seed=0).counterexample
    assert found.margin <= 0
    assert small(found.instance)
    again = replay(module.LEMMA, json.loads(json.dumps(found.instance)))
    assert again.margin.hex() == found.margin.hex()
