"""Measures Q1 to Q5: what the teacher's rows and the distilled points encode of S*."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sims.measures.measure import Cell, Config, Grids, Measure, Table, product
from theory import geometry, predictions
from theory.multi_index import HermiteLink, make_link

SHARED: dict[str, Any] = {"r": 2, "link": "quadratic", "noise": 0.0, "per_d2": 16, "preprocessing": "ols"}
DIRECTIONS = SHARED | {"K_per_d": 8.0, "M1": 32, "sets": 4, "kept": 0.0}
KERNEL = SHARED | {"M1": 16, "sets": 24, "neurons": 256}
DRAWS = {16: 100, 32: 48, 64: 20, 128: 12, 256: 12}
EVEN = 3  # times the draws where the even part is left in: one vector for all rows, so that more rows do not average it


def cells(shared: Mapping[str, Any], configs: list[dict[str, Any]], factor: float = 1.0) -> tuple[Cell, ...]:
    """Cells of the shared settings with each configuration's own; draws by d."""
    found = []
    for own in configs:
        config = {**shared, **own}
        draws = factor * DRAWS[config["d"]] * (1 if config["preprocessing"] == "ols" else EVEN)
        found.append(Cell(config, max(12, round(draws))))
    return tuple(found)


def samples(where: Config) -> int:
    """N."""
    return where["per_d2"] * where["d"] ** 2


def arguments(where: Config) -> tuple[HermiteLink, float, int, int]:
    """(link, noise, d, N), as every prediction takes them."""
    return make_link(where["link"], where["r"]), where["noise"], where["d"], samples(where)


def directions(where: Config) -> int | None:
    """K, None for the kernel limit."""
    return round(where["K_per_d"] * where["d"]) if "K_per_d" in where else None


def share(on: str, off: str) -> Any:
    """Statistic: pooled off/(on + off)."""

    def statistic(table: Table, where: Config) -> float:
        return float(table[off].sum() / (table[on].sum() + table[off].sum()))

    return statistic


def row_share(where: Config) -> float:
    """Predicted off-subspace share of the rows."""
    return predictions.teacher_rows(*arguments(where), where["preprocessing"]).fraction


def point_share(where: Config) -> float:
    """Predicted off-subspace share of the points, of x0 + D where the start is kept."""
    if where.get("kept", 0.0):
        return geometry.moved_points(*arguments(where), directions(where), where["kept"], where["preprocessing"]).fraction
    return predictions.distilled_points(*arguments(where), directions(where), where["preprocessing"]).fraction


OTHER_LINKS = [
    {"r": 1},
    {"r": 4},
    {"r": 8},
    {"r": 4, "link": "quadratic-plus"},
    {"r": 3, "link": "cross"},
    {"r": 2, "link": "quartic"},
    {"r": 4, "link": "graded"},
    {"r": 2, "link": "linear-quadratic"},
    {"r": 2, "noise": 0.5},
]
OTHER_PREPROCESSING = [
    own | {"preprocessing": preprocessing}
    for own in ({"link": "linear-quadratic"}, {"link": "cubic-plus"})
    for preprocessing in ("one-shot", "none")
]
VARIANTS = [{"d": 32, "per_d2": n} | own for own in OTHER_LINKS + OTHER_PREPROCESSING for n in (4, 16)]
QUICK = [*product(d=(16, 32), per_d2=(1, 4, 16)), {"d": 16, "per_d2": 4, "link": "cubic-plus"}]
FEW = [{"d": 16, "per_d2": 4} | own for own in OTHER_LINKS[1:6] + OTHER_PREPROCESSING[:2]]
FULL = [*product(d=(16, 32, 64), per_d2=(1, 4, 16, 64), link=("quadratic", "cubic-plus")), *VARIANTS]
WIDE = [
    *product(d=(128,), per_d2=(1, 4, 16), r=(8,), K_per_d=(2.0,), sets=(2,)),
    *product(d=(256,), per_d2=(1, 4), r=(8,), K_per_d=(2.0,), sets=(1,)),
]

GRID = Grids(cells(DIRECTIONS, QUICK + FEW), cells(DIRECTIONS, FULL) + cells(DIRECTIONS, WIDE, 3))
KERNEL_GRID = Grids(
    cells(KERNEL, QUICK + FEW),
    cells(KERNEL, FULL + product(d=(128,), per_d2=(1, 4, 16, 64), r=(4,)) + product(d=(256,), per_d2=(1, 4), r=(8,))),
)
KEPT_GRID = Grids(
    cells(DIRECTIONS, product(d=(16, 32), per_d2=(4,), kept=(0.3, 1.0), link=("cubic-plus",))),
    cells(DIRECTIONS, product(d=(16, 32), per_d2=(4, 16), kept=(0.1, 0.3, 1.0, 3.0), link=("quadratic", "quadratic-plus"))),
)
DIVERSITY_GRID = Grids(
    cells(DIRECTIONS | {"sets": 16}, product(d=(16,), K_per_d=(0.5, 2.0, 8.0), M1=(8, 32)) + product(d=(32,), K_per_d=(0.5, 2.0))),
    cells(DIRECTIONS | {"sets": 24}, product(d=(16, 32, 64), K_per_d=(0.5, 1.0, 2.0, 4.0), M1=(8, 32), per_d2=(4, 16)), 2)
    + cells(DIRECTIONS | {"sets": 24}, [{"d": 32, "K_per_d": 1.0, "per_d2": 4} | own for own in OTHER_LINKS + OTHER_PREPROCESSING]),
)
ANGLE_GRID = Grids(
    cells(KERNEL, [{"d": 32, "per_d2": 16, "M1": m1, "r": r, "sets": 12} for r, m1 in ((2, 8), (2, 32), (4, 16))]),
    cells(
        KERNEL,
        [
            {"d": d, "per_d2": n, "r": r, "link": link} | {"M1": m1}
            for d in (32, 64)
            for n in (16, 64)
            for r, link, m1 in ((2, "quadratic", 8), (2, "quadratic", 32), (4, "quadratic", 16), (2, "cubic-plus", 16), (2, "graded", 16))
        ],
        6,
    ),
)


