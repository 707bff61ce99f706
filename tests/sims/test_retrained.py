"""Closed forms for rows retrained on real distilled points, against the pipeline at finite N, d, L, J and M1."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.pipeline import Task, distil_points, encode
from sims.population import encoded_criteria
from sims.two_phase import retrained_rows
from theory import predictions
from theory.multi_index import LINKS, make_link
from theory.retrained import common_share, map_spread, retrained_spectrum, row_off_fraction
from theory.spectrum import criteria, typical_spectrum

TASK = Task(d=24, r=4, L=128, J=6, samples=16.0, head_samples=10, validation=10, test=10)
GRID, DRAWS = (32, 64, 256), 16
SIZES = (TASK.d, TASK.N, TASK.L // 2 * TASK.J)


@pytest.fixture(scope="module")
def measured():
    """Criteria on S* and off-subspace shares of rows, one entry a draw."""
    spectra, off = [], []
    for draw in range(DRAWS):
        encoded = encode(TASK, np.random.SeedSequence(draw))
        points, theta = distil_points(encoded, GRID[-1]), encoded.student.init(encoded.rng("retrain"))
        spectra.append(encoded_criteria(points, encoded.model.B, GRID))
        off.append([])
        for m1 in GRID:
            rows = [retrained_rows(encoded.student, theta, points[:m1], 1.0, reflected) for reflected in (False, True)]
            off[-1].append([1 - float(np.sum((row @ encoded.model.B) ** 2) / np.sum(row**2)) for row in rows])
    return {name: np.array([one[name] for one in spectra]) for name in spectra[0]}, np.array(off)


@pytest.mark.parametrize(("name", "allowance"), [("conditioning", 0.3), ("reflected", 0.2)])
def test_condition_numbers_of_real_rows(measured, name, allowance):
    link = make_link(TASK.link, TASK.r)
    logs = np.log(measured[0][name])
    error = 1.25 * logs.std(axis=0) / math.sqrt(DRAWS)
    for k, m1 in enumerate(GRID):
        predicted = math.log(criteria(retrained_spectrum(link, 0.0, *SIZES, m1))[name])
        assert abs(np.median(logs[:, k]) - predicted) < 3 * error[k] + allowance
    # Negative control: without a common part and without map noise the largest set would be nearly isotropic.
    ideal = math.log(criteria(typical_spectrum(TASK.r, GRID[-1]))[name])
    assert np.median(logs[:, -1]) - ideal > 3 * error[-1]


def test_energy_off_the_subspace(measured):
    link, (_, off) = make_link(TASK.link, TASK.r), measured
    error = off.std(axis=0) / math.sqrt(DRAWS)
    for k, m1 in enumerate(GRID):
        for column, reflected in enumerate((False, True)):
            predicted = row_off_fraction(link, 0.0, *SIZES, m1, reflected)
            assert abs(off[:, k, column].mean() / predicted - 1) < 3 * error[k, column] / predicted + 0.25
    assert np.all(off[:, -1, 1] < 0.75 * off[:, -1, 0]), "reflected rows hold less of the points' noise"


@given(
    st.sampled_from([name for name in LINKS if name != "odd"]),
    st.integers(2, 6),
    st.integers(12, 40),
    st.floats(0, 1),
    st.integers(8, 4096),
)
def test_forms_tend_to_their_limits(name, r, per_r, noise, k):
    d = per_r * r
    link, n = make_link(name, r), 64 * d * d
    rho = math.pi * d / (2 * k)
    assert common_share(d, k) == pytest.approx(rho / (1 + rho))
    assert map_spread(link, noise, d, n, k) > map_spread(link, noise, d, 4 * n, k) > 1 / k
    share = predictions.distilled_points(link, noise, d, n, k).fraction
    for m1 in (r, 100 * r):
        assert row_off_fraction(link, noise, d, n, k, m1, True) < share * 1.0001
    assert row_off_fraction(link, noise, d, n, k, 10**9, True) < row_off_fraction(link, noise, d, n, k, 10**9, False)
    assert retrained_spectrum(link, noise, d, n, k, r) is None
