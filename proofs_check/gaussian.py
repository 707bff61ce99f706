"""Exact means of polynomials: over a Gaussian half space, and over directions of the unit sphere; and random polynomial links.

    half_space_mean   E[f(x) 1{w.x >= 0}], x ~ N(0, I_k), |w| = 1
    sphere_mean       E f(P w), w uniform on the unit sphere of R^d, P the first r coordinates
    cap_mean          E[f(P w) 1{w.u >= threshold}], |u| = 1, u in the range of P

All are Gauss quadratures of high enough order (Golub-Welsch nodes from SciPy and NumPy), so their only error is rounding.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.laguerre import laggauss
from numpy.polynomial.legendre import leggauss
from scipy.special import beta as beta_function
from scipy.special import roots_jacobi

from theory.multi_index import HermiteLink

Terms = list[tuple[int, list[int]]]
"""A link as plain JSON: coefficients in hundredths with their Hermite orders."""
ANGLES, REACH = 40, 12.0
"""Nodes in the angle between w and u, and how many widths of its law they span."""


def gauss_nodes(k: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (n, k) and weights (n,) of N(0, I_k), exact up to `degree` in each variable."""
    t, weight = hermegauss(degree // 2 + 1)
    weight = weight / math.sqrt(2.0 * math.pi)
    points = np.array(list(itertools.product(t, repeat=k))).reshape(-1, k)
    return points, np.array([math.prod(ws) for ws in itertools.product(weight, repeat=k)])


def half_space_mean(f: Callable[[np.ndarray], np.ndarray], w: np.ndarray, degree: int) -> np.ndarray:
    """E[f(x) 1{w.x >= 0}] of a polynomial f: (n, k) -> (n, ...) of total degree <= `degree`.

    With t = w.x the even part of f in t counts half, and the odd part over t is a polynomial in u = t^2/2, which has law exp(-u) du.
    """
    k = w.shape[0]
    frame = np.linalg.qr(np.column_stack([w, np.eye(k)]))[0][:, 1:k]
    s, weight = gauss_nodes(k - 1, degree)
    u, mass = laggauss(degree // 2 + 1)
    t = np.sqrt(2.0 * u)
    whole, all_weights = gauss_nodes(k, degree)
    total = 0.5 * np.tensordot(all_weights, f(whole), axes=1)
    for place, share in zip(t, mass / (math.sqrt(2.0 * math.pi) * t), strict=True):
        odd = 0.5 * (f(s @ frame.T + place * w) - f(s @ frame.T - place * w))
        total = total + share * np.tensordot(weight, odd, axes=1)
    return total


def exact_half_mean(p: Any, t: sp.Symbol, s: sp.Symbol) -> Any:
    """E[p(t, s) 1{t >= 0}] of a polynomial in independent standard Gaussians, exactly."""
    half = [sp.Rational(1, 2), 1 / sp.sqrt(2 * sp.pi)]
    terms = sp.Poly(exact_mean(p, s), t).terms()
    for k in range(2, max((a for (a,), _ in terms), default=0) + 1):
        half.append((k - 1) * half[k - 2])
    return sum(c * half[a] for (a,), c in terms)


def exact_mean(p: Any, *gaussians: sp.Symbol) -> Any:
    """E p of a polynomial in independent standard Gaussians, exactly: E z^j = (j - 1)!! for even j."""
    terms = sp.Poly(sp.expand(p), *gaussians).terms()
    return sp.Add(*(c * sp.prod(sp.factorial2(j - 1) for j in orders) for orders, c in terms if all(j % 2 == 0 for j in orders)))


def sphere_nodes(r: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the unit sphere of R^r, r <= 3, exact up to `degree`."""
    angle = 2.0 * math.pi * np.arange(degree + 1) / (degree + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if r == 1:
        return np.array([[-1.0], [1.0]]), np.array([0.5, 0.5])
    if r == 2:
        return circle, np.full(degree + 1, 1.0 / (degree + 1))
    if r != 3:
        raise ValueError(f"nodes on the sphere are there for r <= 3: r={r}")
    height, weight = leggauss(degree // 2 + 1)
    rings = [np.column_stack([math.sqrt(1.0 - z * z) * circle, np.full(degree + 1, z)]) for z in height]
    return np.concatenate(rings), np.repeat(weight / (2.0 * (degree + 1)), degree + 1)


def ball_nodes(d: int, r: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (n, r) and weights of P w, exact up to `degree`: |P w|^2 ~ Beta(r/2, (d - r)/2), independent of its direction."""
    if d == r:
        lengths, share = np.array([1.0]), np.array([1.0])
    else:
        x, share = roots_jacobi(degree // 4 + 1, (d - r) / 2.0 - 1.0, r / 2.0 - 1.0)
        lengths, share = np.sqrt((1.0 + x) / 2.0), share / np.sum(share)
    nodes, weight = sphere_nodes(r, degree)
    return (lengths[:, None, None] * nodes).reshape(-1, r), np.outer(share, weight).ravel()


def sphere_mean(f: Callable[[np.ndarray], np.ndarray], d: int, r: int, degree: int) -> np.ndarray:
    """E f(P w) of a polynomial f: (r,) -> (...) of degree <= `degree`."""
    nodes, weight = ball_nodes(d, r, degree)
    return np.asarray(sum(p * f(v) for v, p in zip(nodes, weight, strict=True)))


def cap_mean(f: Callable[[np.ndarray], np.ndarray], u: np.ndarray, d: int, degree: int, threshold: float = 0.0) -> np.ndarray:
    """E[f(w_1 .. w_k) 1{w.u >= threshold}] of f: (n, k) -> (n, j), w uniform on the unit sphere of R^d, u a unit vector of R^k, k <= 4, d.

    w = u sin t + v cos t with v uniform across u; sin t = w.u has density cos^(d - 2) t dt / B(1/2, (d - 1)/2), negligible REACH of its
    widths away from the threshold. `degree` is that of f in v.
    """
    k, low = len(u), math.asin(threshold)
    frame = np.linalg.qr(np.column_stack([u, np.eye(k)]))[0][:, 1:k]
    v, weight = ball_nodes(d - 1, k - 1, degree)
    t, mass = leggauss(ANGLES)
    half = (min(math.pi / 2.0, low + REACH / math.sqrt(d)) - low) / 2.0
    t = low + half * (t + 1.0)
    mass = half * mass * np.cos(t) ** (d - 2) / beta_function(0.5, (d - 1) / 2.0)
    w = np.sin(t)[:, None, None] * u + np.cos(t)[:, None, None] * (v @ frame.T)
    return np.einsum("t,v,tvj->j", mass, weight, f(w.reshape(-1, k)).reshape(len(t), len(v), -1))


def quartic_pair(rng: np.random.Generator, size: float) -> tuple[HermiteLink, HermiteLink]:
    """Two links of r = 2 with one random part of degree 2 and opposite parts of degree 4, `size` times as large."""
    orders = {2: [(2, 0), (1, 1), (0, 2)], 4: [(4, 0), (3, 1), (2, 2), (1, 3), (0, 4)]}
    drawn = {k: rng.standard_normal(len(found)) for k, found in orders.items()}

    def link(sign: float) -> HermiteLink:
        return HermiteLink(
            tuple((c * (sign * size if k == 4 else 1.0), o) for k in (2, 4) for c, o in zip(drawn[k].tolist(), orders[k], strict=True))
        )

    return link(1.0), link(-1.0)


def link_of(terms: Sequence[Sequence[object]]) -> HermiteLink:
    """The link of plain terms."""
    return HermiteLink(tuple((float(c) / 100.0, tuple(int(k) for k in orders)) for c, orders in terms))  # pyright: ignore


def links(degrees: Sequence[int], max_r: int = 3, all_of: bool = False) -> st.SearchStrategy[Terms]:
    """Random terms of the given total degrees, coefficients 0.1 to 2 of either sign; `all_of`: every degree occurs."""
    coefficient = st.integers(10, 200).flatmap(lambda c: st.sampled_from([c, -c]))

    def of(r: int) -> st.SearchStrategy[Terms]:
        orders = [list(k) for k in itertools.product(range(max(degrees) + 1), repeat=r) if sum(k) in degrees]
        term = st.tuples(coefficient, st.sampled_from(orders))
        drawn = st.lists(term, min_size=1, max_size=6, unique_by=lambda one: tuple(one[1]))
        return drawn.filter(lambda terms: not all_of or {sum(k) for _, k in terms} == set(degrees))

    return st.integers(1, max_r).flatmap(of)


def quadratic_links(max_r: int = 3) -> dict[str, st.SearchStrategy[Any]]:
    """Instances of a population statement: links of degree 2 and 3 with a quadratic part, d - r, and the seed of what else is drawn."""
    return {
        "terms": links([2, 3], max_r).filter(lambda terms: any(sum(k) == 2 for _, k in terms)),
        "extra": st.integers(1, 40),
        "sample": st.integers(0, 2**32 - 1),
    }
