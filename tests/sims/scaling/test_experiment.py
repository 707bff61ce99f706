"""The scaling experiment: which tasks and trials are asked, and what is refused."""

import dataclasses
import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.command import PRESETS
from sims.scaling.command import PROGRAM
from sims.scaling.experiment import LEAST_R, Scaling, sweeps
from tests.sims.programs import preset_config, refuses
from tests.sims.scaling.planted import SMALL


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
    refuses(Scaling(), wrong, words)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "scaling").glob("*.toml")))
def test_every_preset_is_a_valid_experiment(preset):
    config = preset_config(PROGRAM, preset)
    assert (config == Scaling()) == (preset == "demo")
