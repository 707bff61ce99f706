"""The population row of the teacher's first gradient, expanded in the Hermite tensors of the target.

    g(w) = E[f*(x) x 1{w.x >= 0}] = sum_k (c_k/k!) C_{k+1}(w^k, .) + w sum_k (c_{k+1}/k!) C_k(w^k),   |w| = 1,  C_k = E[grad^k f*]

c_k are the Hermite coefficients of the gate. For a polynomial f* the sums are finite and exact. Without mean and linear part,
    g(w) = (2 pi)^(-1/2) [H w - (1/2)(w.H w) w - (1/6) C_4(w^3, .) + ...]
with nothing of degree 3: c_2 = c_4 = 0. Derivation: Stein's lemma on x, then the Hermite expansion of the gate in w.x, whose degree-k
coefficient against a function is its k-th mean derivative along w. The check integrates over the half space exactly, in the
coordinates of S* and of w's part off it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import exact_half_mean, gauss_nodes, half_space_mean, link_of, links
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness
from theory.hermite import gate_coefficient
from theory.multi_index import HermiteLink

TOLERANCE = 1e-11


def form(terms: Sequence[Any], k: int, v: Sequence[Any], m: ModuleType = math) -> tuple[Any, list[Any]]:
    """(C_k(v^k), C_k(v^(k-1), .)) of sum_terms c prod_j he_{orders_j}: C_k(v^k) = k! sum c prod_j v_j^{o_j}/sqrt(o_j!)."""
    value, vector = 0, [0] * len(v)
    for c, orders in terms:
        if sum(orders) != k:
            continue
        scale = c * math.factorial(k) / m.sqrt(math.prod(math.factorial(o) for o in orders))
        value = value + scale * math.prod(x**o for x, o in zip(v, orders, strict=True))
        for j, o in enumerate(orders):
            if o:
                rest = math.prod(x ** (p - (i == j)) for i, (x, p) in enumerate(zip(v, orders, strict=True)))
                vector[j] = vector[j] + scale * o * rest / k
    return value, vector


def row(
    terms: Sequence[Any], w: Sequence[Any], degree: int, m: ModuleType = math, gate: Callable[[int], Any] = gate_coefficient
) -> list[Any]:
    """The right side at w, whose first coordinates are those of S*, from C_0 .. C_degree."""
    r = len(terms[0][1])
    inside, along = [0] * r, 0
    for k in range(degree + 1):
        value, vector = form(terms, k, w[:r], m)
        along = along + gate(k + 1) / math.factorial(k) * value
        if k:
            inside = [a + gate(k - 1) / math.factorial(k - 1) * b for a, b in zip(inside, vector, strict=True)]
    return [(inside[j] if j < r else 0) + along * x for j, x in enumerate(w)]


def margin(
    rng: np.random.Generator,
    terms: list[Any],
    beyond: int,
    sample: int,
    length: float = 1.0,
    spread: float = 1.0,
    threshold: float = 0.0,
    more: float = 0.0,
) -> float:
    """beyond: orders of the sums less the degree of the link; length: |w|; spread: standard deviation of x; threshold: the gate opens at
    w.x >= threshold |w|; more: coefficient of a term of one order more than the sums run to.
    """
    drawn = link_of(terms)
    r, last = drawn.r, drawn.degree + beyond
    link = HermiteLink((*drawn.terms, (more, (last + 1, *[0] * (r - 1))))) if more else drawn
    p = link.degree
    w = rng.standard_normal(r + 1)
    w *= length / np.linalg.norm(w)
    unit = w / length

    def f(x: np.ndarray) -> np.ndarray:
        x = spread * x
        return link(x[:, :r])[:, None] * x

    exact = half_space_mean(f, unit, p + 1)
    if threshold:  # the slab between the two gates is integrated by itself
        t, weight = np.polynomial.legendre.leggauss(24)
        t, weight = threshold * (t + 1.0) / 2.0, threshold * weight / 2.0
        frame = np.linalg.qr(np.column_stack([unit, np.eye(r + 1)]))[0][:, 1:]
        nodes, mass = gauss_nodes(r, p + 1)
        for place, share in zip(t, weight * np.exp(-(t**2) / 2.0) / math.sqrt(2.0 * math.pi), strict=True):
            exact = exact - share * np.tensordot(mass, f(nodes @ frame.T + place * unit), axes=1)
    plain = [(c, orders) for c, orders in link.terms]
    claim = row(plain, list(w), last)
    size = sum(abs(c) for c, _ in plain) * math.sqrt(math.factorial(p + 1))
    return closeness(np.asarray(claim, dtype=float), exact, TOLERANCE, size)


def symbolic() -> Iterator[Identity]:
    """Every polynomial of degree <= 4 on R^2 and every unit w of R^2 (rational parametrisation of the circle) at once."""
    a, t, s = sp.symbols("a t s", real=True)
    w = [(1 - a**2) / (1 + a**2), 2 * a / (1 + a**2)]
    x = [t * w[0] - s * w[1], t * w[1] + s * w[0]]

    def he(k: int, z: Any) -> Any:
        return sp.hermite_prob(k, z) / sp.sqrt(sp.factorial(k))

    def gate(k: int) -> Any:
        return sp.Rational(1, 2) if k == 0 else sp.hermite_prob(k - 1, 0) / sp.sqrt(2 * sp.pi)

    for orders in ((0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (2, 1), (4, 0), (3, 1), (2, 2)):
        f = he(orders[0], x[0]) * he(orders[1], x[1])
        claim = row([(1, orders)], w, sum(orders), sp, gate)
        for j in range(2):
            exact = exact_half_mean(f * x[j], t, s)
            yield Identity(f"g(w)[{j}] of he_{orders[0]}(x_0) he_{orders[1]}(x_1)", sp.cancel(exact - claim[j]), 0)
    y = sp.symbols("h0:2")
    bracket = [h * v - (y[0] * w[0] ** 2 + y[1] * w[1] ** 2) * v / 2 for h, v in zip(y, w, strict=True)]
    pieces = [row([(y[j] / sp.sqrt(2), (2, 0) if j == 0 else (0, 2))], w, 2, sp, gate) for j in range(2)]
    for j in range(2):
        yield Identity("(2 pi)^(1/2) g(w) = H w - (w.H w) w / 2", sp.sqrt(2 * sp.pi) * (pieces[0][j] + pieces[1][j]), bracket[j])


LEMMA = Lemma(
    number=2,
    name="stein-expansion",
    latex=(
        r"\mathbb E[f^*(x)\,x\,\mathbf 1_{w^\top x\ge0}] = \sum_k \frac{c_k}{k!}\,C_{k+1}(w^{\otimes k}) + w\sum_k \frac{c_{k+1}}{k!}\,"
        r"C_k(w^{\otimes k}),\qquad C_k = \mathbb E[\nabla^k f^*]"
    ),
    plain="The teacher's population row is a finite sum over the Hermite tensors of the target: H w first, nothing of degree 3.",
    source=Source("derived", "Stein's lemma and the Hermite expansion of the gate"),
    assumptions={
        "gaussian_inputs": "x ~ N(0, I)",
        "unit_row": "w has length one",
        "zero_bias": "the gate opens at w.x >= 0",
        "all_orders": "the degree of the link is at most the last order of the sums",
    },
    instances={"terms": links(range(5)), "beyond": st.integers(0, 2), "sample": st.integers(0, 2**32 - 1)},
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("gaussian_inputs", "standard deviation 1.2 to 2", {"spread": st.floats(1.2, 2.0)}),
        Control("unit_row", "length 1.2 to 2", {"length": st.floats(1.2, 2.0), "terms": links([2, 4], all_of=True)}),
        Control("zero_bias", "threshold 0.2 to 1", {"threshold": st.floats(0.2, 1.0)}),
        Control("all_orders", "the link has one order more", {"more": st.floats(0.5, 2.0), "terms": links(range(4))}),
    ),
    examples=60,
    code=("theory.hermite.gate_coefficient", "theory.multi_index.HermiteLink"),
)
