"""Every measure of the simulator, and where the two that are whole sweeps of their own are found."""

from collections.abc import Callable, Mapping
from typing import Any

from sims.encode.experiment import encode_trial
from sims.measures import controls, encoding, energies, outcomes, retraining, risk
from sims.measures.measure import Measure
from sims.scaling.experiment import spectrum_trial
from sims.scaling.trials import head_trial, risk_trial

TRIALS: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "directions": energies.directions_trial,
    "kernel": energies.kernel_trial,
    "retrained": energies.retrained_trial,
    "neurons": energies.neurons_trial,
    "spectrum": spectrum_trial,
    "head": head_trial,
    "risk": risk_trial,
    "curve": outcomes.curve_trial,
    "transfer": outcomes.transfer_trial,
    "matching": outcomes.matching_trial,
    "baselines": encode_trial,
}
"""Kinds of trial; measures that name the same kind and configuration share its draws."""

ELSEWHERE = {
    "Q10": "least M1 by criterion, and its exponent in r: `python -m sims scaling` (fit.r_common_mode, ..., fit.r_risk)",
    "Q11": "floats at one risk level over r, d, L, and the additive fit: `python -m sims scaling` (fit.d, fit.L, additive)",
}
"""Questions that are answered by a sweep of their own."""

CONTROLS = {
    "odd link, H = 0 (A6)": ("Q19.odd", "Q19.odd-risk"),
    "a direction lost from H (A6)": ("Q19.lost", "Q19.lost-risk"),
    "no preprocessing (A12)": ("Q19.raw",),
    "fewer than r points (A17)": ("Q9",),
    "L J too small (A18)": ("Q19.few-starts", "Q19.few-starts-risk"),
}
"""Negative controls: the assumption that each takes away, and the measures that show it failing by the predicted amount."""


def _order(measure: Measure) -> int:
    return int(measure.question.removeprefix("Q"))


MEASURES: tuple[Measure, ...] = tuple(sorted((*encoding.MEASURES, *retraining.MEASURES, *risk.MEASURES, *controls.MEASURES), key=_order))
QUESTIONS = tuple(dict.fromkeys(measure.question for measure in MEASURES))
