"""Energy of the population gradient on S* and off it, averaged over the directions of the rows.

    g(w) = (2 pi)^(-1/2) [H w - (1/2)(w.H w) w]          links of degree 2 and 3
    E |P g|^2 and E |(I - P) g|^2 are `row_population`; their ratio is (tau + 2)/(4 d) [1 + O(1/d)], tau = (tr H)^2/|H|^2:
    -(r + 6)/d <= 4 d ratio/(tau + 2) - 1 <= (2 + tau)/(d - tau)

Derivation: |H w|^2, (w.H w)^2 and (w.H w)^2 |P w|^2 are polynomials in P w, whose means on the sphere are Gaussian moments over
d, d (d + 2) and d (d + 2)(d + 4). The bounds: off/on = (2+tau)(d-r)/(4 (d+2)(d+4)) over a bracket in (1 - (2+tau)/(d+2), 1]. Checked by
quadrature over the sphere of the full Stein expansion, orders 3 included.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import exact_mean, link_of, links, quadratic_links, quartic_pair, sphere_mean
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.lemmas.stein_expansion import row
from proofs_check.margins import at_most, closeness
from theory.multi_index import HermiteLink
from theory.predictions import row_population, row_ratio_leading

TOLERANCE = 1e-11
HUGE, FAR = 10**15, 800
"""A sample size at which the sampling terms of the leading ratio are gone."""


def energies(link: HermiteLink, d: int, stretch: float = 1.0) -> np.ndarray:
    """(E |P g|^2, E |(I - P) g|^2) by quadrature of the Stein expansion, w = S v/|S v| for v uniform on the sphere of R^d, S = `stretch` on
    S* and 1 off it.
    """

    def of(v: np.ndarray) -> np.ndarray:
        p = stretch * v / math.sqrt(1.0 + (stretch**2 - 1.0) * float(v @ v))
        g = row(link.terms, [*p, 1.0], link.degree)  # the last entry: the coefficient of w, as if w had length one off S*
        return np.array([sum(a * a for a in g[:-1]), g[-1] ** 2 * (1.0 - float(p @ p))])

    # With S = I the integrand is a polynomial, otherwise a smooth function.
    return sphere_mean(of, d, link.r, 2 * link.degree + 2 if stretch == 1.0 else 24)


def margin(rng: np.random.Generator, terms: list[Any], extra: int, sample: int, stretch: float = 1.0) -> float:
    """extra: d - r; stretch: of the directions on S* before they are normalised."""
    link = link_of(terms)
    d = link.r + extra
    claim = row_population(link, d)
    found = energies(link, d, stretch)
    exact = closeness([claim.on, claim.off], found, TOLERANCE, float(np.sum(found)))
    tau = link.tau
    deviation = claim.ratio * 4.0 * d / (tau + 2.0) - 1.0
    upper = (2.0 + tau) / (d - tau) if d > tau else math.inf
    rate = at_most([deviation - upper, -deviation - (link.r + 6.0) / d], 0.0, TOLERANCE)
    leading = closeness(row_ratio_leading(link, 0.0, d, HUGE * d * d), (tau + 2.0) / (4.0 * d), 1e-9, 1.0 / d)
    return min(
        exact,
        rate,
        leading,
        quartic(rng, max(d, 8)),
        quartic(rng, FAR),
        closeness([(claim + claim).on, (claim * 3.0).off], [2.0 * claim.on, 3.0 * claim.off], TOLERANCE, claim.on),
    )


def quartic(rng: np.random.Generator, d: int) -> float:
    """What a small part of degree 4 adds: its terms linear in it, from two opposite ones. Off S* exactly, on S* to O(1/d)."""
    up, down = quartic_pair(rng, 1e-2)
    found = (energies(up, d) - energies(down, d)) / 2.0
    one, other = row_population(up, d), row_population(down, d)
    claim = np.array([one.on - other.on, one.off - other.off]) / 2.0
    inner, outer = (abs(x) for x in up.quartic_traces)
    size = (float(np.sum(up.hessian**2)) * float(np.linalg.norm(up.degree_tensor(4))) + inner + outer) / d**2
    on = closeness(claim[0], found[0], 10.0 / d, size) if d == FAR else 1.0
    return min(on, closeness(claim[1], found[1], 1e-6, size / d))


def symbolic() -> Iterator[Identity]:
    d, r, tau = sp.symbols("d r tau", positive=True)
    h1, h2, z1, z2 = sp.symbols("h1 h2 z1 z2", real=True)
    h = h1 * z1**2 + h2 * z2**2

    frobenius, trace = h1**2 + h2**2, h1 + h2
    fourth, sixth = exact_mean(h**2, z1, z2), exact_mean(h**2 * (z1**2 + z2**2), z1, z2)
    yield Identity("E (z.H z)^2 = 2 |H|^2 + (tr H)^2", sp.expand(fourth), sp.expand(2 * frobenius + trace**2))
    yield Identity("E (z.H z)^2 |z|^2 = (r + 4) E (z.H z)^2 at r = 2", sp.expand(sixth), sp.expand(6 * fourth))
    b4 = (2 + tau) / (d * (d + 2))  # E (w.H w)^2 / |H|^2 on the sphere
    on = 1 / d - b4 + b4 * (r + 4) / (d + 4) / 4
    off = b4 * (d - r) / (d + 4) / 4
    yield Identity("d off/on -> (tau + 2)/4", sp.limit(sp.cancel(d * off / on), d, sp.oo), (tau + 2) / 4)
    link = HermiteLink(((0.5, (2, 0)), (-0.25, (0, 2)), (0.75, (1, 1))))
    a = link.hessian
    norm2 = float((a * a).sum())
    exact = {d: 7, r: 2, tau: sp.nsimplify(float(a.trace()) ** 2 / norm2, rational=True)}
    energy = row_population(link, 7)
    for name, part, value in (("on", on, energy.on), ("off", off, energy.off)):
        yield Identity(f"the energy {name} S* in the code", value, sp.nsimplify(norm2, rational=True) * part.subs(exact) / (2 * sp.pi))


LEMMA = Lemma(
    number=4,
    name="off-subspace-energy",
    latex=(
        r"\frac{\mathbb E_w\|(I-P)\,g(w)\|^2}{\mathbb E_w\|P\,g(w)\|^2} = \frac{\tau+2}{4d}\,\bigl(1 + O(1/d)\bigr),\qquad "
        r"\tau = \frac{(\mathrm{tr}\,H)^2}{\|H\|_F^2}"
    ),
    plain="The population gradient leaves S* only along w itself, with relative energy (tau + 2)/(4d); terms of degree 3 do not matter.",
    source=Source("derived", "moments of the sphere"),
    assumptions={
        "degree_at_most_3": "the link has degree 2 and 3 only",
        "no_linear_part": "mean and linear part are removed",
        "isotropic_rows": "the directions w are uniform on the sphere",
    },
    instances=quadratic_links(),
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("degree_at_most_3", "degrees 2 and 4", {"terms": links([2, 4], max_r=2, all_of=True)}),
        Control("no_linear_part", "degrees 1 and 2", {"terms": links([1, 2], max_r=2, all_of=True)}),
        Control(
            "isotropic_rows",
            "directions stretched 1.5 to 3 times on S*",
            quadratic_links(max_r=2) | {"stretch": st.floats(1.5, 3.0)},
        ),
    ),
    examples=60,
    code=(
        "theory.predictions.row_population",
        "theory.predictions.Energy",
        "theory.predictions._hessian_sums",
        "theory.multi_index.HermiteLink",
    ),
)
