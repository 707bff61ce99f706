"""The closed form of the test risk beside heads that are fitted: population mode, plain and reflected sets."""

import math

import numpy as np
import pytest

from sims.population import RiskTrial
from theory.head_risk import student_risk, teacher_risk

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
