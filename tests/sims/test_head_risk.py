"""The closed form of the test risk beside heads that are fitted: population mode, plain and reflected sets."""

import math

import numpy as np
import pytest

from sims import figures
from sims.command import Facts
from sims.population import RiskTrial, predicted_risk_curve, predicted_risk_points
from sims.scaling import laws, plots, report
from tests.sims.scaling.planted import SMALL, planted
from theory import head_risk
from theory.head_risk import HeadFit, student_risk, teacher_risk
from theory.multi_index import make_link

ALLOWANCE = 0.06  # stated in docs/results/simulator.md for M1 >= 6 r


def compare(r: int, grid: tuple[int, ...], draws: int) -> None:
    """Mean risks within three standard errors and the allowance; errors small enough that a third more or less would show."""
    trials = [RiskTrial(r=r, draw=k, grid=grid, seed=9, test=2048) for k in range(draws)]
    rows, fit = [trial.run() for trial in trials], trials[0].fit
    predicted = {"teacher": teacher_risk(r, fit)}
    predicted |= {(name, k): student_risk(r, m, fit, name == "reflected") for name in ("plain", "reflected") for k, m in enumerate(grid)}
    for place, expected in predicted.items():
        values = np.array([row[place] if isinstance(place, str) else row[place[0]][place[1]] for row in rows])
        # A draw in a hundred has a head that its held-out inputs misjudge tenfold: the mean of all but the largest and the least.
        kept = np.sort(values)[1:-1]
        error = float(kept.std(ddof=1)) / math.sqrt(len(kept))
        assert abs(kept.mean() - expected) < 3 * error + ALLOWANCE * expected, (place, kept.mean(), expected, error)
        assert error < 0.06 * expected, place
    few, many = (predicted["reflected", k] for k in (0, len(grid) - 1))
    assert few > 1.25 * many, "the prediction of one end of the grid would fail at the other"


def test_sampled_risks_are_the_predicted_ones():
    compare(8, (64, 128), 24)


@pytest.mark.slow
def test_sampled_risks_are_the_predicted_ones_at_larger_r():
    compare(12, (96, 192, 384), 40)
    compare(16, (96, 192, 384), 40)


def test_a_target_with_a_trace_has_no_prediction():
    """The form's target is traceless, the quadratic link is so where r is even."""
    for r in range(2, 9):
        fit = HeadFit(3 * r * r, 12 * r * r, (1e-4,))
        covered = r >= 4 and abs(np.trace(make_link("quadratic", r).hessian)) < 1e-12
        assert covered == (r in (4, 6, 8))
        for found in (predicted_risk_points(r, 1.25, fit, False), predicted_risk_curve(r, [3.0 * r], fit, True)):
            assert (found is not None) == covered


def test_an_unsettled_fixed_point_leaves_a_report_without_a_prediction(monkeypatch):
    def unsettled(*_):
        raise FloatingPointError("test risk: the fixed point does not settle")

    for name in ("least_points", "student_risk"):
        monkeypatch.setattr(head_risk, name, unsettled)
    predicted_risk_points.cache_clear()  # of earlier tests; a None is not left for later ones
    try:
        rows = planted(exponents={"risk": 1.5})
        found = laws.measure(SMALL, rows, resamples=20)
    finally:
        predicted_risk_points.cache_clear()
    for name in ("r_risk", "r_risk_reflected"):
        assert found.fits[name].predicted is None
        assert f"no prediction at r = {', '.join(map(str, SMALL.r_risk))}, so none of the exponent" in found.remarks[name]
        assert found.remarks[name] in report.report(SMALL, found, rows, Facts(1, 0, 1, "numpy"))
    assert "infinitely many points" in found.remarks["r_risk"]
    assert figures.files(plots._risk_in_r_figure(found, rows), "risk-in-r")["risk-in-r.png"][:4] == b"\x89PNG"


def test_each_missing_prediction_is_named():
    for predicted, words in (
        ((30.0, 60.0), ""),
        ((30.0, None), "no prediction at r = 6,"),
        ((math.inf, None), "no prediction at r = 4, 6,"),
    ):
        missing = laws._missing(laws.Series((4.0, 6.0), (30.0, 60.0), (None, None), predicted))
        assert missing.startswith(words)
        assert bool(missing) == bool(words)
