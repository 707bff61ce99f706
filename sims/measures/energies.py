"""Trials that look at one encoding from real (streamed) samples: energies of teacher rows and points, diversity, angles, retrained rows.

Keys of both: d, r, link, noise, per_d2 (N/d^2), preprocessing, M1, sets, seed, draw.

directions   K = K_per_d d distinct first-layer directions, `sets` independent ones on the same data; points through the matching step
kernel       K = infinity: points D(u) = (1/N) sum_n y_n x_n kappa_0(x_n, u), `sets` independent sets of M1
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sims import population, two_phase
from sims.arrays import GaussianStream
from sims.lab.subspace import leading_subspace, principal_angles, singular_gap, singular_values
from sims.pipeline import trial_seed
from sims.student import Student
from theory.multi_index import MultiIndexModel, as_backend, draw_model


class _Data:
    """The task of a trial with its residual labels."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        d = config["d"]
        model, stream, rest = trial_seed(config, d, config["r"], config["per_d2"]).spawn(3)
        self.rng = np.random.default_rng(rest)
        drawn = draw_model(d, config["r"], config["link"], np.random.default_rng(model), config["noise"])
        self.model: MultiIndexModel = as_backend(drawn, np, np.float32)
        self.stream = GaussianStream(stream, config["per_d2"] * d * d, d, dtype="float32")
        self.residual = two_phase.fit_residual(self.model, self.stream, config["preprocessing"])
        self.index = drawn.B


def energies(v: Float[np.ndarray, "n d"], index: Float[np.ndarray, "d r"]) -> tuple[float, float]:
    """Mean squared norms of the rows of v (on S*, off S*)."""
    on = float(np.mean(np.sum((v @ index) ** 2, axis=1)))
    return on, float(np.mean(np.sum(v * v, axis=1))) - on


def directions_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Means over the sets. `kept` (0: the step erases the start) is |x0| over the root-mean-square size of the increment.

    row_on, row_off     energies of teacher rows          row_along     theirs along each index direction
    inner, aim          mean <g_i, H w_i> and |H w_i|^2   cosine        median cosine over rows
    point_on, point_off energies of the points x0 + D     common, specific   |mean D|^2 and mean |D - mean D|^2
    """
    data, d, k, sets = _Data(config), config["d"], round(config["K_per_d"] * config["d"]), config["sets"]
    student = Student(d, 2 * k)
    starts = [student.init(data.rng) for _ in range(sets)]
    w = np.concatenate([theta[1][:k] for theta in starts])
    rows = two_phase.teacher_rows(data.model, data.stream, data.residual, w.astype(np.float32)).astype(np.float64)
    aims = w @ data.index @ data.model.link.hessian @ data.index.T
    inner = np.sum(rows * aims, axis=1)
    points = [_moved(student, theta, rows[j * k : (j + 1) * k], data, config) for j, theta in enumerate(starts)]
    out = np.mean([[*energies(x, data.index), *_spread(increment)] for x, increment in points], axis=0)
    sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(aims, axis=1)
    return {
        **dict(zip(("row_on", "row_off"), energies(rows, data.index), strict=True)),
        "row_along": np.mean((rows @ data.index) ** 2, axis=0).tolist(),
        "inner": float(inner.mean()),
        "aim": float(np.mean(np.sum(aims**2, axis=1))),
        "cosine": float(np.median(inner[sizes > 0] / sizes[sizes > 0])) if np.any(sizes > 0) else 0.0,
        **dict(zip(("point_on", "point_off", "common", "specific"), out.tolist(), strict=True)),
    }


def _moved(student: Student, theta: Any, rows: np.ndarray, data: _Data, config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(x0 + D, D) of one set."""
    d, m1 = config["d"], config["M1"]
    x0 = data.rng.standard_normal((m1, d))
    x0 /= np.linalg.norm(x0, axis=1, keepdims=True)
    step = -two_phase.matching_gradient(student, [theta], rows, x0, "inner_product") * (m1 / student.width)
    size = config["kept"] * math.sqrt(float(np.mean(np.sum(step**2, axis=1))))
    return size * x0 + step, step


def _spread(x: np.ndarray) -> tuple[float, float]:
    mean = x.mean(axis=0)
    return float(mean @ mean), float(np.mean(np.sum((x - mean) ** 2, axis=1)))


