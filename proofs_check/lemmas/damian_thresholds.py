"""Sample-complexity thresholds of Damian, Lee, Soltanolkotabi as predicates: where the margins change sign, and what they imply.

    kappa = |A^-1| / sqrt(r),   computed here as |A^+| / sqrt(r)
    A10   N >= C1 d^2 kappa^2 r         A11   d >= C2 kappa r^(3/2)         A20   L >= C5 r^p kappa^(2p)/accuracy
    the error bound  sqrt(d r^p kappa^(2p)/N) + sqrt(r^p kappa^(2p)/L) + N^(-1/4):   A20 <=> its second term squared <= accuracy/C5
    Var f* = 1  =>  kappa >= 1/sqrt(2)

The theorem and its conditions are stated (COLT 2022, arXiv version: N ~ d^2 r + d r^p); constants C are ours. The last line is derived
here: the degree-2 part of the variance is |A|^2/2 <= 1, so the least of r squared singular values is at most 2/r.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import link_of, links
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness
from theory.assumptions import ASSUMPTIONS
from theory.margins import Experiment, Thresholds
from theory.multi_index import HermiteLink, MultiIndexModel

TOLERANCE = 1e-9


def margin(
    rng: np.random.Generator, terms: list[Any], extra: int, factor: float, sample: int, unit: bool = True, rank: bool = True
) -> float:
    """factor: each quantity over its threshold; unit: the link is scaled to variance one; rank: its mean Hessian has rank r, not r - 1."""
    drawn = link_of(terms)
    r = drawn.r
    regular = [(3.0 * (-1.0) ** j, tuple(2 * (i == j) for i in range(r))) for j in range(r if rank else r - 1)]
    link = HermiteLink(tuple([(c, orders) for c, orders in drawn.terms if sum(orders) != 2] + regular))
    if unit:
        scale = 1.0 / math.sqrt(link.variance)
        link = HermiteLink(tuple((c * scale, orders) for c, orders in link.terms))
    d = r + extra
    model = MultiIndexModel(np.eye(d)[:, :r], link)
    kappa = float(np.linalg.norm(np.linalg.pinv(link.hessian), 2)) / math.sqrt(r)
    p, lowest = link.degree, at_most(1.0 / math.sqrt(2.0), kappa, TOLERANCE)
    samples, width = max(1, round(factor * 8.0 * d**2 * kappa**2 * r)), max(1, round(factor * 200.0))
    accuracy = r**p * kappa ** (2 * p) / 200.0
    e = Experiment(model=model, samples=samples, width=width, accuracy=accuracy, preprocessed=True)
    at = replace(e, thresholds=Thresholds(dimension=d / (factor * kappa * r**1.5)))
    cases = [("A10", e, samples / (8.0 * d**2 * kappa**2 * r)), ("A11", at, factor), ("A20", e, width / 200.0)]
    found = [value(name, experiment) for name, experiment, _ in cases]
    equal = closeness(found, [ratio - 1.0 for _, _, ratio in cases], TOLERANCE, max(1.0, factor))
    second = math.sqrt(r**p * kappa ** (2 * p) / width)
    implied = holds("A20", e) == (second**2 <= accuracy * (1 + 1e-12))
    signs = all(holds(name, experiment) == (margin >= 0.0) for (name, experiment, _), margin in zip(cases, found, strict=True))
    return min(equal, lowest, 1.0 if signs and implied else -9.0)


def value(name: str, experiment: Experiment) -> float:
    """The margin of an assumption that applies."""
    found = ASSUMPTIONS[name](experiment)
    if found is None:
        raise ValueError(f"{name} does not apply to this experiment")
    return found.value


def holds(name: str, experiment: Experiment) -> bool:
    """Its verdict."""
    found = ASSUMPTIONS[name](experiment)
    return found is not None and found.holds


def symbolic() -> Iterator[Identity]:
    r, s, kappa, d, n, m, p, eps = sp.symbols("r s kappa d N m p epsilon", positive=True)
    # r equal singular values s with variance part r s^2/2 = 1: the largest that the least one can be.
    yield Identity("kappa at the extreme link is 1/sqrt(2)", (1 / (s * sp.sqrt(r))).subs(s, sp.sqrt(2 / r)), 1 / sp.sqrt(2))
    yield Identity(
        "A20 at equality: the second term is sqrt(eps)",
        sp.sqrt(r**p * kappa ** (2 * p) / m).subs(m, r**p * kappa ** (2 * p) / eps),
        sp.sqrt(eps),
    )
    first = d * r**p * kappa ** (2 * p) / n
    yield Identity("A10 at equality, p = 1: the first term squared is 1/d", first.subs({p: 1, n: d**2 * kappa**2 * r}), 1 / d)


LEMMA = Lemma(
    number=20,
    name="damian-thresholds",
    latex=r"N \ge C_1 d^2\kappa^2 r,\quad d \ge C_2\kappa r^{3/2},\quad L \ge C_5\, r^p\kappa^{2p}/\varepsilon,\qquad \kappa \ge 1/\sqrt2",
    plain="Margins of the published conditions cross zero exactly at their thresholds; kappa is never below 1/sqrt(2) at unit variance.",
    source=Source(
        "stated", "Damian, Lee, Soltanolkotabi, COLT 2022, main theorem; constants C are ours, kappa >= 1/sqrt(2) is derived here"
    ),
    assumptions={
        "unit_variance": "Var f* = 1",
        "hessian_rank": "the mean Hessian has rank r",
    },
    instances={
        "terms": links([2, 3]),
        "extra": st.integers(0, 30),
        "factor": st.integers(2, 400).map(lambda n: n / 100),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("unit_variance", "variance 9 and more", {"unit": st.just(False)}),
        Control("hessian_rank", "rank r - 1", {"rank": st.just(False), "terms": links([2, 3]).filter(lambda terms: len(terms[0][1]) > 1)}),
    ),
    examples=100,
    code=(
        "theory.assumptions.enough_samples",
        "theory.assumptions.dimension_large",
        "theory.assumptions.width_for_accuracy",
        "theory.multi_index.HermiteLink",
    ),
)
