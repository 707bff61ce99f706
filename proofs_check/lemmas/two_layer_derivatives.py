"""Derivatives of the two-layer network's loss, in its parameters and in the data, of first and second order.

    loss = (1/2M) sum_m (sum_i a_i relu(w_i.x_m + b_i) - y_m)^2
    <g, v> = d/dt loss(theta + t v),    <Hc, v> + <Mc, u> = d/dt <c, g(theta + t v, S + t u)> at t = 0

Derivation: between gates f is a polynomial of degree 3 in (theta, S) jointly, so the loss along a line has degree at most 6 and a central
difference over seven points is exact. Starts: symmetric ones are identically zero, Gaussian ones have the stated second moments.
"""

from collections.abc import Callable, Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, refuses, sampled_mean
from theory import two_layer
from theory.distill.leaves import axpy, dot, norm, zip_map

TOLERANCE = 1e-8
SHORTEST = 0.01
STENCIL = {1: 45.0 / 60.0, 2: -9.0 / 60.0, 3: 1.0 / 60.0}
"""(f(kh) - f(-kh)) weights of the first derivative, exact up to degree 6."""


def slope(f: Callable[[float], float], h: float) -> float:
    """f'(0)."""
    return sum(weight * (f(k * h) - f(-k * h)) for k, weight in STENCIL.items()) / h


def margin(rng: np.random.Generator, sizes: dict[str, int], sample: int, on_boundary: bool = False) -> float:
    """on_boundary: the first gate is on its boundary at the first point."""
    d, width, m = sizes["d"], sizes["L"], sizes["M"]
    h = 0.0
    while h < SHORTEST:  # lines that come near a gate boundary leave no room for a difference
        theta = rng.standard_normal(width), rng.standard_normal((width, d)), rng.standard_normal(width)
        s = rng.standard_normal((m, d)), rng.standard_normal(m)
        c, v = (zip_map(lambda a: rng.standard_normal(a.shape), theta) for _ in range(2))
        u = zip_map(lambda a: rng.standard_normal(a.shape), s)
        if on_boundary:
            theta[2][0] = -(s[0][0] @ theta[1][0])
        z = s[0] @ theta[1].T + theta[2]
        z[0, 0] = np.inf if on_boundary else z[0, 0]  # no step is short enough for that gate; the others leave room
        drift = np.abs(s[0] @ v[1].T + v[2]) + np.abs(u[0] @ theta[1].T) + np.abs(u[0] @ v[1].T)
        h = min(0.3, 0.3 * float(np.min(np.abs(z) / drift)))

    g = two_layer.gradient(theta, s)
    value, same = two_layer.loss_and_gradient(theta, s)
    h_c, m_c = two_layer.second_order(theta, s, c)
    first = slope(lambda t: two_layer.loss(axpy(t, v, theta), s), h)
    second = slope(lambda t: float(dot(c, two_layer.gradient(axpy(t, v, theta), axpy(t, u, s)))), h)
    claim = float(dot(h_c, v)) + float(dot(m_c, u))
    largest = max(two_layer.loss(axpy(t, v, theta), axpy(t, u, s)) for t in (-3.0 * h, 0.0, 3.0 * h))
    size = (1.0 + largest) * (1.0 + norm(c)) * (1.0 + norm(v) + norm(u))

    f = two_layer.value(theta, s[0])
    written = sum(a * np.maximum(s[0] @ w + b, 0.0) for a, w, b in zip(*theta, strict=True))
    values = min(
        closeness(f, written, 1e-12, 1.0 + np.abs(f)), closeness(value, float(np.sum((f - s[1]) ** 2)) / (2 * m), 1e-12, 1 + value)
    )
    values = min(values, closeness(two_layer.loss(theta, s), value, 1e-12, 1.0 + value))
    repeated = min(
        closeness(a, b, 1e-12, 1.0 + np.abs(b).max()) for a, b in zip((*same, *two_layer.mixed(theta, s, c)), (*g, *m_c), strict=True)
    )
    return min(
        closeness(first, float(dot(g, v)), TOLERANCE, size), closeness(second, claim, TOLERANCE, size), values, repeated, starts(rng)
    )


