"""The population direction of the distilled points: proportional to H u, with the remainder in closed form.

    D(u) = E_w g(w) 1{w.u >= 0},   |u| = 1, w uniform on the sphere of R^d
         = m1 / (2 sqrt(2 pi) (d + 1)) [ d H u + (1/2)(u.H u - tr H) u ],   m1 = E|w_1|          links of degree 2 and 3
    E |P D|^2 and E |(I - P) D|^2 over u are `point_population`; their ratio is tau/(4 d) + O(1/d^2)

Derivation: g(w) = (2 pi)^(-1/2) [H w - (1/2)(w.H w) w] is odd in w, so w may be replaced by a Gaussian xi over its length, whose powers
1 and 3 have means E|xi| and (d + 1) E|xi|; the Gaussian half-space means are H u and (tr H + u.H u) u - ... by Stein's lemma. Checked
without any Gaussian: the Stein expansion of the link itself (lemma 2) by quadrature over the cap of the sphere, then over u.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import cap_mean, exact_half_mean, half_space_mean, link_of, links, quadratic_links, quartic_pair, sphere_mean
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.lemmas.stein_expansion import row
from proofs_check.margins import at_most, closeness
from theory.multi_index import HermiteLink
from theory.predictions import mean_abs_coordinate, point_population, point_ratio_leading

TOLERANCE = 1e-11
HUGE, FAR = 10**15, 800


def direction(hessian: np.ndarray, u: np.ndarray, d: int) -> np.ndarray:
    """The closed form, in the coordinates of S* followed by those of u off S*."""
    r = len(hessian)
    h_u = np.concatenate([hessian @ u[:r], np.zeros(len(u) - r)])
    quadratic = u[:r] @ hessian @ u[:r]
    return mean_abs_coordinate(d) / (2.0 * math.sqrt(2.0 * math.pi) * (d + 1)) * (d * h_u + 0.5 * (quadratic - np.trace(hessian)) * u)


def averaged(link: HermiteLink, u: np.ndarray, d: int, bias: float, stretch: float) -> np.ndarray:
    """E_w g(w) 1{w.u >= bias} by quadrature, w = S v/|S v| for v uniform on the sphere, S = `stretch` on S* and 1 off it."""
    r = link.r
    s = np.array([*[stretch] * r, 1.0])

    def of(v: np.ndarray) -> np.ndarray:
        w = v * s / np.sqrt(1.0 + (stretch**2 - 1.0) * np.sum(v[:, :r] ** 2, axis=1))[:, None]
        return np.stack(row(link.terms, list(w.T), link.degree), axis=1)

    # w.u and v.(S u) have one sign; with S = I the integrand is a polynomial, otherwise a smooth function.
    return cap_mean(of, s * u / np.linalg.norm(s * u), d, link.degree + 1 if stretch == 1.0 else 16, bias)


def quartic(rng: np.random.Generator) -> float:
    """What a small part of degree 4 adds to the energy on S*, linear in it, to O(1/d): two opposite ones by quadrature."""
    pair = quartic_pair(rng, 1e-2)
    length = math.sqrt(2.0) * math.exp(math.lgamma((FAR + 1) / 2) - math.lgamma(FAR / 2))
    third, fifth = length * (FAR + 1), length * (FAR + 1) * (FAR + 3)

    def on(link: HermiteLink) -> np.ndarray:
        a, c4 = link.hessian, math.sqrt(24.0) * link.degree_tensor(4)

        def gaussian(x: np.ndarray) -> np.ndarray:
            """The row at w = x/|x| with every power of |x| at its mean."""
            z = x[:, :2]
            cubed = np.einsum("abcd,nb,nc,nd->na", c4, z, z, z)
            bend = -0.5 * np.einsum("ni,ij,nj->n", z, a, z) / third + 0.125 * np.einsum("na,na->n", cubed, z) / fifth
            return z @ a / length - cubed / 6.0 / third + bend[:, None] * z

        def energy(v: np.ndarray) -> np.ndarray:
            u = np.array([*v, math.sqrt(max(0.0, 1.0 - float(v @ v)))])
            found = half_space_mean(gaussian, u, 5)
            return np.array([found @ found]) / (2.0 * math.pi)

        return sphere_mean(energy, FAR, 2, 10)

    found = float((on(pair[0]) - on(pair[1]))[0])
    claim = point_population(pair[0], FAR).on - point_population(pair[1], FAR).on
    size = float(np.sum(pair[0].hessian ** 2)) * float(np.linalg.norm(pair[0].degree_tensor(4))) / FAR**3
    return closeness(claim, found, 10.0 / FAR, size)


def margin(rng: np.random.Generator, terms: list[Any], extra: int, sample: int, bias: float = 0.0, stretch: float = 1.0) -> float:
    """extra: d - r; bias: the gates open at w.u >= bias; stretch: of the directions on S* before they are normalised."""
    link = link_of(terms)
    r, d, a = link.r, link.r + extra, link.hessian
    u = rng.standard_normal(r + 1)
    u /= np.linalg.norm(u)
    claim, exact = direction(a, u, d), averaged(link, u, d, bias, stretch)
    size = float(np.linalg.norm(a)) / d
    energy = point_population(link, d)

    def over_u(v: np.ndarray) -> np.ndarray:
        rest = math.sqrt(max(0.0, 1.0 - float(v @ v)))
        found = direction(a, np.array([*v, rest]), d)
        return np.array([found[:r] @ found[:r], found[r] ** 2])

    by_quadrature = sphere_mean(over_u, d, r, 6)
    tau = link.tau
    small = abs(energy.ratio - tau / (4.0 * d)) * d * d
    leading = point_ratio_leading(link, 0.0, d, HUGE * d * d)
    return min(
        closeness(claim, exact, TOLERANCE, size),
        closeness([energy.on, energy.off], by_quadrature, TOLERANCE, float(np.sum(by_quadrature))),
        at_most(small, (tau + 2.0) * (r + 6.0), 1e-6) if d > 2 * r else 1.0,
        closeness(leading, tau / (4.0 * d), 1e-9, 1.0 / d),
        quartic(rng),
    )


def symbolic() -> Iterator[Identity]:
    d, s, t = sp.symbols("d s t", positive=True)
    h1, h2 = sp.symbols("h1 h2", real=True)
    p, q = sp.symbols("p q", real=True)
    # u = (p, q) of length one; xi = t u + s u_perp with t >= 0.
    xi = (t * p - s * q, t * q + s * p)
    quadratic = h1 * xi[0] ** 2 + h2 * xi[1] ** 2

    uhu = h1 * p**2 + h2 * q**2
    for j, (h, x, v) in enumerate(zip((h1, h2), xi, (p, q), strict=True)):
        first, third = exact_half_mean(h * x, t, s), exact_half_mean(quadratic * x, t, s)
        bracket = sp.sqrt(2 * sp.pi) * (first * (d + 1) - third / 2)  # times 1/((d + 1) E|xi|)
        claim = d * h * v + (uhu - (h1 + h2)) * v / 2
        residual = sp.rem(sp.expand(bracket - claim), p**2 + q**2 - 1, q)
        yield Identity(f"(2 pi)^(1/2) (d + 1) E|xi| D(u)[{j}] / 1 = [d H u + (u.H u - tr H) u/2]", residual, 0)
    for dimension in (2, 3, 8):
        size = sp.gamma(sp.Rational(dimension, 2)) / (sp.gamma(sp.Rational(dimension + 1, 2)) * sp.sqrt(sp.pi))
        yield Identity(f"E|w_1| in R^{dimension} in the code", mean_abs_coordinate(dimension), size)
    yield Identity(
        "E|w_1| E|xi| = E|xi_1|, xi Gaussian",
        sp.gamma(d / 2) / (sp.gamma((d + 1) / 2) * sp.sqrt(sp.pi)) * sp.sqrt(2) * sp.gamma((d + 1) / 2) / sp.gamma(d / 2),
        sp.sqrt(2 / sp.pi),
    )
    tau, r = sp.symbols("tau r", positive=True)
    on, off = _energies(d, r, tau)
    yield Identity("d off/on -> tau/4", sp.limit(sp.cancel(d * off / on), d, sp.oo), tau / 4)
    link = HermiteLink(((0.5, (2, 0)), (-0.25, (0, 2)), (0.75, (1, 1))))
    norm2 = sp.nsimplify(float((link.hessian**2).sum()), rational=True)
    at = {d: 9, r: 2, tau: sp.nsimplify(float(link.hessian.trace()) ** 2, rational=True) / norm2}
    front = norm2 * (sp.gamma(sp.Rational(9, 2)) / (sp.gamma(5) * sp.sqrt(sp.pi)) / 10) ** 2 / (8 * sp.pi)
    found = point_population(link, 9)
    yield Identity("the energy on S* in the code", found.on, front * on.subs(at))
    yield Identity("the energy off S* in the code", found.off, front * off.subs(at))


def _energies(d: Any, r: Any, tau: Any) -> tuple[Any, Any]:
    """Of [d H u + (u.H u - tr H) u / 2] over |H|^2, from E u.H u = tr H/d, E (u.H u)^2 = (2 + tau)|H|^2/(d(d+2)) and |P u|^2."""
    b2, b4 = tau / d, (2 + tau) / (d * (d + 2))  # (tr H) E u.H u and E (u.H u)^2
    square_on = b4 * (r + 4) / (d + 4) - 2 * b2 * (r + 2) / (d + 2) + tau * r / d
    square = b4 - 2 * b2 + tau  # E (u.H u - tr H)^2
    return d * d / d + d * (b4 - b2) + square_on / 4, (square - square_on) / 4


LEMMA = Lemma(
    number=6,
    name="matching-direction",
    latex=(
        r"D(u) = \mathbb E_w\,g(w)\mathbf 1_{w^\top u\ge0} = \frac{m_1}{2\sqrt{2\pi}\,(d+1)}\Bigl[d\,H u + \tfrac12(u^\top H u - "
        r"\mathrm{tr}\,H)\,u\Bigr],\qquad m_1 = \mathbb E|w_1|"
    ),
    plain="A matching step moves a point along H u; the rest lies along the point itself, with relative energy tau/(4d) off S*.",
    source=Source("derived", "Gaussian means over the half space of u"),
    assumptions={
        "isotropic_rows": "the directions w are uniform on the sphere",
        "zero_bias": "gates open at w.u >= 0",
        "degree_at_most_3": "the link has degree 2 and 3 only",
    },
    instances=quadratic_links(),
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("isotropic_rows", "directions stretched 1.5 to 3 times on S*", {"stretch": st.floats(1.5, 3.0)}),
        Control("zero_bias", "gates at 0.1 to 0.6", {"bias": st.floats(0.1, 0.6)}),
        Control("degree_at_most_3", "degrees 2 and 4", {"terms": links([2, 4], max_r=2, all_of=True)}),
    ),
    examples=60,
    code=("theory.predictions.mean_abs_coordinate", "theory.predictions.point_population", "theory.predictions.Energy"),
)
