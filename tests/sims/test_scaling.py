"""The scaling experiment: what is asked, which laws come out of planted rows, and how they are reported."""

import dataclasses
import json
import math
import re
import tomllib
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from sims import figures, population
from sims.command import PRESETS, Facts
from sims.encode.report import NAMES as REPRESENTATIONS
from sims.lab.files import RunError, toml_text
from sims.lab.laws import LawFit
from sims.lab.options import options, preset_options
from sims.scaling import laws as scaling_laws
from sims.scaling import plots
from sims.scaling import report as scaling_report
from sims.scaling.additive import LEADING, fit_floats
from sims.scaling.experiment import CRITERIA, LEAST_R, Scaling, sweeps
from theory.spectrum import least_points

# What is asked.


@given(st.integers(1, 9), st.floats(0.1, 2.0), st.floats(1.1, 20.0))
def test_neighbours_in_the_grid_of_points_are_close(r, low, factor):
    scaling = dataclasses.replace(Scaling(), m1_low=low, m1_high=low * factor)
    grid = scaling.m1_grid(r)
    assert grid[0] == max(1, math.floor(low * r * r))
    assert grid[-1] >= low * factor * r * r
    assert all(a < b <= max(a + 1, 1.4 * a) for a, b in pairwise(grid))


@given(st.floats(0.5, 20.0))
def test_tasks_hold_the_diversity(diversity):
    """L J/(r d) as near to its setting as an integer J >= 1 allows."""
    scaling = dataclasses.replace(Scaling(), diversity=diversity)
    for place in scaling.tasks():
        task = scaling.task(*place)
        unit = task["L"] / (task["r"] * task["d"])
        assert task["J"] >= 1
        assert abs(task["J"] * unit - diversity) <= max(0.5, 1 - diversity / unit) * unit * (1 + 1e-12)


def test_tasks_run_along_d_then_l_then_r_without_repeats():
    scaling = Scaling()
    tasks = scaling.tasks()
    assert len(tasks) == len(set(tasks))
    assert [d for d, r, width in tasks if (r, width) == (scaling.base_r, scaling.base_L)] == list(scaling.d)
    assert {width for d, r, width in tasks if (d, r) == (scaling.base_d, scaling.base_r)} >= set(scaling.L)
    assert [r for d, r, width in tasks if r != scaling.base_r] == list(scaling.r_real)
    for d, r, width in tasks:
        assert scaling.task(d, r, width)["samples"] == scaling.samples
        assert scaling.task(d, r, width)["head_samples"] <= scaling.samples * d * d


def test_every_trial_of_a_plan_has_its_own_configuration():
    plan = sweeps(SMALL, "numpy")
    assert [sweep.kind for sweep in plan] == ["spectrum", "risk", "population-risk", "rows", "baselines", "head"]
    for sweep in plan:
        keys = [json.dumps(config, sort_keys=True) for config in sweep.configs]
        assert len(keys) == len(set(keys))
    counts = {sweep.kind: len(sweep.configs) for sweep in plan}
    assert counts["risk"] == SMALL.seeds * len(SMALL.tasks())
    assert counts["spectrum"] == sum(SMALL.spectrum_draws // r for r in SMALL.r)
    assert all(sum(c["r"] == r for c in plan[2].configs) >= 6 for r in SMALL.r_risk)
    assert counts["rows"] == SMALL.rows_seeds * len(SMALL.r_rows)
    assert counts["baselines"] == SMALL.baseline_seeds * len(SMALL.tasks())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"L": (31, 64, 128)}, "even width: L=31"),
        ({"L": (64, 128)}, "at least three increasing values >= 1: L=[64, 128]"),
        ({"d": (16, 64, 32)}, "d=[16, 64, 32]"),
        ({"d": (0, 8, 16)}, "d=[0, 8, 16]"),
        ({"r": (1, 4, 8)}, f"r >= {LEAST_R}: r=[1, 4, 8]"),
        ({"head_L": (31, 64, 128)}, "even width: L=31"),
        ({"r_real": (40,)}, "r=40 > d=32"),
        ({"base_L": 0}, "base_L=0"),
        ({"r_rows": (4, 8)}, "r_rows=[4, 8]"),
        ({"rows_d": 8}, "r=12 > d=8"),
        ({"rows_diversity": 0.0}, "rows_diversity=0.0"),
        ({"baseline_seeds": 0}, "baseline_seeds=0"),
        ({"seeds": 1}, "seeds must be at least 2: seeds=1"),
        ({"spectrum_draws": 200}, "spectrum_draws must be at least 256: spectrum_draws=200"),
        ({"seed": -1}, "seed=-1"),
        ({"samples": 0.0}, "samples=0.0"),
        ({"samples": math.inf}, "samples=inf"),
        ({"diversity": math.nan}, "diversity=nan"),
        ({"level": 1.0}, "level=1.0"),
        ({"m1_low": 3.0, "m1_high": 2.0}, "m1_low=3.0, m1_high=2.0"),
        ({"m2_shares": ()}, "m2_shares=()"),
        ({"head_shares": (0.5, -1.0)}, "head_shares=(0.5, -1.0)"),
        ({"link": "septic"}, "unknown link 'septic'"),
    ],
)
def test_bad_experiments_are_refused_before_anything_runs(wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        dataclasses.replace(Scaling(), **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "scaling").glob("*.toml")))
def test_every_preset_is_a_valid_experiment(preset):
    config = tyro.cli(Scaling, args=preset_options(PRESETS / "scaling", preset))
    stored = tomllib.loads(toml_text(dataclasses.asdict(config)))
    assert tyro.cli(Scaling, args=options(stored)) == config, "a stored configuration comes back"
    assert (config == Scaling()) == (preset == "demo")