def pooled_cosine(table: Table, where: Config) -> float:
    """sum <g, Hw> / (sum |g|^2 sum |Hw|^2)^(1/2)."""
    return float(table["inner"].sum() / math.sqrt((table["row_on"].sum() + table["row_off"].sum()) * table["aim"].sum()))


HERE = "derived here (theory.predictions)"
GEOMETRY = "derived here (theory.geometry)"

MEASURES = (
    Measure(
        "Q1",
        "off-subspace energy of the teacher's rows",
        "sum_i |(I - P) g_i|^2 / sum_i |g_i|^2 over the rows of the first full-data gradient",
        "teacher_rows: population and noise parts with all d - r directions, shrinkage by the removed mean and linear part; leading "
        "order q/(1+q), q = (pi/2)(sigma^2/|H|^2) d^2/N + (tau+2)/(4d)",
        HERE,
        "directions",
        share("row_on", "row_off"),
        row_share,
        GRID,
        "per_d2",
        precision=0.03,
    ),
    Measure(
        "Q2",
        "alignment of the rows with H w",
        "sum <g_i, H w_i> / (sum |g_i|^2 sum |H w_i|^2)^(1/2), the cosine pooled over rows",
        "E<g, Hw> (E|g|^2 E|Hw|^2)^(-1/2) at finite d and N; tends to 1 with N/d^2 and d",
        GEOMETRY,
        "directions",
        pooled_cosine,
        lambda where: geometry.alignment(*arguments(where), where["preprocessing"]),
        GRID,
        "per_d2",
        precision=0.03,
    ),
    Measure(
        "Q3",
        "off-subspace energy of the points, K directions",
        "the share of sum_m |x_m|^2 off S*, x_m the increments of one matching step (the step erases the start, so these are the points)",
        "(1 - 1/K) E_inf + E(g)/(2K), each with its noise and population parts",
        HERE,
        "directions",
        share("point_on", "point_off"),
        point_share,
        GRID,
        "per_d2",
        precision=0.03,
    ),
    Measure(
        "Q3.kernel",
        "off-subspace energy of the points, K = infinity",
        "as Q3 with the kernel kappa_0 in place of the average over directions",
        "E_inf: d^2/N with least squares, d^3/N without (or with one-shot removal of a linear part)",
        HERE,
        "kernel",
        share("kernel_on", "kernel_off"),
        point_share,
        KERNEL_GRID,
        "per_d2",
        precision=0.03,
    ),
    Measure(
        "Q3.kept",
        "off-subspace energy of points whose start was not erased",
        "as Q3 for x0 + D, |x0| = kept times the root-mean-square size of D",
        "E(D) + kept^2 |D|^2 spread over all directions + 2 kept |D| E<u, D>",
        GEOMETRY,
        "directions",
        share("point_on", "point_off"),
        point_share,
        KEPT_GRID,
        "kept",
        precision=0.03,
    ),
    Measure(
        "Q4",
        "principal angles between S* and the points",
        "sum over the r principal angles of tan^2, leading right singular space of M1 points against S*, K = infinity",
        "first-order perturbation: |X_off^T X_on (X_on^T X_on)^-1|^2",
        GEOMETRY,
        "kernel",
        lambda table, where: float(table["tangents"].mean()),
        lambda where: geometry.angle_tangents(*arguments(where), where["M1"], where["preprocessing"]),
        ANGLE_GRID,
        "M1",
        allowance=lambda where: (
            (point_share(where) + 1.0 / where["d"]) * geometry.angle_tangents(*arguments(where), where["M1"], where["preprocessing"])
        ),
        correction="first order in q: relative q_D + 1/d",
    ),
    Measure(
        "Q4.gap",
        "gap of the points' singular values at r",
        "median of s_r/s_(r+1) of M1 points, M1 > r",
        "a gap: at least 1.5 from N = 16 d^2 on (bound ours)",
        GEOMETRY,
        "kernel",
        lambda table, where: float(np.median(table["gap"])),
        lambda where: 1.5,
        ANGLE_GRID,
        "M1",
        relation="at least",
    ),
    Measure(
        "Q5",
        "common against specific part of the points",
        "|mean x|^2 / mean |x - mean x|^2 over M1 points",
        "(C/V + 1/M1)/(1 - 1/M1), C = [(1 - 1/K) E_even + E(g)/K]/4, V = E_K(D) - C; leading order rho/(1+rho) + 1/M1, rho = pi d/(2K)",
        GEOMETRY,
        "directions",
        lambda table, where: float(table["common"].sum() / table["specific"].sum()),
        lambda where: geometry.diversity(*arguments(where), directions(where), where["M1"], where["preprocessing"]),
        DIVERSITY_GRID,
        "K_per_d",
        precision=0.05,
    ),
)
