"""The order-0 arc-cosine kernel: how often two gates with one random direction are open together.

    kappa_0(rho) = P(w.x >= 0, w.y >= 0) = 1/4 + arcsin(rho) / (2 pi),   rho = x.y / (||x|| ||y||),  w rotation invariant

Stated by Cho and Saul (NIPS 2009), as twice this value. Only the direction of w in the plane of x and y counts; it is uniform there, and
both gates are open on an arc of pi - arccos(rho) out of 2 pi. Exact check: the orthant probability of two Gaussians has rho-derivative
phi_2(0, 0; rho), their density at 0 (Plackett), and the value 1/4 at rho = 0.
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, frequency
from theory.hermite import gate_coefficient
from theory.two_layer import forward

DIRECTIONS = 4000
TOLERANCE = 1e-10


def kernel(rho: Any, m: ModuleType = math) -> Any:
    """kappa_0 in the functions of `m`: math for floats, sympy for expressions."""
    return (m.pi + 2 * m.asin(rho)) / (4 * m.pi)


def margin(
    rng: np.random.Generator, pairs: list[list[float]], sample: int, stretch: float = 1.0, bias: float = 0.0, lengths: bool = False
) -> float:
    """x and y are the columns of `pairs`. The kernel against the Gaussian orthant probability, and against gates of random directions.

    stretch: the first coordinate of w is multiplied by it; bias: added to w.x and w.y; lengths: w is not normalised but of random length.
    """
    points = np.asarray(pairs).T
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    rho = float(np.clip(unit[0] @ unit[1], -1.0, 1.0))
    claim = kernel(rho)
    cov: Any = np.array([[1.0, rho], [rho, 1.0]])  # SciPy's default for it is an int, which a type checker takes at its word
    orthant = multivariate_normal.cdf([0.0, 0.0], cov=cov, allow_singular=True)

    w = rng.standard_normal((DIRECTIONS, points.shape[1]))
    w[:, 0] *= stretch
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    if lengths:
        w *= rng.exponential(size=(DIRECTIONS, 1))
    gate = forward((np.ones(DIRECTIONS), w, np.full(DIRECTIONS, bias)), unit).gate
    return min(closeness(orthant, claim, TOLERANCE), frequency(int(np.sum(gate[0] * gate[1])), DIRECTIONS, claim))


def symbolic() -> Iterator[Identity]:
    rho, u, v = sp.symbols("rho u v", real=True)
    claim = kernel(rho, sp)
    yield Identity("the arc (pi - theta)/(2 pi) at rho = cos theta", (sp.pi - sp.acos(rho)).rewrite(sp.asin) / (2 * sp.pi), claim)
    square = 1 - rho**2
    density = sp.exp(-(u**2 - 2 * rho * u * v + v**2) / (2 * square)) / (2 * sp.pi * sp.sqrt(square))
    yield Identity("d phi_2/d rho = d^2 phi_2/(du dv)", sp.diff(density, rho), sp.diff(density, u, v))
    yield Identity("d kappa_0/d rho = phi_2(0, 0; rho)", sp.diff(claim, rho), density.subs({u: 0, v: 0}))
    for place, value in ((0, sp.Rational(1, 4)), (1, sp.Rational(1, 2)), (-1, sp.Integer(0))):
        yield Identity(f"kappa_0({place}) = {value}", claim.subs(rho, place), value)
    for k in range(8):
        taylor = sp.diff(claim, rho, k).subs(rho, 0) / sp.factorial(k)
        yield Identity(f"order {k} in rho is c_k(gate)^2 / k!", gate_coefficient(k) ** 2 / math.factorial(k), taylor)


COORDINATE = st.integers(-30, 30).map(lambda n: n / 10)
PAIRS = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=6)

LEMMA = Lemma(
    number=5,
    name="arc-cosine-kernel",
    latex=(
        r"\mathbb E_w\,\mathbf 1_{w^\top x \ge 0}\,\mathbf 1_{w^\top y \ge 0} = \frac14 + \frac{\arcsin\rho}{2\pi},\qquad "
        r"\rho = \frac{x^\top y}{\|x\|\,\|y\|}"
    ),
    plain="Two inputs at angle theta share an open gate with chance (pi - theta)/(2 pi) when the weights have no preferred direction.",
    source=Source("stated", "Cho and Saul, NIPS 2009"),
    assumptions={
        "isotropic_weights": "the law of w is rotation invariant",
        "zero_bias": "gates switch at w.x = 0",
        "row_norms": "w has unit length",
    },
    instances={
        "pairs": PAIRS.filter(lambda rows: all(any(column) for column in zip(*rows, strict=True))),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("isotropic_weights", "one coordinate stretched 3 to 10 times", {"stretch": st.floats(3.0, 10.0)}),
        Control("zero_bias", "bias 0.2 to 1", {"bias": st.floats(0.2, 1.0)}),
        Control("row_norms", "random lengths", {"lengths": st.just(True)}),
    ),
    examples=200,
    code=("theory.two_layer.forward",),
)