# Planted rows.

predicted = cache(least_points)
SMALL = Scaling(
    d=(16, 32, 64, 128),
    L=(64, 128, 256),
    r=(8, 16, 32),
    r_real=(3, 4),
    seeds=6,
    spectrum_draws=256,
    risk_draws=256,
    head_L=(16, 32, 64),
    base_d=32,
    base_L=128,
)


def planted(
    scaling: Scaling = SMALL,
    *,
    points: Any = lambda d, r: 1.5 * r * r,
    labels: Any = lambda width: 0.5 * width,
    head: Any = lambda width: width,
    exponents: dict[str, float] | None = None,
    spread: float = 0.15,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of curves that fall like 1/M1 and cross their level where asked, with log-normal noise common to a curve.

    points (d, r) -> M1* of the real samples; labels L -> M2*; head L -> labels of the head; exponents: of M1* in r by criterion.
    """
    rng, exponents = np.random.default_rng(0), exponents or {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for sweep in sweeps(scaling, "numpy"):
        rows[sweep.kind] = []
        for config in sweep.configs:
            noise = math.exp(spread * rng.standard_normal())
            grid = np.array(config.get("m1", config.get("grid", ())), float)
            r = config["r"]
            if sweep.kind == "spectrum":
                result = {}
                for name, threshold in population.THRESHOLDS.items():
                    theirs = name in exponents
                    least = predicted(8, name, threshold) * (r / 8) ** exponents[name] if theirs else predicted(r, name, threshold)
                    result[name] = threshold * least * noise / grid
            elif sweep.kind == "population-risk":
                curve = scaling.risk_ratio * 1.5 * r ** exponents.get("risk", 1.5) * noise / grid
                result = {"teacher": 0.5, "limit": 0.4, "plain": 0.5 * curve, "reflected": 0.5 * curve}
            elif sweep.kind == "rows":
                least = {name: scaling_laws._predicted_rows(scaling, r, name) for name in CRITERIA}
                result = {
                    f"rows_{name}": population.THRESHOLDS[name] * (least[name] or r) * noise / grid
                    if math.isfinite(least[name] or r)
                    else 1e9 / grid
                    for name in CRITERIA
                }
            elif sweep.kind == "baselines":
                result = {f"risk_{name}": 0.01 * (k + 1) * noise for k, name in enumerate(REPRESENTATIONS)}
                result |= {f"floats_{name}": config["M1"] * config["d"] + config["M2"] for name in REPRESENTATIONS}
            elif sweep.kind == "head":
                result = {"grid": [config["L"]], "errors": [1e-9], "least": head(config["L"])}
            else:
                over_m1 = points(config["d"], r) * noise / grid
                over_m2 = labels(config["L"]) / np.array(config["m2"], float)
                fresh = scaling.level * np.maximum(over_m1[:, None], over_m2[None, :])
                result = {"teacher": 0.02, "real": scaling.level * over_m1, "fresh": fresh.ravel()}
                result |= {"angle": (0.1 * noise / np.sqrt(grid)).tolist(), "singular_values": [1.0] * r + [0.1] * r}
                result |= {"same": scaling.functional_ratio * scaling.level * over_m1[-1] * over_m2, "fresh_real": 0.4 * scaling.level}
            plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in result.items()}
            rows[sweep.kind].append({"kind": sweep.kind, "failed": None} | config | plain)
    return rows


@pytest.fixture(scope="module")
def true_rows():
    return planted()


@pytest.fixture(scope="module")
def laws(true_rows):
    return scaling_laws.measure(SMALL, true_rows, resamples=120)


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
    assert inside(fits["r_risk"], 1.5)
    assert fits["r_risk"].verdict == "PASS"
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


def test_a_level_reached_at_the_start_of_the_grid_bounds_the_floats_and_leaves_the_slope():
    laws = scaling_laws.measure(SMALL, planted(points=lambda d, r: 0.1 if d == 16 else 1.5 * r * r), resamples=20)
    assert laws.fits["d"].censored == 1
    bounds = {f["d"]: f for f in laws.floats if f["at_start"]}
    assert list(bounds) == [16]
    assert bounds[16]["exact_head"] == SMALL.m1_grid(2)[0] * 16 + 128
    assert "1 task reaches the level at the start" in scaling_report.additive_text(laws)


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


def test_the_summary_has_its_stated_keys(laws):
    content = json.loads(scaling_report.summary(laws, Facts(7, 1, 2, "numpy")))
    for name in ("d", "L", "r_common_mode", "r_conditioning", "r_reflected", "r_risk"):
        fit = content["fit"][name]
        assert {"exponent", "interval", "predicted", "asymptotic", "excludes", "verdict"} <= set(fit)
        assert len(fit["interval"]) == 2
        assert fit["interval"][0] <= fit["exponent"] <= fit["interval"][1]
        assert fit["verdict"] in ("PASS", "FAIL")
    assert {name: content[name] for name in ("trials", "failed", "seconds", "backend")} == {
        "trials": 7,
        "failed": 1,
        "seconds": 2,
        "backend": "numpy",
    }
    assert [content["fit"][f"r_{name}"]["asymptotic"] for name in CRITERIA] == [2.0, 2.0, 1.0]
    assert set(content["additive"]) == {"functional", "exact_head"}


def test_the_report_keeps_stated_and_derived_apart_and_shows_every_law(laws, true_rows):
    text = scaling_report.report(SMALL, laws, true_rows, Facts(7, 1, 2, "numpy"))
    assert text.index("Stated in the paper") < text.index("Derived here")
    for name, label in scaling_report.NAMES.items():
        assert f"| {label} |" in text
        assert laws.fits[name].verdict in text
    for name in REPRESENTATIONS.values():
        assert f"| {name} |" in text
    for name in ("law.png", "risk.png", "memory.png", "geometry.png", "baselines.png"):
        assert f"(figures/{name})" in text


def test_figures_come_with_their_numbers(laws, true_rows):
    files = plots.figure_files(SMALL, laws, true_rows)
    for name in ("law", "risk", "memory", "geometry", "baselines"):
        assert files[f"{name}.png"][:4] == b"\x89PNG"
        assert files[f"{name}.pdf"][:4] == b"%PDF"
    for name, series in laws.series.items():
        header, *lines = files[f"law-{name}.csv"].splitlines()
        assert header.startswith("x,y,low,high")
        assert [float(line.split(",")[1] or "inf") for line in lines] == list(series.y)
    lines = files["risk-M1.csv"].splitlines()[1:]
    assert len(lines) == len(SMALL.d) * len(SMALL.m1_grid(SMALL.base_r))
    row = [float(value) for value in lines[0].split(",")[1:]]
    curves = [r["real"] for r in true_rows["risk"] if (r["d"], r["r"], r["L"]) == (SMALL.d[0], SMALL.base_r, SMALL.base_L)]
    assert row == pytest.approx([SMALL.m1_grid(2)[0], *np.quantile(np.array(curves)[:, 0], (0.25, 0.5, 0.75))])


def test_colours_do_not_run_out():
    assert figures.colour(0) == figures.colour(len(figures.COLOURS))


# Which formula fits the floats.

GRID = [(d, r, width) for d in (16, 32, 64, 128) for r in (2, 3, 4, 6) for width in (64, 256)]


def floats(leading: str, spread: float = 0.03, power: float = 0.0) -> Any:
    """(best, table) of floats* = 2 x the leading term x (log d)^power + 0.5 L + 10 at every task of GRID, with log-normal errors."""
    d, r, width = (np.array([task[k] for task in GRID], float) for k in range(3))
    exact = 2 * LEADING[leading](r, d) * np.log(d) ** power + 0.5 * width + 10
    noise = np.exp(spread * np.random.default_rng(0).standard_normal((41, len(GRID))))
    return exact * noise[0], exact * noise[1:] * noise[0]


def test_the_law_excludes_its_rivals_and_finds_no_logarithm():
    found = fit_floats(GRID, *floats("r^2 d"))
    assert {rival.term for rival in found.rivals} == set(LEADING) - {"r^2 d"}
    assert all(rival.excluded for rival in found.rivals)
    assert found.log_interval[0] - 0.26 <= 0 <= found.log_interval[1] + 0.26
    for (d, r), (width, interval) in found.break_even.items():
        assert width == pytest.approx((2 * r * r * d + 10) / (d + 1.5), rel=0.1)
        assert interval[0] <= width * 1.05
        assert width <= interval[1] * 1.05


@pytest.mark.parametrize("leading", ["r d", "r^3 d", "r^2 d^2", "r^2 d log r"])
def test_another_true_formula_fits_better_than_the_law(leading):
    rivals = {rival.term: rival for rival in fit_floats(GRID, *floats(leading)).rivals}
    assert not rivals[leading].excluded
    assert rivals[leading].interval[1] < 0


def test_a_planted_logarithm_is_found():
    found = fit_floats(GRID, *floats("r^2 d", 0.01, 1.0))
    assert found.log_power == pytest.approx(1, abs=0.3)
    assert not next(rival for rival in found.rivals if rival.term == "r^2 d log d").excluded


def test_floats_that_are_never_reached_have_no_fit():
    nothing = np.full(len(GRID), np.inf)
    found = fit_floats(GRID, nothing, np.tile(nothing, (3, 1)))
    assert (found.rivals, found.log_power, found.break_even) == ((), None, {})