def kernel_points(data: _Data, u: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """D(u) = (1/N) sum_n y_n x_n kappa_0(x_n, u), kappa_0 = 1/4 + arcsin(cos)/(2 pi), |u| = 1."""
    total, unit = np.zeros(u.shape), u.astype(np.float32)
    for x, xi in data.stream:
        label = data.residual(x, data.model.labels(x, xi))
        cosine = x @ unit.T
        cosine /= np.linalg.norm(x, axis=1, keepdims=True)
        np.clip(cosine, -1.0, 1.0, out=cosine)
        np.arcsin(cosine, out=cosine)
        cosine /= 2.0 * math.pi
        cosine += np.float32(0.25)
        cosine *= label[:, None]
        total += cosine.T @ x
    return total / data.stream.n


def kernel_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """One entry a set where a list is given.

    kernel_on, kernel_off, along   energies of the points, and along each index direction
    tangents, gap                  sum of tan^2 of the r principal angles; s_r/s_(r+1)
    row_noise, row_signal          |F_1 - F_2|^2/2 and <F_1, F_2> of rows retrained on two sets from the same directions
    common_mode, conditioning      of the second moment of the rows on S* at L = infinity
    """
    data, d, r, m1, sets = _Data(config), config["d"], config["r"], config["M1"], config["sets"]
    u = data.rng.standard_normal((sets * m1, d))
    points = kernel_points(data, u / np.linalg.norm(u, axis=1, keepdims=True))
    split = points.reshape(sets, m1, d)
    on, off = energies(points, data.index)
    out: dict[str, Any] = {"kernel_on": on, "kernel_off": off, "along": np.mean((points @ data.index) ** 2, axis=0).tolist()}
    if m1 > r:
        angles = [principal_angles(data.index, leading_subspace(x, r)) for x in split]
        out["tangents"] = [float(np.sum(np.tan(a) ** 2)) for a in angles]
        out["gap"] = [singular_gap(singular_values(x), r) for x in split]
    w = data.rng.standard_normal((config["neurons"], d))
    rows = [(w @ x.T >= 0) @ x / m1 for x in split]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    out["row_noise"] = float(np.mean([np.sum((a - b) ** 2, axis=1).mean() / 2 for a, b in pairs]))
    out["row_signal"] = float(np.mean([np.sum(a * b, axis=1).mean() for a, b in pairs]))
    if m1 >= 2 * r >= 4:
        criteria = [population.encoded_criteria(x, data.index, [m1]) for x in split]
        out |= {name: [float(values[name][0]) for values in criteria] for name in ("common_mode", "conditioning")}
    return out


def neurons_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Population mode with L real neurons. Keys: r, M1, L, seed, draw. Condition number of (1/L) sum_i F(u_i) F(u_i)^T."""
    r, m1, width = config["r"], config["M1"], config["L"]
    rng = np.random.default_rng(trial_seed(config, r, m1, width))
    x, u = rng.standard_normal((m1, r)), rng.standard_normal((width, r))
    rows = population.retrained_rows(x, [m1], u)["plain"][:, 0]
    return {"conditioning": float(np.linalg.cond(rows.T @ rows))}


def retrained_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Population mode of one retrained row. Keys: d, r, link, M1, sets, seed, draw; points A u in S* with u uniform in R^d.

    row_noise, row_signal   as in `kernel_trial`, over `sets` pairs and as many directions
    """
    d, r, m1, sets = config["d"], config["r"], config["M1"], config["sets"]
    rng = np.random.default_rng(trial_seed(config, d, r, m1))
    hessian = draw_model(d, r, config["link"], rng).link.hessian
    # P u of a uniform u: a Gaussian over the norm of itself and d - r further coordinates.
    z = rng.standard_normal((2, sets, m1, r))
    z /= np.sqrt(np.sum(z * z, axis=-1, keepdims=True) + rng.chisquare(d - r, (2, sets, m1, 1)))
    x = z @ hessian
    gate = np.einsum("gsmr,sr->gsm", x, rng.standard_normal((sets, r))) >= 0
    rows = np.einsum("gsm,gsmr->gsr", gate.astype(float), x) / m1
    return {
        "row_noise": float(np.mean(np.sum((rows[0] - rows[1]) ** 2, axis=1)) / 2),
        "row_signal": float(np.mean(np.sum(rows[0] * rows[1], axis=1))),
    }
