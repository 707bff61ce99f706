"""The common mode of the retrained rows, and the number of points that bounds their conditioning.

    F(u) = (1/M1) sum_m x_m 1{u.x_m >= 0},  x_m ~ N(0, I_r),  xbar their mean;   A = E_u F F^T over isotropic u, |u| = 1
    A = A_0 + xbar xbar^T / 4,   A_0 = sum_mk arcsin(cos(x_m, x_k)) x_m x_k^T / (2 pi M1^2)
    E |xbar|^2/4 over the signal 1/(2 pi r) of one direction is pi r^2/(2 M1)
    cond A <= CONDITION at M1 = 4 r^2, r = 16 to 26        measured: a bound that the draws here keep, not a derived constant

Derivation: the gate is 1/2 + sign/2; the sign part has mean zero over u and meets the constant in E_u sign(u.x) = 0. |xbar|^2 M1 is
chi^2_r. By Weyl's inequality cond A <= (max eig A_0 + |xbar|^2/4) / min eig A_0; with M1 proportional to r^2 the second term is of the
order of the signal, with fewer it grows as r^2/M1: M1 in proportion to r breaks the bound at the larger r.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, sampled_mean
from sims.population import second_moments
from theory.predictions import common_mode_ratio

DRAWS, DIRECTIONS = 1000, 4000
CONDITION = 5.0


def margin(
    rng: np.random.Generator,
    r: int,
    m1: int,
    sample: int,
    linear: bool = False,
    shift: float = 0.0,
    paired: bool = False,
    signs: bool = False,
) -> float:
    """m1 for the energies; linear: M1 = 8 r for the conditioning; shift: mean of a point; paired: points are x, -x; signs: labels +-1."""

    def draw(n: int, m: int, size: int) -> np.ndarray:
        x = rng.standard_normal((n, m, size)) + shift
        if paired:
            x[:, m - m // 2 :] = -x[:, : m // 2]
        return x

    mean = np.mean(draw(DRAWS, m1, r), axis=1)
    energy = sampled_mean(np.sum(mean**2, axis=1) / 4.0 * (2.0 * math.pi * r), common_mode_ratio(r, m1))

    # One set: the exact second moment against rows of random directions.
    x = draw(1, m1, r)[0]
    reflected, xbar = second_moments(x, [m1])[0], np.mean(x, axis=0)
    gate = rng.standard_normal((DIRECTIONS, r)) @ x.T >= 0
    labels = np.where(rng.random(m1) < 0.5, -1.0, 1.0) if signs else np.ones(m1)
    rows = (gate * labels) @ x / m1
    products = (rows[:, :, None] * rows[:, None, :]).reshape(DIRECTIONS, -1)
    split = sampled_mean(products, (reflected + np.outer(xbar, xbar) / 4.0).ravel())

    size = 14 + 2 * r  # sizes at which r^2 and r can be told apart
    count = 8 * size if linear else 4 * size**2
    x = draw(1, count, size)[0]
    own, xbar = second_moments(x, [count])[0], np.mean(x, axis=0)
    full = np.linalg.eigvalsh(own + np.outer(xbar, xbar) / 4.0)
    return min(energy, split, closeness(full[-1] / full[0], 0.0, CONDITION))


def symbolic() -> Iterator[Identity]:
    r, m1 = sp.symbols("r M", positive=True)
    x = sp.symbols("x0:6", real=True)  # three points in the plane
    mean = [sum(x[j::2]) / 3 for j in range(2)]
    square: Any = sp.expand(sum(one**2 for one in mean))
    for one in x:  # E x_j = 0, E x_j^2 = 1
        square = square.coeff(one, 0) + square.coeff(one, 2)
    yield Identity("E |xbar|^2 = r/M1 at r = 2, M1 = 3", square, sp.Rational(2, 3))
    # Three points of the plane at multiples of 30 degrees: F is constant on twelve arcs of directions u.
    places = [sp.pi * k / 6 for k in (0, 2, 3)]
    points = [sp.Matrix([sp.cos(one), sp.sin(one)]) for one in places]
    arcs = [
        sum((q for one, q in zip(places, points, strict=True) if sp.cos(sp.pi * k / 12 - one) > 0), sp.zeros(2, 1)) / 3
        for k in range(1, 24, 2)
    ]
    xbar = sum(points, sp.zeros(2, 1)) / 3
    own = sum((f * f.T for f in arcs), sp.zeros(2, 2)) / 12 - xbar * xbar.T / 4
    found = second_moments(np.array(points, dtype=float).reshape(3, 2), [3])[0]
    for i, j in ((0, 0), (0, 1), (1, 1)):
        yield Identity(f"E_u F F^T - xbar xbar^T/4 of three points in the code, entry {i}{j}", float(found[i, j]), own[i, j])
    z = sp.Symbol("z", positive=True)
    half = sp.integrate(z * sp.exp(-(z**2) / 2), (z, 0, sp.oo)) / sp.sqrt(2 * sp.pi)
    ratio = (r / m1) / 4 / (half**2 / r)
    yield Identity("(1/4) E|xbar|^2 over (E z 1{z >= 0})^2 / r", ratio, sp.pi * r**2 / (2 * m1))
    for size, count in ((1, 1), (3, 5), (16, 256)):
        yield Identity(
            f"the ratio at r = {size}, M1 = {count} in the code", common_mode_ratio(size, count), ratio.subs({r: size, m1: count})
        )


LEMMA = Lemma(
    number=10,
    name="common-mode",
    latex=(
        r"\mathbb E_u F F^\top = A_0 + \tfrac14\bar x\bar x^\top,\qquad \frac{\mathbb E\|\bar x\|^2/4}{1/(2\pi r)} = \frac{\pi r^2}{2M_1},"
        r"\qquad \mathrm{cond} \le 5\ \text{ at } M_1 = 4r^2\ \text{(measured)}"
    ),
    plain="The mean point enters every retrained row, pi r^2/(2 M1) times the signal: of order r^2 points keep rows conditioned.",
    source=Source("derived", "gate = 1/2 + sign/2; the bound at 4 r^2 points is measured"),
    assumptions={
        "order_r2_points": "M1 = 4 r^2 (for the conditioning)",
        "centred_points": "the points have mean zero",
        "independent_points": "the points are drawn independently",
        "constant_labels": "all labels of the distilled set are equal",
    },
    instances={"r": st.integers(1, 6), "m1": st.integers(1, 24), "sample": st.integers(0, 2**32 - 1)},
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("order_r2_points", "M1 = 8 r", {"linear": st.just(True), "r": st.integers(5, 6)}),
        Control("centred_points", "mean 0.5 to 1", {"shift": st.floats(0.5, 1.0)}),
        Control("independent_points", "points in pairs x, -x", {"paired": st.just(True), "m1": st.integers(2, 24)}),
        Control("constant_labels", "labels +1 or -1 at random", {"signs": st.just(True), "r": st.integers(2, 6), "m1": st.integers(8, 24)}),
    ),
    examples=30,
    code=("theory.predictions.common_mode_ratio",),
)
