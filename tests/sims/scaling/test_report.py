"""What a scaling experiment tells its reader."""

import json

import numpy as np
import pytest

from sims import figures
from sims.command import Facts
from sims.encode.report import NAMES as REPRESENTATIONS
from sims.scaling import plots
from sims.scaling import report as scaling_report
from sims.scaling.experiment import CRITERIA
from tests.sims.scaling.planted import SMALL


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
    for name in ("law", "risk", "risk-in-r", "memory", "geometry", "baselines"):
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
