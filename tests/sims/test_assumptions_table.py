"""Rows of the assumptions for tasks as they are run: what a task decides, what a run adds, and what lies outside."""

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from sims.assumptions_table import HEADERS, of_encoded, of_rows, of_task, ridge_of, table
from sims.heads import ridge_path
from sims.pipeline import Task, distil_points, encode
from theory.assumptions import ASSUMPTIONS

TASK = Task(d=12, r=2, L=40, J=8, link="quadratic", samples=20.0, head_samples=500, validation=100, test=100, dtype="float64", chunk=512)


@pytest.fixture(scope="module")
def encoded():
    return encode(TASK, np.random.SeedSequence(3))


def found(experiment):
    return {row.name: row for row in table(experiment).rows}


def test_a_task_decides_its_counts():
    rows = found(of_task(TASK, m1=4))
    assert list(rows) == list(ASSUMPTIONS)
    kappa2 = 0.5  # of the quadratic link at r = 2, whose mean Hessian is diag(1, -1)
    assert rows["A10"].margin == pytest.approx(TASK.N / (8.0 * 12**2 * kappa2 * 2) - 1.0)
    assert rows["A17-sufficient"].margin == 0.0
    assert rows["A17-sufficient"].holds
    assert rows["A18"].margin == pytest.approx(40 * 8 / (10.0 * 2 * 12) - 1.0)
    assert rows["A20"].holds is None
    assert rows["A20"].missing == ("accuracy",)
    assert rows["A10-raw"].cells[3] == "does not apply"
    assert rows["A1"].cells[3] == "not judged: needs x"
    assert not found(of_task(replace(TASK, r=1), m1=1, failure=1e-3))["A17"].holds


def test_a_run_inside_and_a_run_outside():
    inside = table(of_task(replace(TASK, samples=64.0, L=4000, J=16), m1=16))
    assert all(row.holds for row in inside.rows if row.holds is not None)
    assert "not judged" in inside.line
    assert "outside" not in inside.line
    outside = table(of_task(replace(TASK, samples=2.0, J=1, head_samples=200), m1=1))
    assert "this run lies outside" in outside.line
    assert all(f"{name} " in outside.line for name in ("A10", "A17", "A18"))
    assert "\n" not in outside.line
    odd = table(of_task(replace(TASK, link="odd"), m1=4)).line
    assert "A6 " in odd


def test_what_a_run_adds(encoded):
    points = distil_points(encoded, 8)
    rows = found(of_encoded(encoded, points))
    for name in ("A1", "A2", "A3", "A4", "A8", "A9", "A12", "A13", "A14", "A15", "A16", "A19", "A24", "A25"):
        assert rows[name].holds, (name, rows[name].margin)
    assert rows["A21"].missing == ("features",)
    spoiled = replace(of_encoded(encoded, points), points=np.zeros((8, 12)))
    assert not found(spoiled)["A25"].holds


def test_labels_as_they_are_lie_outside():
    task = replace(TASK, link="linear-quadratic", preprocessing="one-shot")
    rows = found(of_encoded(encode(task, np.random.SeedSequence(1))))
    assert not rows["A12"].holds, "one-shot removal leaves a part of the linear one"
    raw = found(of_encoded(encode(replace(task, preprocessing="none"), np.random.SeedSequence(1))))
    assert raw["A10"].holds is None
    assert raw["A10-raw"].holds is not None


def test_single_precision_is_judged_like_double():
    rows = found(of_encoded(encode(replace(TASK, dtype="float32"), np.random.SeedSequence(3))))
    assert rows["A2"].holds
    assert rows["A9"].margin is not None


def test_it_can_be_stored_and_printed(encoded):
    made = table(of_encoded(encoded, distil_points(encoded, 8)))
    assert json.loads(json.dumps(made.plain(), allow_nan=False))["A13"] == {"margin": 1.0, "holds": True}
    lines = made.markdown().splitlines()
    assert lines[0] == "| " + " | ".join(HEADERS) + " |"
    assert lines[-1] == made.line
    assert len(lines) == len(ASSUMPTIONS) + 4
    unlimited = table(replace(of_task(TASK), centred=True)).plain()["A18"]["margin"]
    assert math.isfinite(unlimited)


