"""Which laws come out of planted rows."""

import dataclasses
import math

import numpy as np
import pytest

from sims.command import Facts
from sims.lab.files import RunError
from sims.lab.laws import LawFit
from sims.scaling import laws as scaling_laws
from sims.scaling import plots
from sims.scaling import report as scaling_report
from sims.scaling.experiment import CRITERIA
from tests.sims.scaling.planted import SMALL, planted


def inside(fit: LawFit, value: float) -> bool:
    assert fit.interval is not None
    return fit.interval[0] <= value <= fit.interval[1]


def test_true_laws_pass(laws):
    fits = laws.fits
    assert [name for name, fit in fits.items() if fit.verdict == "FAIL"] == []
    assert fits["d"].verdict == fits["L"].verdict == fits["r_common_mode"].verdict == "PASS"
    assert fits["d"].excludes == fits["L"].excludes == (0.0, 2.0)
    assert fits["r_common_mode"].excludes == (1.0, 3.0)
    assert fits["L"].interval == (1.0, 1.0)
    # The risk of the same start is ratio x real at M2 = L/2; a fresh one's is ratio x 0.4 levels at M2 = L / (2 x 1.5 x 0.4).
    np.testing.assert_allclose(laws.series["L_functional_same"].y, np.array(SMALL.L) / 2, rtol=0.03)
    np.testing.assert_allclose(laws.series["L_functional_fresh"].y, np.array(SMALL.L) / 1.2, rtol=0.03)
    assert inside(fits["L_functional_same"], 1.0)
    assert fits["L_functional_same"].verdict == fits["L_functional_fresh"].verdict == "REPORTED"
    for key in ("r_risk", "r_risk_reflected"):
        assert fits[key].verdict == "PASS"
        assert 1.0 < fits[key].predicted < 2.0
        assert inside(fits[key], fits[key].predicted)
        assert fits[key].asymptotic == 1.0
    for name in CRITERIA:
        fit = fits[f"r_{name}"]
        assert fit.predicted == pytest.approx(np.polyfit(np.log(SMALL.r), np.log(laws.series[f"r_{name}"].predicted), 1)[0], abs=1e-9)
        assert (fit.n, fit.censored) == (256 // 32, 0)
    assert "within 0.2 of 2" in laws.remarks["r_common_mode"]


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_another_exponent_in_d_fails(exponent):
    scaling = dataclasses.replace(SMALL, d=(16, 32, 64))
    wrong = planted(scaling, points=lambda d, r: 3 * r * r * (d / 32) ** (exponent - 1))
    fit = scaling_laws.measure(scaling, wrong, resamples=60).fits["d"]
    assert inside(fit, exponent)
    assert fit.verdict == "FAIL"
    assert exponent not in fit.excludes


def test_another_exponent_in_r_or_in_the_head_s_labels_fails():
    # Four to the r keeps the planted points in the grid: it spans a factor of about ten.
    wrong = planted(exponents={"common_mode": 1.2, "risk": 2.2}, head=lambda width: width**2 // 16)
    fits = scaling_laws.measure(SMALL, wrong, resamples=60).fits
    assert fits["r_common_mode"].verdict == "FAIL"
    assert fits["L"].interval == (2.0, 2.0)
    assert fits["L"].verdict == "FAIL"
    assert inside(fits["r_risk"], 2.2)
    assert fits["r_risk"].verdict == "FAIL"


def test_points_beyond_the_grid_are_censored_and_counted():
    rows = planted(points=lambda d, r: 1e6 if d == 128 else 1.5 * r * r)
    laws = scaling_laws.measure(SMALL, rows, resamples=60)
    assert laws.fits["d"].censored == 1
    assert laws.series["d"].y[-1] == math.inf
    assert laws.series["d"].intervals[-1] is None
    assert inside(laws.fits["d"], 1.0)
    there = {(f["d"], f["r"], f["L"]): f for f in laws.floats}
    assert [there[(128, 2, 128)][name] for name in ("functional", "M2", "exact_head")] == [None, None, None]
    assert all(f["functional"] is not None for f in laws.floats if f["d"] != 128)
    assert laws.additive["functional"].fit.censored == laws.additive["exact_head"].fit.censored == 1
    assert "-" in scaling_report.report(SMALL, laws, rows, Facts(1, 0, 1, "numpy"))


def test_a_level_reached_at_the_start_of_the_grid_is_left_out_of_the_floats_and_of_the_slope():
    laws = scaling_laws.measure(SMALL, planted(points=lambda d, r: 0.1 if d == 16 else 1.5 * r * r), resamples=20)
    assert laws.fits["d"].censored == 1
    early = [f for f in laws.floats if f["at_start"]]
    assert [(f["d"], f["functional"], f["M2"], f["exact_head"]) for f in early] == [(16, None, None, None)]
    for name in ("functional", "exact_head"):
        assert laws.additive[name].fit.censored == 1
        assert laws.additive[name].fit.n == len(SMALL.tasks()) - 1
    assert "1 task reaches the level at the start of the grid of M1 already: left out" in scaling_report.additive_text(laws)


def test_a_grid_that_begins_too_late_gives_no_term_in_r2_d():
    """Every task meets the level at its first M1, which is 0.75 r^2 for all of them: nothing was measured, so nothing is fitted."""
    laws = scaling_laws.measure(SMALL, planted(points=lambda d, r: 0.1), resamples=20)
    assert laws.additive["functional"].fit.coefficients == laws.additive["exact_head"].fit.coefficients == {}
    assert "no fit (0 points" in scaling_report.additive_text(laws)


def test_the_common_mode_fails_on_its_last_step_alone(true_rows):
    """Points at the largest r moved by a third: the slope from there to its neighbour is no longer near 2."""
    bent = true_rows | {
        "spectrum": [
            row | {"common_mode": [(1.35 if row["r"] == 32 else 1.0) * v for v in row["common_mode"]]} for row in true_rows["spectrum"]
        ]
    }
    laws = scaling_laws.measure(SMALL, bent, resamples=20)
    assert laws.remarks["r_common_mode"].endswith("FAIL")
    assert laws.fits["r_common_mode"].verdict == "FAIL"


def test_heads_that_are_never_recovered_are_censored():
    rows = planted(head=lambda width: None if width == 64 else width)
    fit = scaling_laws.measure(SMALL, rows, resamples=60).fits["L"]
    assert (fit.censored, fit.verdict) == (1, "NO FIT")


def test_an_experiment_in_which_nothing_is_reached_still_has_its_report():
    rows = planted(points=lambda d, r: 1e6, labels=lambda width: 1e6, head=lambda width: None)
    laws = scaling_laws.measure(SMALL, rows, resamples=20)
    assert laws.fits["d"].verdict == laws.fits["L"].verdict == laws.fits["L_functional_same"].verdict == "NO FIT"
    assert laws.additive["functional"].fit.coefficients == {}
    assert f"no fit (0 points, {len(SMALL.tasks())} censored)" in scaling_report.additive_text(laws)
    files = plots.figure_files(SMALL, laws, rows)
    assert files["law.png"][:4] == b"\x89PNG"
    assert files["law-d.csv"].splitlines()[1:] == [f"{d:.1f},,," for d in SMALL.d]


def test_planted_floats_give_their_coefficients_back():
    """floats* = 1.5 d r^2 + 0.5 L and, for an exact head, 1.5 d r^2 + L: 0.3 L labels are enough, 0.5 L the next in the grid."""
    scaling = dataclasses.replace(SMALL, d=(16, 32, 64), L=(64, 128, 512), m2_shares=(0.25, 0.5, 1.0), r_real=(3, 4))
    laws = scaling_laws.measure(scaling, planted(scaling, labels=lambda width: 0.3 * width, spread=0.01), resamples=80)
    for name, per_label in (("functional", 0.5), ("exact_head", 1.0)):
        fit = laws.additive[name].fit
        assert fit.coefficients["r^2 d"] == pytest.approx(1.5, rel=0.03)
        assert fit.coefficients["L"] == pytest.approx(per_label, rel=0.05)
        assert (fit.n, fit.censored) == (len(scaling.tasks()), 0)
        assert fit.error < 0.02
    assert all(f["M2"] == f["L"] // 2 for f in laws.floats)


def test_failed_trials_are_left_out_and_a_place_without_any_is_named(true_rows):
    rows = {kind: [dict(row) for row in group] for kind, group in true_rows.items()}
    config = {name: rows["risk"][0][name] for name in ("d", "r", "L")}
    same_place = [row for row in rows["risk"] if all(row[name] == value for name, value in config.items())]
    keys = set(same_place[0]) - {"real", "fresh", "same", "fresh_real", "teacher"}
    for row in same_place[:2]:
        for name in set(row) - keys:
            del row[name]
        row["failed"] = "test risk is inf"
    assert scaling_laws.measure(SMALL, rows, resamples=20).fits["d"].verdict in ("PASS", "FAIL")
    for row in same_place:
        row["failed"] = "test risk is inf"
    with pytest.raises(RunError, match=r"all 6 risk trials at d = 128, r = 2, L = 128 failed, first: test risk is inf"):
        scaling_laws.measure(SMALL, rows, resamples=20)
