"""Measure Q19, the negative controls: each takes one assumption away and must fail by the amount the theory gives."""

from typing import Any

import numpy as np

from sims.measures.encoding import DIRECTIONS, HERE, KERNEL, arguments, cells, directions, point_share, row_share, share
from sims.measures.measure import Config, Grids, Measure, Table, product
from sims.measures.risk import OURS, curve, fall, medians
from theory import geometry, predictions
from theory.multi_index import make_link


def _grids(shared: dict[str, Any], quick: list[dict[str, Any]], full: list[dict[str, Any]], factor: float = 1.0) -> Grids:
    return Grids(cells(shared, quick, factor), cells(shared, full, factor))


def real_risk(table: Table, where: Config) -> float:
    """Median risk, head on real samples."""
    return float(medians(table, "real")[where["place"]])


def lost_variance(where: Config) -> float:
    """Variance of the target that the directions with H e_j != 0 leave unexplained, over Var f*."""
    link = make_link(where["link"], where["r"])
    seen = np.eye(link.r)[:, np.any(link.hessian != 0.0, axis=1)]
    return 1.0 - link.captured_variance(seen) / link.variance


def lost_share(table: Table, where: Config) -> float:
    """Energy of teacher rows along the last index direction over their energy on S*."""
    return float(table["row_along"][:, -1].sum() / table["row_on"].sum())


def lost_share_predicted(where: Config) -> float:
    """The same from theory.geometry."""
    link, noise, d, n = arguments(where)
    along = geometry.direction_energies(link, noise, d, n).rows
    return float(along[-1] / along.sum())


def weak_over_strong(table: Table, where: Config) -> float:
    """Energy of the points along the last index direction over that along the first."""
    return float(table["along"][:, -1].sum() / table["along"][:, 0].sum())


def weak_over_strong_predicted(where: Config) -> float:
    """The same from theory.geometry."""
    along = geometry.direction_energies(*arguments(where)).points
    return float(along[-1] / along[0])


def excess_ratio(table: Table, where: Config) -> float:
    """q = E_off/E_on of the kernel points."""
    return float(table["kernel_off"].sum() / table["kernel_on"].sum())


def raw_ratio(where: Config) -> float:
    """Predicted q without preprocessing."""
    link, noise, d, n = arguments(where)
    return predictions.distilled_points(link, noise, d, n, None, where["preprocessing"]).ratio


def common_share(table: Table, where: Config) -> float:
    """Common part of the points over all of their energy."""
    return float(table["common"].sum() / (table["common"].sum() + table["specific"].sum()))


def common_share_predicted(where: Config) -> float:
    """The same from the predicted diversity ratio."""
    link, noise, d, n = arguments(where)
    ratio = geometry.diversity(link, noise, d, n, directions(where), where["M1"])
    return ratio / (1.0 + ratio)


