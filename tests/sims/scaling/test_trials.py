"""Trials: pure functions of a flat configuration, whose results the store can hold."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.lab.store import TrialStore
from sims.pipeline import Bench, Task, distil_points, encode, fresh_network, label_inputs, teacher_network, trial_seed
from sims.scaling.trials import head_trial, least_from, risk_trial, rows_trial

TASK = Task(d=6, r=2, L=10, J=2, noise=0.2, samples=20.0, head_samples=300, validation=200, test=250, chunk=128)
RISK = dataclasses.asdict(TASK) | {"seed": 3, "draw": 1, "m1": [2, 5, 9], "m2": [5, 10], "backend": "numpy"}
HEAD = {"d": 6, "r": 2, "L": 12, "seed": 0, "draw": 0, "tolerance": 1e-6, "shares": [0.5, 0.9, 1.5]}


@pytest.fixture(scope="module")
def result():
    return risk_trial(RISK)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_trial_repeats_to_the_bit(dtype):
    config = RISK | {"dtype": dtype, "m1": [3]}
    assert risk_trial(config) == risk_trial(config)
    assert risk_trial(config) != risk_trial(config | {"draw": 2})
    assert risk_trial(config) != risk_trial(config | {"seed": 4})


def test_a_trial_is_the_pipeline_at_every_place_of_its_grid(result):
    """(M1, M2) row by row; the second network takes the first one's labels, `same` and `fresh_real` belong to the largest M1."""
    encoded = encode(TASK, trial_seed(RISK, TASK.d, TASK.r, TASK.L))
    bench = Bench.of(encoded)
    assert {name: np.shape(value) for name, value in result.items()} == {
        "teacher": (),
        "real": (3,),
        "fresh": (6,),
        "same": (2,),
        "fresh_real": (),
        "angle": (3,),
        "singular_values": (4,),
    }
    assert result["teacher"] == bench.risk(teacher_network(bench))
    index = encoded.model.B.astype(np.float64)
    for i, m1 in enumerate(RISK["m1"]):
        points = distil_points(encoded, m1)
        span = np.linalg.svd(points.astype(np.float64))[2][: TASK.r]
        least = np.linalg.svdvals(span @ index)[-1]
        assert result["angle"][i] == pytest.approx(np.arccos(min(1.0, least)), abs=1e-6)
        first, second = (fresh_network(encoded, points, role) for role in ("retrain", "retrain-again"))
        teacher = bench.fit_real(*first)
        assert result["real"][i] == bench.risk(teacher)
        for j, m2 in enumerate(RISK["m2"]):
            x = label_inputs(encoded, m2)
            assert result["fresh"][2 * i + j] == bench.risk(bench.fit(*second, x, teacher(x)))
            if i == 2:
                assert result["same"][j] == bench.risk(bench.fit(*first, x, teacher(x)))
    assert result["fresh_real"] == bench.risk(bench.fit_real(*second))
    np.testing.assert_allclose(result["singular_values"], np.linalg.svdvals(points.astype(np.float64))[:4], rtol=1e-6)


def test_fewer_points_than_directions_have_a_right_angle():
    assert risk_trial(RISK | {"m1": [1, 2]})["angle"][0] == np.pi / 2


def test_conditioning_of_real_rows_is_that_of_the_points():
    config = dataclasses.asdict(TASK) | {"seed": 3, "draw": 1, "grid": [3, 9], "backend": "numpy"}
    found = rows_trial(config)
    encoded = encode(TASK, trial_seed(config, TASK.d, TASK.r, TASK.L))
    points = distil_points(encoded, 9)
    neurons = np.random.default_rng(0).standard_normal((200_000, TASK.d))
    for k, m1 in enumerate(config["grid"]):
        rows = (neurons @ points[:m1].T >= 0) @ points[:m1] @ encoded.model.B
        reflected = (neurons @ points[:m1].T >= 0) - 0.5
        for name, value in (("conditioning", rows), ("reflected", reflected @ points[:m1] @ encoded.model.B)):
            spectrum = np.linalg.eigvalsh(value.T.astype(np.float64) @ value)
            assert found[f"rows_{name}"][k] == pytest.approx(spectrum[-1] / spectrum[0], rel=0.03)


def test_the_grid_does_not_change_what_it_contains(result):
    part = risk_trial(RISK | {"m1": [5, 9], "m2": [10]})
    assert part["teacher"] == result["teacher"]
    assert part["real"] == result["real"][1:]
    assert part["fresh"] == [result["fresh"][3], result["fresh"][5]]
    assert part["same"] == result["same"][1:]
    assert part["fresh_real"] == result["fresh_real"]


def test_results_survive_the_store(result, tmp_path):
    row = TrialStore(tmp_path).put("risk", RISK, result)
    assert {name: row[name] for name in result} == result
    head = head_trial(HEAD | {"tolerance": 1e-30})
    assert TrialStore(tmp_path).put("head", HEAD, head)["least"] is None


def test_trials_of_other_sizes_and_draws_have_other_seeds():
    places = [({"seed": s, "draw": k}, size) for s in (0, 1) for k in (0, 1) for size in ((4, 2, 8), (4, 2, 16), (8, 2, 8))]
    states = {tuple(trial_seed(config, *size).generate_state(4)) for config, size in places}
    assert len(states) == len(places)


@given(st.integers(1, 24), st.integers(2, 8), st.integers(0, 5))
def test_a_head_is_recovered_from_exactly_its_number_of_labels(half, d, draw):
    width = 2 * half
    found = head_trial(HEAD | {"L": width, "d": d, "draw": draw})
    assert found["grid"] == sorted(set(found["grid"]))
    assert {width - 1, width, width + 1, round(1.5 * width)} <= set(found["grid"])
    assert found["least"] == width
    below = [error for m2, error in zip(found["grid"], found["errors"], strict=True) if m2 < width]
    assert min(below) > 1e-6


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.1, 0.9])), min_size=1, max_size=8))
def test_the_least_place_is_the_one_from_which_on_all_is_well(steps):
    grid = np.cumsum([step for step, _ in steps]).tolist()
    errors = [error for _, error in steps]
    found = least_from(grid, errors, 0.5)
    last_bad = max((k for k, error in enumerate(errors) if error > 0.5), default=-1)
    assert found == (grid[last_bad + 1] if last_bad + 1 < len(grid) else None)
    assert least_from(grid, errors, 0.05) is None
    assert least_from(grid, errors, 0.9) == grid[0]