def starts(rng: np.random.Generator) -> float:
    """What fresh parameters are, and which sizes are refused."""
    a, w, b = two_layer.symmetric_init(3, 6, rng)
    zero = closeness(two_layer.value((a, w, b), rng.standard_normal((5, 3))), 0.0, 1e-12)
    pairs = (
        *zip(w[:3], w[3:], strict=True),
        (a[:3], -a[3:]),
        (np.abs(a), np.ones(6)),
        (np.linalg.norm(w, axis=1), np.ones(6)),
        (b, np.zeros(6)),
    )
    symmetric = min(zero, *(closeness(left, right, 1e-12) for left, right in pairs))
    signs = two_layer.symmetric_init(1, 4000, rng)[0][:2000]
    heads, rows, biases = two_layer.gaussian_init(4, 2000, rng)
    moments = min(sampled_mean(heads**2, 1.0 / 2000), sampled_mean(rows**2, 1.0 / 4), sampled_mean(heads, 0.0), sampled_mean(signs, 0.0))
    two_layer.gaussian_init(1, 1, rng)
    bad = [(two_layer.symmetric_init, *sizes) for sizes in ((2, 0), (2, 3), (2, -2), (0, 2))]
    bad += [(two_layer.gaussian_init, *sizes) for sizes in ((0, 2), (2, 0))]
    open_gate = closeness(two_layer.forward((np.ones(1), np.ones((1, 1)), np.zeros(1)), np.zeros((1, 1))).gate, 1.0, 1e-12)
    return min(symmetric, moments, open_gate, closeness(biases, 0.0, 1e-12), 1.0 if all(refuses(*one, rng) for one in bad) else -9.0)


def symbolic() -> Iterator[Identity]:
    t, h = sp.symbols("t h", real=True)
    c = sp.symbols("c0:7")
    p = sp.Add(*(k * t**j for j, k in enumerate(c)))
    weights = {k: sp.Rational(n, 60) for k, n in ((1, 45), (2, -9), (3, 1))}
    difference = sum(w * (p.subs(t, k * h) - p.subs(t, -k * h)) for k, w in weights.items()) / h
    yield Identity("seven points give p'(0) of any p of degree 6", sp.expand(difference), c[1])
    a, w, b, x, y, ca, cw, cb = sp.symbols("a w b x y c_a c_w c_b", real=True)
    f = a * (w * x + b)  # one open neuron, one point
    loss = (f - y) ** 2 / 2
    g = [sp.diff(loss, one) for one in (a, w, b)]
    directional = ca * g[0] + cw * g[1] + cb * g[2]
    e, tangent = f - y, ca * (w * x + b) + a * (cw * x + cb)
    yield Identity("<c, g> = e t", sp.expand(directional - e * tangent), 0)
    yield Identity("Mc in x: t a w + e (c_a w + a c_w)", sp.expand(sp.diff(directional, x) - tangent * a * w - e * (ca * w + a * cw)), 0)
    yield Identity("Mc in y: -t", sp.expand(sp.diff(directional, y) + tangent), 0)
    yield Identity(
        "Hc in a: t (w x + b) + e (c_w x + c_b)", sp.expand(sp.diff(directional, a) - tangent * (w * x + b) - e * (cw * x + cb)), 0
    )


LEMMA = Lemma(
    number=24,
    name="two-layer-derivatives",
    latex=(
        r"\langle H c, v\rangle + \langle M c, u\rangle = \frac{d}{dt}\langle c,\ \nabla_\theta \ell(\theta + t v, S + t u)\rangle,\qquad "
        r"\ell = \frac{1}{2M}\sum_m (f(x_m) - y_m)^2"
    ),
    plain="Gradient and second-order products of the network's loss are its derivatives wherever no point lies on a gate boundary.",
    source=Source("derived", "chain rule; the loss is a polynomial between gates"),
    assumptions={
        "between_gates": "no point lies on the boundary of a gate",
    },
    instances={
        "sizes": st.fixed_dictionaries({"d": st.integers(1, 4), "L": st.integers(1, 5), "M": st.integers(1, 5)}),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(Control("between_gates", "one point on one boundary", {"on_boundary": st.just(True)}),),
    examples=60,
    also=(
        "tests/theory/test_two_layer.py::test_gradient_is_that_of_autograd",
        "tests/theory/test_two_layer.py::test_products_are_those_of_double_backward",
    ),
    code=("theory.two_layer",),
)