def test_a_sweep_names_the_task_that_lies_furthest_outside():
    """Two tasks, one with a link that one step cannot see: A6 fails there and holds at the other."""
    configs = [asdict(TASK) | {"m1": [2, 8], "draw": k} for k in range(3)] + [asdict(replace(TASK, link="odd")) | {"M1": 4}, {"d": 3}]
    made = of_rows(configs)
    assert len(made.tasks) == 2, "draws of one task are one task, other trials none"
    assert [("M1 = 8" in label, "M1 = 4" in label) for label in made.tasks] == [(True, False), (False, True)]
    assert "A6" in made.line
    assert "1 of 2 tasks" in made.line
    assert "odd" in made.line[made.line.index("A6") :]
    assert "\n" not in made.line
    rows = {line.split(" | ")[0].strip("| "): line for line in made.markdown().splitlines()}
    assert "| 1 of 2 |" in rows["A6"]
    assert "| 2 of 2 |" in rows["A2"]
    assert json.loads(json.dumps(made.plain(), allow_nan=False)).keys() == made.tasks.keys()
    assert rows["A1"].split(" | ")[2] == "not judged: needs x", "no trial of the sweep kept its sample"
    alone = of_rows(configs[:1])
    assert {name: row.margin for name, row in zip(("A2",), [alone.tasks[next(iter(alone.tasks))].rows[1]], strict=True)}["A2"] == (
        table(of_task(TASK, 8)).rows[1].margin
    )


def test_trials_that_judge_themselves_come_before_the_configuration_and_the_worst_counts():
    task = asdict(TASK) | {"M1": 8}
    judged = [task | {"margin_A1": 0.5, "margin_A12": -0.25, "margin_A20": None}, task | {"margin_A1": 0.125, "margin_A15": 0.0}]
    (made,) = of_rows([*judged, task]).tasks.values()
    rows = {row.name: row for row in made.rows}
    assert (rows["A1"].margin, rows["A1"].holds, rows["A1"].missing) == (0.125, True, ())
    assert (rows["A12"].margin, rows["A12"].holds) == (-0.25, False)
    assert (rows["A15"].margin, rows["A15"].holds) == (0.0, False), "one sign is a strict condition"
    assert rows["A20"].holds is None
    assert rows["A10"] == {row.name: row for row in table(of_task(TASK, 8)).rows}["A10"]


def test_what_no_run_can_break_is_said_to_hold_by_construction(encoded):
    said = {row.name for row in table(of_encoded(encoded, distil_points(encoded, 8))).rows if "by construction" in str(row.cells[3])}
    assert said == {"A13", "A15"}
    shown = re.findall(r"\| (A[\w-]+) \|[^\n]*, by construction", of_rows([asdict(TASK) | {"M1": 8}]).markdown())
    assert shown == ["A13", "A15"]


def test_the_ridge_of_a_head_is_read_from_its_normal_equations():
    """Against the penalty that ridge_path was given: relative, in units of the mean square feature times the number of inputs."""
    rng = np.random.default_rng(0)
    phi, y = rng.standard_normal((50, 8)), rng.standard_normal(50)
    for penalty in (1e-6, 0.1, 10.0):
        head = ridge_path(phi, y, (penalty,))[:, 0]
        assert ridge_of(phi, y, head) == pytest.approx(penalty * np.sum(phi**2) / 8, rel=1e-6)
    exact = np.linalg.lstsq(phi, y, rcond=None)[0]
    assert 0.0 <= ridge_of(phi, y, exact) < 1e-12


def test_the_points_start_where_the_matching_step_starts_and_are_erased_by_its_size(encoded):
    """A14 measured: the step is of size 1, the start of size start_norm / d; decay is not given."""
    experiment = of_encoded(encoded, distil_points(encoded, 8))
    assert experiment.distil_decay is None
    assert experiment.points0 is not None
    np.testing.assert_allclose(np.linalg.norm(experiment.points0, axis=1), TASK.start_norm / TASK.d, rtol=1e-12)
    assert found(experiment)["A14"].margin == pytest.approx(TASK.d / TASK.start_norm / 10.0, rel=1e-2)
