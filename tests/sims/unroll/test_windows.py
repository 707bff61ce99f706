"""Windowed methods against RaT-BPTT per outer step: planted ratios come back at their step, the start and what failed are left out."""

import dataclasses
import math

import numpy as np
import pytest

from sims.unroll import plots, report, windows
from sims.unroll.experiment import Unroll

CONFIG = Unroll(method=("rat-bptt", "at-bptt", "bptt"), d=(8,), r=(2,), M1=(2, 4, 8), seeds=6, checkpoints=3)
STEPS = [0, 1, 12, 150]


def planted(factor: dict[str, float]) -> list[dict]:
    """Numbers that vary tenfold from task to task; a method's ratio to rat-bptt is its factor to the power k at the k-th measured step."""
    tasks = np.random.default_rng(0).uniform(0.5, 5.0, CONFIG.seeds)
    rows = []
    for row in CONFIG.configs("numpy"):
        own = factor.get(row["method"], 1.0)
        jitter = 1.0 + 0.001 * row["draw"] * (row["method"] != "rat-bptt")
        curve = [99.0 if k == 0 and row["method"] == "bptt" else tasks[row["draw"]] * jitter * own**k for k in range(len(STEPS))]
        rows.append({"failed": None, "curve_step": STEPS} | row | {f"curve_{name}": curve for name in windows.MEASURES})
    return rows


def test_planted_ratios_are_found_at_their_step():
    found = windows.compare(CONFIG, planted({"at-bptt": 0.9, "bptt": 1.0}))
    assert list(found) == ["at-bptt", "bptt"]
    for k, step in enumerate(STEPS[1:], 1):
        here = [x for x in found["at-bptt"] if x.at == step]
        assert {x.name for x in here} == set(windows.MEASURES)
        assert all(x.ratio == pytest.approx(0.9**k, rel=0.01) and x.verdict == "lower" and x.n == 6 for x in here)
    assert all(x.ratio == pytest.approx(0.9**2, rel=0.01) for x in found["at-bptt"] if x.at is None)
    assert not [x for x in found["bptt"] if x.at == 0]


def test_a_failed_trial_takes_its_pair_along():
    rows = planted({})
    middle = CONFIG.M1[len(CONFIG.M1) // 2]
    rows = [row | {"failed": "diverged"} if (row["method"], row["draw"], row["M1"]) == ("rat-bptt", 2, middle) else row for row in rows]
    assert {x.n for found in windows.compare(CONFIG, rows).values() for x in found} == {5}


def test_the_answer_needs_both_methods_two_tasks_and_sets_on_the_way():
    for less in ({"method": ("at-bptt", "bptt")}, {"seeds": 1}, {"checkpoints": 1}):
        assert windows.compare(dataclasses.replace(CONFIG, **less), []) == {}


def test_a_number_that_is_not_positive_is_named():
    rows = [row | {"curve_angle_points": [1.0, 0.0, 1.0, 1.0]} for row in planted({})]
    with pytest.raises(FloatingPointError, match="a ratio of angle_points needs positive finite numbers"):
        windows.compare(CONFIG, rows)


def test_the_table_holds_the_whole_and_the_last_step_and_the_figure_every_step():
    found = windows.compare(CONFIG, planted({"at-bptt": 0.9}))
    lines = report.window_rows(found)
    assert [line[2] for line in lines] == [150, "all"] * 8
    files = plots.window_files(found)
    text = files["windows.csv"]
    assert isinstance(text, str)
    assert len(text.splitlines()) == 1 + 2 * 4 * 4
    cells = text.splitlines()[1].split(",")
    assert cells[:3] == ["at-bptt", "off_row_increments", "1"]
    assert math.isclose(float(cells[3]), 0.9, rel_tol=0.01)
