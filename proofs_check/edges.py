"""Edges of the assumptions: one clause each, with experiments on which it stands at a given share of its bound and every other one holds.

    at(e, rng, f)   the clause's quantity is f times its bound:    margin = 1 - f (an upper bound),  f - 1 (a lower one)

`beyond` makes of an edge a control: an experiment a little on the wrong side.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from proofs_check import changes
from proofs_check.changes import COARSE, Change, ToShare, bounded, of_shape


@dataclass(frozen=True)
class Edge:
    """One clause of an assumption. `whole`: its quantity is a whole number, so that shares below 1 are all alike."""

    assumption: str
    clause: str
    at: ToShare
    upper: bool = True
    whole: bool = False

    def share(self, distance: float) -> float:
        """The share of the bound at which the margin is `distance`."""
        return 1.0 - distance if self.upper else 1.0 + distance


def beyond(edge: Edge) -> Change:
    """The clause fails by a relative 0.001 to 0.1."""
    return lambda e, rng: edge.at(e, rng, edge.share(-(10.0 ** rng.uniform(-3.0, -1.0))))


SIDES = (("above", 1.0), ("below", -1.0))
"""Which way a quantity of either sign is moved off."""

EDGES: tuple[Edge, ...] = (
    *(Edge("A1", f"mean {side}", changes.input_mean(sign)) for side, sign in SIDES),
    Edge("A1", "a large variance", changes.input_spread),
    Edge("A1", "a small variance", changes.input_least, upper=False),
    Edge("A1", "the law of the entries", changes.input_law, upper=False),
    Edge("A2", "orthonormal", changes.index_defect),
    Edge("A2", "r < d", lambda e, rng, f: of_shape(e.model.r + int(f >= 1.0), e.model.r)(e, rng), upper=False, whole=True),
    *(Edge("A3", f"power {power} off S*", changes.seen_off(power)) for power in (1, 2, 3)),
    *(Edge("A4", f"order p + {more}", changes.higher_order(more)) for more in range(1, 7)),
    *(
        Edge("A5", f"{part} {side}", changes.moment(part, sign))
        for part in ("variance", "raw variance", "mean", "linear")
        for side, sign in SIDES
    ),
    Edge("A6", "smallest eigenvalue", lambda e, rng, f: changes.second_direction(f * e.thresholds.rank, e), upper=False),
    Edge("A7", "kappa", lambda e, rng, f: changes.second_direction(0.5 / (f * e.thresholds.kappa), e)),
    *(Edge("A8", name, changes.bent(leaf)) for leaf, name in enumerate(("heads", "rows", "biases"))),
    Edge("A9", "a long row", changes.row_length(True)),
    Edge("A9", "a short row", changes.row_length(False), upper=False),
    *(Edge("A9", f"heads {side}", changes.head(sign)) for side, sign in SIDES),
    Edge("A10", "N", lambda e, rng, f: bounded(e, samples=e.samples / (f * e.model.d**2 * changes.kappa2(e) * e.model.r)), upper=False),
    Edge("A10-raw", "N", lambda e, rng, f: bounded(replace(e, preprocessed=False), raw=e.samples / (f * e.model.d**3)), upper=False),
    Edge("A11", "d", lambda e, rng, f: bounded(e, dimension=e.model.d / (f * math.sqrt(changes.kappa2(e)) * e.model.r**1.5)), upper=False),
    *(Edge("A12", f"mean {side}", changes.label_mean(sign)) for side, sign in SIDES),
    Edge("A12", "linear part", changes.label_slope),
    *(
        Edge("A13", f"decay {side}", lambda e, rng, f, s=s: bounded(replace(e, decay=1.0 + s * f * COARSE), exact=COARSE))
        for side, s in SIDES
    ),
    Edge("A14", "step", lambda e, rng, f: replace(e, points=e.points0 * (1.0 + f * e.thresholds.erase)), upper=False),
    *(
        Edge(
            "A14",
            f"decay {side}",
            lambda e, rng, f, s=s: bounded(replace(e, points=e.points0, distil_decay=1.0 + s * f * COARSE), exact=COARSE),
        )
        for side, s in SIDES
    ),
    *(Edge("A15", f"labels of sign {sign:+.0f}", changes.label_sign(sign), upper=False) for sign in (1.0, -1.0)),
    Edge("A16", "mean", changes.point_mean),
    Edge("A16", "a large variance", changes.point_spread),
    Edge("A16", "a small variance", changes.point_least, upper=False),
    Edge("A16", "angle to a real input", changes.point_angle, upper=False),
    Edge("A17", "r", lambda e, rng, f: replace(e, m1=e.model.r if f >= 1.0 else e.model.r - 1), upper=False, whole=True),
    Edge("A17", "delta", lambda e, rng, f: replace(of_shape(e.model.d, 1)(e, rng), failure=math.exp(-e.m1 / f)), upper=False),
    Edge("A17-sufficient", "M1", lambda e, rng, f: bounded(e, points=e.m1 / (f * e.model.r**2)), upper=False),
    Edge("A18", "L J", lambda e, rng, f: bounded(e, directions=e.width * e.starts / (f * e.model.r * e.model.d)), upper=False),
    Edge("A19", "law", changes.bias_law, upper=False),
    Edge("A19", "gap", changes.kink_gap, upper=False),
    Edge(
        "A20",
        "L",
        lambda e, rng, f: replace(e, accuracy=f * e.thresholds.width * (e.model.r * changes.kappa2(e)) ** 2 / e.width),
        upper=False,
    ),
    Edge(
        "A21",
        "M2",
        lambda e, rng, f: replace(e, labels2=None, features=changes.features(e, rng, 1.0)[: e.width if f >= 1.0 else e.width - 1]),
        upper=False,
        whole=True,
    ),
    Edge(
        "A21",
        "rank",
        lambda e, rng, f: bounded(replace(e, features=changes.features(e, rng, f * COARSE)), exact=COARSE, head_error=1.0),
        upper=False,
    ),
    Edge(
        "A21",
        "condition",
        lambda e, rng, f: bounded(
            replace(e, features=changes.features(e, rng, COARSE)), head_error=float(np.finfo(float).eps) / (f * COARSE)
        ),
    ),
    Edge("A22", "lambda_S", lambda e, rng, f: replace(e, lambda_s=f * float(e.labels2 @ e.labels2) / (4.0 * float(e.head @ e.head)))),
    Edge("A23", "weights", lambda e, rng, f: bounded(e, nontrivial=changes.stored(e) / (f * e.width * e.model.d))),
    Edge("A23", "data", lambda e, rng, f: bounded(replace(e, samples=50), nontrivial=changes.stored(e) / (f * 50 * e.model.d))),
    *(Edge("A25", f"distance, bias {biased}", changes.gate_distance(biased), upper=False) for biased in (False, True)),
)
"""Every clause that has a bound; A24 counts seeds and has none."""
