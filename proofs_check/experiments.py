"""Experiments to judge assumptions on: one sound experiment, and for each assumption the ways to break it alone.

`sound` draws an experiment of the theory's own kind on which every assumption holds that applies; a control takes it and a generator to
an experiment on which the named assumption fails: far outside, or a little beyond one of its bounds (proofs_check.edges).
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from proofs_check.changes import Change, of_shape, with_link
from proofs_check.edges import EDGES, beyond
from theory import two_layer
from theory.margins import Experiment, Thresholds
from theory.multi_index import as_backend, draw_model

D, R, L, N, M1, M2 = 24, 2, 120, 300, 32, 130


def sound(rng: np.random.Generator) -> Experiment:
    """An experiment of the theory's own kind on which every applicable assumption holds."""
    model = draw_model(D, R, "quadratic", rng)
    x = rng.standard_normal((N, D))
    design = np.column_stack([np.ones(N), x])
    y = model.clean(x)
    points0 = rng.standard_normal((M1, D))
    hessian = model.B @ model.link.hessian @ model.B.T
    return Experiment(
        model=model,
        degree=2,
        samples=16 * D**2,
        width=L,
        starts=8,
        m1=M1,
        preprocessed=True,
        x=x,
        y=y - design @ np.linalg.lstsq(design, y, rcond=None)[0],
        theta0=two_layer.symmetric_init(D, L, rng),
        points=1e3 * points0 @ hessian,
        points0=points0,
        labels1=np.ones(M1),
        decay=1.0,
        rows=rng.standard_normal((L, D)),
        biases=rng.standard_normal(L),
        features=rng.standard_normal((M2, L)),
        head=rng.standard_normal(L),
        labels2=rng.standard_normal(M2),
        lambda_s=1e-3,
        failure=1e-2,
        accuracy=0.05,
        seeds={"train": (1,), "distil": (2,), "test": (3,), "retrain": (4, 5), "bias": (6,)},
        # The statistical ones must not fail by chance in a long search.
        thresholds=Thresholds(significance=1e-9, sigma=7.0),
    )


def small(rng: np.random.Generator, low: float = 1e-6) -> float:
    """A defect between `low` and one."""
    return 10.0 ** rng.uniform(math.log10(low), 0.0)


def off_subspace(e: Any, rng: np.random.Generator) -> Experiment:
    away = rng.standard_normal(D)
    away -= e.model.B @ (e.model.B.T @ away)
    size = small(rng)
    return replace(e, target=lambda x: e.model.clean(x) + size * (x @ away))


def bent_start(leaf: int) -> Change:
    def spoil(e: Any, rng: np.random.Generator) -> Experiment:
        theta = [x.copy() for x in e.theta0]
        theta[leaf][tuple(rng.integers(n) for n in theta[leaf].shape)] += small(rng)
        return replace(e, theta0=tuple(theta))

    return spoil


def scaled_start(a: float, w: float) -> Change:
    return lambda e, rng: replace(e, theta0=(a * e.theta0[0], w * e.theta0[1], e.theta0[2]))


def copied_point(e: Any, rng: np.random.Generator) -> Experiment:
    points0 = e.points0.copy()
    points0[rng.integers(M1)] = 2.0 * e.x[rng.integers(N)]
    return replace(e, points0=points0)


def on_a_gate(e: Any, rng: np.random.Generator) -> Experiment:
    points, w = e.points.copy(), e.theta0[1][rng.integers(L)]
    points[0] = rng.standard_normal(D)
    points[0] -= w * (w @ points[0]) / (w @ w)
    return replace(e, points=points)


def repeated_feature(e: Any, rng: np.random.Generator) -> Experiment:
    features = e.features.copy()
    features[:, 0] = features[:, 1]
    return replace(e, features=features)


def near_dependence(e: Any, rng: np.random.Generator) -> Experiment:
    features = e.features.copy()
    features[:, 0] = features[:, 1] + 1e-9 * features[:, 0]
    return replace(e, features=features, thresholds=replace(e.thresholds, head_error=1e-8))


def emptied(leaf: str, row: int | None = None) -> Change:
    """An array, or one row of it, set to zero."""

    def spoil(e: Any, rng: np.random.Generator) -> Experiment:
        found = getattr(e, leaf).copy()
        found[slice(None) if row is None else row] = 0.0
        return replace(e, **{leaf: found})

    return spoil


def vanished_row(e: Any, rng: np.random.Generator) -> Experiment:
    a, w, b = e.theta0
    return replace(e, theta0=(a, np.where(np.arange(L)[:, None] == rng.integers(L), 0.0, w), b))


def shared_seed(role: str, other: str) -> Change:
    return lambda e, rng: replace(e, seeds={**e.seeds, role: (*e.seeds[role], e.seeds[other][0])})


