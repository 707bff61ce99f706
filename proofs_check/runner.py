"""Carries out the checks of a lemma: identities, property, controls."""

import hashlib
import inspect
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sympy as sp

from proofs_check.lemma import ControlOutcome, Example, Identity, Instance, Lemma, Outcome, Proof
from proofs_check.search import NotPlain, evaluate, search, survey
from sims.lab.files import RunError

LAST_DIGITS = 16.0
"""Units in the last place that a float may be away from the exact value it stands for."""
CONTROL_SHARE = 5
"""A control sees one instance for this many of the property."""
UNFORMED = "the identities can be formed"
"""The claim of a failed proof that stands for an error."""


@dataclass(frozen=True)
class Profile:
    """How much is drawn: `factor` multiplies the number of examples each lemma asks for."""

    name: str
    factor: float

    def examples(self, lemma: Lemma) -> int:
        """Instances of the property."""
        return max(1, round(self.factor * lemma.examples))

    def control_examples(self, lemma: Lemma) -> int:
        """Instances of each control."""
        return max(5, self.examples(lemma) // CONTROL_SHARE)


PROFILES = {"ci": Profile("ci", 1.0), "deep": Profile("deep", 100.0)}


def check(lemma: Lemma, profile: Profile, seed: int) -> Outcome:
    """All checks of one lemma. What the checks find is in the outcome; the draws depend on the seed and the lemma alone."""
    start = time.perf_counter()
    symbolic = tuple(proofs(lemma))
    found = search(lemma.margin, lemma.instances, profile.examples(lemma), property_seed(seed, lemma))
    controls = tuple(
        ControlOutcome(
            control.assumption,
            control.instead,
            survey(
                lemma.margin,
                {**lemma.instances, **control.instances},
                profile.control_examples(lemma),
                _seed(seed, lemma.name, control.assumption),
            ),
        )
        for control in lemma.controls
    )
    return Outcome(lemma.name, symbolic, found, controls, time.perf_counter() - start, lemma.every)


def replay(lemma: Lemma, instance: Instance) -> Example:
    """The margin at a stored instance; RunError where the instance does not fit the lemma."""
    try:
        inspect.signature(lemma.margin).bind(None, **instance)
        return evaluate(lemma.margin, instance)
    except (TypeError, NotPlain) as error:
        raise RunError(f"the instance does not fit lemma {lemma.name}: {error}") from error


def property_seed(root: int, lemma: Lemma) -> int:
    """What the draws of its property depend on."""
    return _seed(root, lemma.name, "property")


def _seed(root: int, *names: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join([str(root), *names]).encode()).digest()[:8])


def proofs(lemma: Lemma) -> Iterator[Proof]:
    """The fate of every identity of the lemma; an error ends them with a failed one."""
    if lemma.symbolic is None:
        return
    try:
        for identity in lemma.symbolic():
            yield prove(identity)
    except Exception as error:  # whatever a lemma's code raises is a finding about that lemma
        yield Proof(UNFORMED, False, f"{type(error).__name__}: {error}")


def prove(identity: Identity) -> Proof:
    """left - right = 0 after simplification; a float on the left is held to LAST_DIGITS units in the last place."""
    if isinstance(identity.left, float):
        exact = float(sp.N(identity.right, 30))
        off = abs(float(identity.left) - exact)  # of NumPy too, whose truth values JSON does not know
        unit = float(np.spacing(abs(exact)))
        return Proof(identity.claim, math.isfinite(off) and off <= LAST_DIGITS * unit, f"{off:.3g}" if off else "0")
    residual = sp.simplify(sp.sympify(identity.left) - sp.sympify(identity.right))
    return Proof(identity.claim, residual == 0, str(residual))
