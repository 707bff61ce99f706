"""Assumptions A1 to A25 as rows: each predicate holds on a sound experiment and refuses its controls.

    margin   the predicate's own where it holds, at most 1; at most CLEAR where it does not: a predicate says yes or no, so every refusal
             is clear

A check of the predicates, not of the theorems that use them: a control breaks one assumption of an otherwise sound experiment.
"""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from proofs_check.experiments import CONTROLS, WAYS, D, sound
from proofs_check.lemma import CLEAR, Control, Lemma, Margin, Source
from theory.assumptions import ASSUMPTIONS, HERE
from theory.margins import Assumption

TINY, BIG = float(np.finfo(np.float64).tiny), float(np.finfo(np.float64).max)


def _margin(one: Assumption) -> Margin:
    def margin(rng: np.random.Generator, sample: int, control: int | None = None) -> float:
        experiment = sound(rng)
        if control is not None:
            experiment = CONTROLS[one.name][control](experiment, rng)
        elif one.name == "A10-raw":  # the sound experiment preprocesses its labels; without it, it needs the cube of d
            experiment = replace(experiment, preprocessed=False, samples=16 * D**3)
        found = one.require(experiment)
        return min(max(found.value, TINY), 1.0) if found.holds else max(min(found.value, CLEAR), -BIG)

    return margin


def row(one: Assumption) -> Lemma:
    """The row of one assumption; each way of breaking it is a control of its own."""
    kind = "derived" if one.source.startswith(HERE) else "stated"
    ways = WAYS[one.name]
    return Lemma(
        number=100 + list(ASSUMPTIONS).index(one.name),
        name=f"{one.name.lower()}-{one.label.replace('_', '-')}",
        latex=r"\text{" + one.statement.replace("_", r"\_").replace("^", r"\^{}").replace("||", r"\|") + "}",
        plain=f"{one.name}: {one.statement}",
        source=Source(kind, one.source.removeprefix(HERE).removeprefix("; ")),
        assumptions=dict.fromkeys(ways, one.statement),
        instances={"sample": st.integers(0, 2**32 - 1)},
        margin=_margin(one),
        controls=tuple(Control(way, "an otherwise sound experiment", {"control": st.just(k)}) for k, way in enumerate(ways)),
        examples=20,
        code=(f"theory.assumptions.{one.label}",),
        every=True,
    )


LEMMAS = tuple(row(one) for one in ASSUMPTIONS.values())
