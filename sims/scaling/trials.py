"""The trials of a sweep: functions from a flat configuration to numbers, independent of each other and of where they run.

risk   one task, one seed: test risk on a grid of M1 points by M2 labels, with real heads and the full-data teacher beside it
rows   one task, one seed: conditioning of the retrained rows on S* over a grid of M1 points
head   one network, one seed: the least number of labels on line inputs that recovers its head
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sims import heads
from sims.arrays import to_numpy
from sims.lab.subspace import leading_subspace, principal_angles, singular_values
from sims.pipeline import Bench, distil_points, encode, fresh_network, task_of, teacher_network, trial_seed
from sims.population import encoded_criteria
from theory.multi_index import draw_index
from theory.two_layer import symmetric_init


def risk_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys: the fields of Task, `seed` and `draw`, `m1` and `m2` (grids), `backend`.

    teacher     risk of the full-data teacher
    real        M1 -> risk of retrained rows with a head on real samples
    fresh       (M1, M2) row by row -> risk of a second fresh network whose head comes from M2 labels of the first
    same        M2 -> risk of the first network with its head refitted on its own M2 labels, at the largest M1
    fresh_real  risk of the second network with a head on real samples, at the largest M1
    angle       M1 -> largest principal angle (radians) between S* and the points' leading subspace; pi/2 below r points
    singular_values   of the largest set of points, the first 2 r
    """
    task = task_of(config)
    encoded = encode(task, trial_seed(config, task.d, task.r, task.L), config["backend"])
    bench = Bench.of(encoded)
    real, fresh, same, fresh_real, angle, values = [], [], [], 0.0, [], []
    index = to_numpy(encoded.model.B).astype(np.float64)
    for m1 in config["m1"]:
        points = distil_points(encoded, m1)
        x = to_numpy(points).astype(np.float64)
        angle.append(float(principal_angles(index, leading_subspace(x, task.r))[-1]) if m1 >= task.r else 0.5 * math.pi)
        first = bench.fit_real(*fresh_network(encoded, points, "retrain"))
        rows, biases = fresh_network(encoded, points, "retrain-again")
        real.append(bench.risk(first))
        fresh += [bench.risk(bench.fit_labels(first, rows, biases, m2)) for m2 in config["m2"]]
        if m1 == config["m1"][-1]:
            same = [bench.risk(bench.fit_labels(first, first.rows, first.biases, m2)) for m2 in config["m2"]]
            fresh_real = bench.risk(bench.fit_real(rows, biases))
            values = singular_values(x)[: 2 * task.r].tolist()
    risks = {"teacher": bench.risk(teacher_network(bench)), "real": real, "fresh": fresh, "same": same, "fresh_real": fresh_real}
    return risks | {"angle": angle, "singular_values": values}


def rows_trial(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """Keys: the fields of Task, `seed` and `draw`, `grid` of M1, `backend`. M1 -> each criterion at infinite retraining width."""
    task = task_of(config)
    encoded = encode(task, trial_seed(config, task.d, task.r, task.L), config["backend"])
    found = encoded_criteria(distil_points(encoded, config["grid"][-1]), encoded.model.B, config["grid"])
    return {f"rows_{name}": curve.tolist() for name, curve in found.items()}


def head_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys: d, r, L, seed, draw, tolerance, `shares` (grid of M2/L; M2 = L - 1, L, L + 1 are always in it).

    The network is a retrained one in the population limit: rows in S* with a share of 1 % of their energy off it. `least` is the least M2
    of the grid from which on the relative head error stays <= tolerance (None where it never does).
    """
    d, r, width = config["d"], config["r"], config["L"]
    rng = np.random.default_rng(trial_seed(config, d, r, width))
    a, rows, _ = symmetric_init(d, width, rng)
    index = draw_index(d, r, rng)
    rows = rows @ index @ index.T * a[:, None] / np.sqrt(r / d) + 0.1 * rows
    biases, head = rng.standard_normal(width), rng.standard_normal(width)
    direction = index @ rng.standard_normal(r)
    grid = sorted({max(1, round(share * width)) for share in config["shares"]} | {width - 1, width, width + 1})
    errors = [head_error(rows, biases, head, direction, m2) for m2 in grid]
    return {"grid": grid, "errors": errors, "least": least_from(grid, errors, config["tolerance"])}


def head_error(rows: np.ndarray, biases: np.ndarray, head: np.ndarray, direction: np.ndarray, m2: int) -> float:
    """||a_S - a_T|| / ||a_T|| of the least-norm head on M2 labels at line inputs."""
    phi = heads.features(rows, biases, heads.line_inputs(rows, biases, direction, m2))
    return float(np.linalg.norm(heads.least_norm_head(phi, phi @ head) - head) / np.linalg.norm(head))


def least_from(grid: Sequence[int], errors: Sequence[float], tolerance: float) -> int | None:
    """The least grid point from which on every error is <= tolerance."""
    good = [m2 for k, m2 in enumerate(grid) if all(e <= tolerance for e in errors[k:])]
    return good[0] if good else None
