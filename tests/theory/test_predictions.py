"""Closed forms of theory.predictions: limits, sums, moments; their Monte-Carlo checks are in tests/sims (energies, measures)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import named_links
from theory import predictions
from theory.multi_index import HermiteLink, make_link
from theory.predictions import PREPROCESSING, distilled_points, even_part, teacher_rows

DIMENSIONS = st.sampled_from((16, 33, 128))


def total(energy: predictions.Energy) -> float:
    return energy.on + energy.off


@given(link=named_links(4), d=DIMENSIONS, per_d2=st.sampled_from((1, 7)), preprocessing=st.sampled_from(PREPROCESSING))
def test_energies_are_positive_and_finite_k_tends_to_the_kernel_limit(link, d, per_d2, preprocessing):
    n = per_d2 * d * d
    rows, limit = teacher_rows(link, 0.3, d, n, preprocessing), distilled_points(link, 0.3, d, n, None, preprocessing)
    assert min(rows.on, rows.off, limit.on, limit.off) > 0
    far = distilled_points(link, 0.3, d, n, 10**9, preprocessing)
    assert far.on == pytest.approx(limit.on, rel=1e-4)
    assert far.off == pytest.approx(limit.off, rel=1e-4)
    one = distilled_points(link, 0.3, d, n, 1, preprocessing)
    assert one.on == pytest.approx(rows.on / 2), "one direction: half of the points are its row, half are zero"


@given(link=named_links(4), d=DIMENSIONS, preprocessing=st.sampled_from(PREPROCESSING))
def test_many_samples_leave_the_population_and_the_linear_part_where_it_is_kept(link, d, preprocessing):
    n = 10**12
    kept = float(np.sum(link.linear**2)) / 4 if preprocessing == "none" else 0.0
    rows, points = teacher_rows(link, 0.5, d, n, preprocessing), distilled_points(link, 0.5, d, n, None, preprocessing)
    assert rows.on == pytest.approx(predictions.row_population(link, d).on + kept, rel=1e-3, abs=1e-9)
    assert points.on == pytest.approx(predictions.point_population(link, d).on + kept / 4, rel=1e-3, abs=1e-9)
    assert rows.off == pytest.approx(predictions.row_population(link, d).off, rel=1e-3, abs=1e-9)


@given(link=named_links(4))
def test_least_squares_leaves_no_even_part_and_one_shot_removal_does(link):
    d, n = 32, 4 * 32**2
    assert even_part(link, 0.1, d, n, "ols") == predictions.Energy(0.0, 0.0)
    one_shot, none = even_part(link, 0.1, d, n, "one-shot"), even_part(link, 0.1, d, n, "none")
    assert 0 < total(one_shot) < total(none)


def test_one_shot_removal_of_a_linear_part_costs_d3_over_n_at_leading_order():
    """q gains (pi^2/4)(|beta|^2/|H|^2) d^3/N, and (pi^2/4)(sigma^2/|H|^2) d^4/N^2 with or without a linear part."""
    for name in ("linear-quadratic", "quadratic"):
        link = make_link(name, 3)
        a, beta2 = link.hessian, float(np.sum(link.linear**2))
        h2, sigma2, gaps = float(np.sum(a * a)), link.residual.variance, []
        for d in (256, 1024, 4096):
            n = 8 * d * d
            gained = distilled_points(link, 0.0, d, n, None, "one-shot").off - distilled_points(link, 0.0, d, n).off
            signal = predictions.point_population(link, d).on
            expected = 0.25 * math.pi**2 / h2 * (beta2 * d**3 / n + sigma2 * d**4 / n**2)
            gaps.append(abs(gained / signal / expected - 1.0))
        assert gaps[-1] < 0.01
        assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_without_preprocessing_the_formulas_are_those_of_the_leading_order():
    """Noise off S* over the signal on it; at these sizes noise on S* is as large as the signal, and the leading form leaves it out."""
    link = make_link("cubic", 2)
    for d in (512, 2048):
        n = 16 * d * d
        q = distilled_points(link, 0.2, d, n, None, "none").off / predictions.point_population(link, d).on
        assert q == pytest.approx(predictions.point_ratio_leading(link, 0.2, d, n, preprocessing="none"), rel=8 / d)


def test_quartic_traces_of_known_tensors():
    """he_4(z_1): C_1111 = sqrt(24) c; he_2(z_1) he_2(z_2): C_1122 = 2 c."""
    quartic = make_link("quartic", 3)
    c2, c4 = math.sqrt(0.8 / 3), math.sqrt(0.2 / 3)
    inner, outer = quartic.quartic_traces
    assert inner == pytest.approx(3 * math.sqrt(2) * c2 * math.sqrt(24) * c4)
    assert outer == pytest.approx((math.sqrt(2) * c2) * (math.sqrt(24) * c4)), "alternating signs: one of three is left in each trace"
    mixed = HermiteLink(((0.6, (2, 0)), (0.8, (2, 2))))
    assert mixed.quartic_traces == pytest.approx((0.6 * math.sqrt(2) * 1.6, 0.6 * math.sqrt(2) * 3.2))
    assert make_link("cubic", 3).quartic_traces == (0.0, 0.0)


@pytest.mark.parametrize("name", ["cubic", "cross", "linear-quadratic", "lost", "quartic"])
def test_square_moments_are_those_of_samples(name):
    link, z = make_link(name, 3), np.random.default_rng(0).standard_normal((400_000, 3))
    draws = link(z)[:, None] ** 2 * z**2
    error = draws.std(axis=0) / math.sqrt(len(z))
    assert np.all(np.abs(draws.mean(axis=0) - link.square_moments) < 4 * error)


def test_what_cannot_be_predicted_is_refused():
    shifted = HermiteLink(((0.5, (0,)), (0.5, (2,))))
    assert teacher_rows(shifted, 0.0, 8, 100).on > 0
    with pytest.raises(ValueError, match=r"link of mean zero: mean=0\.5"):
        teacher_rows(shifted, 0.0, 8, 100, "one-shot")
    with pytest.raises(ValueError, match="unknown preprocessing 'ridge'"):
        distilled_points(make_link("cubic", 2), 0.0, 8, 100, None, "ridge")
    with pytest.raises(ValueError, match="K=0"):
        distilled_points(make_link("cubic", 2), 0.0, 8, 100, 0)