MEASURES = (
    Measure(
        "Q19.odd",
        "control: odd link, H = 0",
        "off-subspace share of the teacher's rows, as Q1",
        "noise alone: nothing of S* but its share of directions and of y^2 |z|^2",
        HERE,
        "directions",
        share("row_on", "row_off"),
        row_share,
        _grids(DIRECTIONS | {"link": "odd"}, product(d=(16, 32), per_d2=(4, 16)), product(d=(16, 32, 64), per_d2=(4, 16, 64))),
        "per_d2",
        precision=0.03,
    ),
    Measure(
        "Q19.odd-risk",
        "control: odd link, risk",
        "median test risk, head on real samples, M1 = 8 r^2",
        "nothing is learned: at least 0.7 (" + OURS + ")",
        "derived here",
        "curve",
        real_risk,
        lambda where: 0.7,
        Grids(curve(6, "d", [32], [0], link="odd"), curve(10, "d", [32, 64], [0, 1], link="odd")),
        "at",
        relation="at least",
    ),
    Measure(
        "Q19.lost",
        "control: a direction lost from H",
        "energy of the teacher's rows along the lost direction over their energy on S*",
        "sampling noise and the (w^T H w) w term alone",
        "derived here (theory.geometry)",
        "directions",
        lost_share,
        lost_share_predicted,
        _grids(
            DIRECTIONS | {"link": "lost", "sets": 1, "r": 3},
            product(d=(16, 32), per_d2=(1, 4)),
            product(d=(16, 32, 64), per_d2=(1, 4, 16)),
            factor=3.0,
        ),
        "per_d2",
        precision=0.05,
    ),
    Measure(
        "Q19.lost-risk",
        "control: a direction lost from H, risk",
        "median test risk, head on real samples, N = 64 d^2, M1 = 8 r^2",
        "at least 0.9 of the variance that the lost direction carries (a tenth for what noise lets through: " + OURS + ")",
        "derived here",
        "curve",
        real_risk,
        lambda where: 0.9 * lost_variance(where),
        Grids(
            curve(6, "d", [32], [0], link="lost", r=3, samples=64.0),
            curve(10, "d", [32, 64], [0, 1], link="lost", r=3, L=256, samples=64.0),
        ),
        "at",
        relation="at least",
    ),
    Measure(
        "Q19.raw",
        "control: no preprocessing",
        "q = E_off/E_on of the points, K = infinity",
        "(pi^2/4) d^3/N in place of d^2/N at leading order",
        HERE,
        "kernel",
        excess_ratio,
        raw_ratio,
        Grids(
            cells(KERNEL | {"preprocessing": "none", "per_d2": 4, "r": 4}, product(d=(16, 32))),
            cells(KERNEL | {"preprocessing": "none", "r": 4}, product(d=(16, 32, 64, 128), per_d2=(4, 16)), 3),
        ),
        "d",
        precision=0.05,
    ),
    Measure(
        "Q19.few-starts",
        "control: L J too small",
        "common part of the points over all of their energy, K = d/4 directions",
        "ratio/(1 + ratio) of the diversity ratio: more than a third",
        "derived here (theory.geometry)",
        "directions",
        common_share,
        common_share_predicted,
        _grids(DIRECTIONS | {"K_per_d": 0.25, "sets": 48}, product(d=(16, 32)), product(d=(16, 32, 64), per_d2=(4, 16))),
        "d",
        precision=0.05,
    ),
    Measure(
        "Q19.few-starts-risk",
        "control: L J too small, risk",
        "median risk at J = 1 over that at J = 16, r = 4, d = 64, M1 = 2 r^2",
        "the common part costs risk: at least 1.2 (" + OURS + ")",
        "derived here",
        "curve",
        fall,
        lambda where: 1.2,
        Grids(
            curve(6, "J", [1, 16], [-1], r=4, L=256, d=64, per_r2=2.0),
            curve(12, "J", [1, 4, 16], [-1], r=4, L=256, d=64, per_r2=2.0),
        ),
        "at",
        relation="at least",
    ),
    Measure(
        "Q19.noise",
        "control: label noise",
        "off-subspace share of the points, K = infinity, noise of the size of the signal",
        "sigma^2 = Var f* + noise^2 in place of Var f*",
        HERE,
        "kernel",
        share("kernel_on", "kernel_off"),
        point_share,
        Grids(
            cells(KERNEL | {"noise": 1.0}, product(d=(16, 32), per_d2=(4,))),
            cells(KERNEL, product(d=(16, 32, 64), per_d2=(4, 16), noise=(1.0, 2.0)), 3),
        ),
        "d",
        precision=0.03,
    ),
    Measure(
        "Q19.ill",
        "control: ill-conditioned H",
        "energy of the points along the weakest index direction over that along the strongest",
        "(a_min/a_max)^2 = 1/16 at leading order: the encoding squares the condition number",
        "derived here (theory.geometry)",
        "kernel",
        weak_over_strong,
        weak_over_strong_predicted,
        _grids(KERNEL | {"link": "graded"}, product(d=(16, 32), per_d2=(16,)), product(d=(16, 32, 64), per_d2=(16, 64), r=(2, 4))),
        "d",
        precision=0.05,
    ),
)