FAR: dict[str, list[Change]] = {
    "A1": [
        lambda e, rng: replace(e, x=2.0 * e.x),
        lambda e, rng: replace(e, x=e.x + 1.0),
        lambda e, rng: replace(e, x=np.repeat(e.x[:30], 10, axis=0)),
        lambda e, rng: replace(e, x=np.sign(e.x)),
        emptied("x"),
    ],
    "A2": [of_shape(2, 2), lambda e, rng: replace(e, model=as_backend(e.model, np, np.float32))],
    "A3": [off_subspace],
    "A4": [lambda e, rng: replace(e, degree=1), lambda e, rng: replace(e, target=lambda x: np.sin(x @ e.model.B[:, 0]))],
    "A5": [lambda e, rng: with_link(e, (1.0 + small(rng), (2, 0)))],
    "A6": [of_shape(D, R, "odd"), lambda e, rng: with_link(e, (0.8, (2, 0)), (0.6, (0, 3)))],
    "A7": [of_shape(D, R, "odd")],
    "A8": [
        *(bent_start(leaf) for leaf in range(3)),
        lambda e, rng: replace(e, theta0=two_layer.gaussian_init(D, L, rng)),
        lambda e, rng: replace(e, theta0=tuple(x[:-1] for x in e.theta0)),
    ],
    "A9": [scaled_start(1.0, 3.0), scaled_start(2.0, 1.0), vanished_row],
    "A10": [lambda e, rng: replace(e, samples=2 * D**2), of_shape(D, R, "odd")],
    "A10-raw": [lambda e, rng: replace(e, preprocessed=False)],
    "A11": [of_shape(8, 6), of_shape(D, R, "odd")],
    "A12": [
        lambda e, rng: replace(e, y=e.y + small(rng)),
        lambda e, rng: replace(e, y=e.y + e.x @ np.full(D, 0.5)),
    ],
    "A13": [lambda e, rng: replace(e, decay=1.0 + small(rng)), lambda e, rng: replace(e, decay=0.0)],
    "A14": [
        lambda e, rng: replace(e, points=e.points0 + small(rng) * e.points0),
        lambda e, rng: replace(e, points=e.points0, distil_decay=0.5),
    ],
    "A15": [
        lambda e, rng: replace(e, labels1=np.where(np.arange(M1) == rng.integers(M1), -1.0, 1.0)),
        lambda e, rng: replace(e, labels1=np.where(np.arange(M1) == rng.integers(M1), 0.0, 1.0)),
        emptied("labels1"),
    ],
    "A16": [
        lambda e, rng: replace(e, points0=e.points0 * np.where(np.arange(D) == 0, 30.0, 1.0)),
        lambda e, rng: replace(e, points0=e.points0 + 5.0),
        lambda e, rng: replace(e, points0=e.points0 @ e.model.B @ e.model.B.T),
        copied_point,
        emptied("points0", 0),
    ],
    "A17": [lambda e, rng: replace(of_shape(D, 1)(e, rng), m1=4)],
    "A17-sufficient": [lambda e, rng: replace(e, m1=int(rng.integers(R, R**2)))],
    "A18": [lambda e, rng: replace(e, starts=1), lambda e, rng: replace(e, width=4)],
    "A19": [
        lambda e, rng: replace(e, biases=10.0 * e.biases),
        emptied("biases"),
        lambda e, rng: replace(e, rows=None, biases=np.where(np.arange(L) == 0, e.biases[1], e.biases)),
        emptied("rows"),
        emptied("rows", 0),
    ],
    "A20": [lambda e, rng: replace(e, accuracy=1e-3), of_shape(D, R, "odd")],
    "A21": [repeated_feature, near_dependence, emptied("features")],
    "A22": [lambda e, rng: replace(e, lambda_s=1e3), emptied("labels2")],
    "A23": [lambda e, rng: replace(e, width=4), lambda e, rng: replace(e, samples=10), of_shape(D, 6)],
    "A24": [
        *(shared_seed(fresh, role) for fresh in ("test", "retrain", "bias") for role in ("train", "distil")),
        *(shared_seed(*pair) for pair in (("test", "retrain"), ("test", "bias"), ("retrain", "bias"), ("retrain", "retrain"))),
    ],
    "A25": [on_a_gate, emptied("points"), emptied("points", 0)],
}
"""Ways that lie far outside, or outside of every bound."""

WAYS: dict[str, list[str]] = {
    name: [
        *(f"far outside: way {k + 1} of {len(ways)}" for k in range(len(ways))),
        *(f"just beyond: {edge.clause}" for edge in EDGES if edge.assumption == name),
    ]
    for name, ways in FAR.items()
}
"""What each control breaks, in the order of CONTROLS."""
CONTROLS: dict[str, list[Change]] = {
    name: [*ways, *(beyond(edge) for edge in EDGES if edge.assumption == name)] for name, ways in FAR.items()
}
"""Every way of breaking each assumption: those far outside, and each of its clauses just beyond the bound."""
