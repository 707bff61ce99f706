"""The comparison of flat with plain experts: planted ratios come back, pairs stay pairs, what failed or is missing is left out."""

import dataclasses
import math

import numpy as np
import pytest

from sims.unroll import flatness, plots, report
from sims.unroll.experiment import Unroll
from sims.unroll.experts import QUALITIES
from sims.unroll.laws import CRITERIA, level
from sims.unroll.recipe import Recipe

CONFIG = Unroll(Recipe(), method=("mtt", "ftd"), d=(8,), r=(2,), M1=(2, 4, 8), seeds=6, seed=3)
NAMES = {*QUALITIES, *flatness.MEASURES, *CRITERIA.values()}


def planted(factor: float, spread: float = 0.02, config: Unroll = CONFIG) -> list[dict]:
    """Numbers that vary tenfold from task to task, and ftd / mtt = factor up to a small spread; all fall as 1 / M1."""
    rng = np.random.default_rng(0)
    tasks, shift = rng.uniform(0.5, 5.0, config.seeds), spread * rng.standard_normal((config.seeds, 3))
    rows = []
    for row in config.configs("numpy"):
        ratio = factor * math.exp(shift[row["draw"], config.M1.index(row["M1"])]) if row["method"] == "ftd" else 1.0
        rows.append({"failed": None} | row | dict.fromkeys(NAMES, tasks[row["draw"]] * ratio / row["M1"]))
    return rows


def test_planted_ratios_are_found_though_tasks_differ_more():
    found = flatness.compare(CONFIG, planted(0.9))
    assert {x.name for x in found} == set(QUALITIES) | set(flatness.MEASURES)
    for x in found:
        assert x.n == 6
        assert x.interval[0] < x.ratio < x.interval[1]
        assert x.ratio == pytest.approx(0.9, rel=0.05)
        assert x.verdict == "lower"
    whole = [x for x in found if x.at is None]
    assert len(whole) == len(found) / 4
    assert {x.verdict for x in flatness.compare(CONFIG, planted(1.1)) if x.at is None} == {"higher"}
    assert {x.verdict for x in flatness.compare(CONFIG, planted(1.0, 0.5)) if x.at is None} == {"no difference resolved"}


def test_floats_follow_where_numbers_fall_with_them():
    """As 1 / M1: a tenth less of the number is a tenth less of the floats; out of the grid there is no ratio."""
    rows = planted(0.9, 0.0)
    for name, key in CRITERIA.items():
        factor = level(CONFIG, name) * 4 / 2.75
        for row in rows:
            row[key] = factor * (1 + 0.02 * row["draw"]) * (0.9 if row["method"] == "ftd" else 1.0) * (4 / row["M1"])
        at, interval = flatness.floats_ratio(CONFIG, rows, name, 100)
        assert at == pytest.approx(0.9, rel=0.03)
        assert interval is not None
        assert interval[0] <= at <= interval[1] < 1.0
    assert flatness.floats_ratio(CONFIG, [row | {"risk_erased": 99.0} for row in rows], "head", 10) == (None, None)


def test_a_failed_trial_takes_its_pair_along():
    rows = planted(0.9)
    lost = next(row for row in rows if (row["method"], row["draw"], row["M1"]) == ("mtt", 2, 4))
    rows = [{k: v for k, v in row.items() if k not in NAMES} | {"failed": "diverged"} if row is lost else row for row in rows]
    found = {(x.name, x.at): x.n for x in flatness.compare(CONFIG, rows)}
    assert found["risk_erased", 4] == found["risk_erased", None] == 5
    assert found["risk_erased", 8] == 6


def test_the_answer_needs_both_kinds_of_expert_and_two_tasks():
    assert flatness.asked(CONFIG)
    assert not flatness.asked(dataclasses.replace(CONFIG, method=("mtt",)))
    assert not flatness.asked(dataclasses.replace(CONFIG, seeds=1))
    one = dataclasses.replace(CONFIG, M1=(4,))
    assert {x.at for x in flatness.compare(one, planted(0.9, config=one))} == {None}


def test_the_answer_is_shown_with_its_numbers():
    found = flatness.compare(CONFIG, planted(0.9))
    lines = report.flat_rows(found)
    assert [line[1] for line in lines[:9]] == ["all"] * 9
    assert lines[0][2] == f"{found[3].ratio:.3f} [{found[3].interval[0]:.3f}, {found[3].interval[1]:.3f}]"
    content = flatness.as_json(CONFIG, planted(0.9), found)
    assert set(content["floats"]) == set(CRITERIA)
    assert len(content["ratios"]) == len(found)
    assert plots.flatness_files(found)["flatness.csv"].count("\n") == len(found) + 1
