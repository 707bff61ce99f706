"""How alike distilled points are: the part they share over the part that tells them apart.

    D_m = (1/K) sum_i g(w_i) 1{w_i.u_m >= 0}, m <= M1;   common C = E D_m.D_k,  specific V = E|D_m|^2 - C
    C = E|g|^2/(4K),  V = C + (1 - 1/K) E_inf|D|^2,      C/V -> rho/(1 + rho),  rho = pi d/(2K)
    |mean|^2 / mean |D - mean|^2 = (C/V + 1/M1)/(1 - 1/M1),  to leading order rho/(1 + rho) + 1/M1        `diversity_ratio`

Derivation: two points share direction i with chance 1/4, and pairs of different directions cancel because E_w g = 0; the mean of M1 points
keeps C and V/M1. In the population, links of degree 2 and 3. Checked on drawn directions, with rows from the Stein expansion (lemma 2).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import link_of, links
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.lemmas.stein_expansion import row
from proofs_check.margins import closeness, sampled_mean
from proofs_check.sampled import directions
from theory.predictions import diversity_ratio, point_population, row_population

REPLICATES = 4000
FAR = 10**5


def margin(
    rng: np.random.Generator, terms: list[Any], extra: int, k: int, m1: int, sample: int, mirrored: bool = False, same: bool = False
) -> float:
    """extra: d - r; mirrored: directions come as w, -w; same: all points start in one direction."""
    link = link_of(terms)
    r, d = link.r, link.r + extra
    rows, limit = row_population(link, d), point_population(link, d)
    common = (rows.on + rows.off) / (4.0 * k)
    specific = common + (1.0 - 1.0 / k) * (limit.on + limit.off)
    w = directions(rng, REPLICATES, k, d)
    if mirrored:
        w[:, k - k // 2 :] = -w[:, : k // 2]
    u = directions(rng, REPLICATES, m1, d)
    if same:
        u[:] = u[:, :1]
    *inside, along = row(link.terms, [*np.moveaxis(w[..., :r], -1, 0), np.ones(w.shape[:2])], link.degree)
    g = np.concatenate([np.stack(inside, axis=2), along[..., None] * w[..., r:]], axis=2)
    points = (u @ np.swapaxes(w, 1, 2) >= 0) @ g / k
    mean = np.mean(points, axis=1)
    apart = np.mean(np.sum((points - mean[:, None]) ** 2, axis=2), axis=1)
    drawn = min(
        sampled_mean(np.sum(mean**2, axis=1), common + specific / m1),
        sampled_mean(apart, (1.0 - 1.0 / m1) * specific) if m1 > 1 else 1.0,
    )
    far_rows, far = row_population(link, FAR), point_population(link, FAR)
    count = k * FAR
    share = (far_rows.on + far_rows.off) / (4.0 * count)
    claim = share / (share + (1.0 - 1.0 / count) * (far.on + far.off)) + 1.0 / m1
    return min(drawn, closeness(diversity_ratio(FAR, count, m1), claim, 1e-3, claim))


def symbolic() -> Iterator[Identity]:
    d, k, m1, c, v = sp.symbols("d K M C V", positive=True)
    h2 = sp.Symbol("h", positive=True)
    row, limit = h2 / (2 * sp.pi * d), h2 / (2 * sp.pi * d) ** 2  # |H w|^2/(2 pi) and the square of |H|/(2 pi d)
    rho = sp.pi * d / (2 * k)
    shared = row / (4 * k)
    yield Identity("C/V at leading order", sp.simplify(shared / (shared + limit)), sp.simplify(rho / (1 + rho)))
    mean = (m1 * (c + v) + m1 * (m1 - 1) * c) / m1**2
    yield Identity("energy of the mean of M1 points", sp.expand(mean), sp.expand(c + v / m1))
    yield Identity("spread about the mean", sp.expand(c + v - mean), sp.expand((1 - 1 / m1) * v))
    exact = diversity_ratio(10, 20, 5)
    yield Identity("the ratio at d = 10, K = 20, M1 = 5 in the code", exact, sp.pi / 4 / (1 + sp.pi / 4) + sp.Rational(1, 5))


LEMMA = Lemma(
    number=23,
    name="diversity",
    latex=r"\frac{\|\bar D\|^2}{\mathrm{mean}\,\|D_m - \bar D\|^2} \to \frac{\rho}{1+\rho} + \frac{1}{M_1},\qquad \rho = \frac{\pi d}{2K}",
    plain="Points distilled with few directions K share a common part; they differ as soon as K is well above d.",
    source=Source("derived", "two points share a gate with chance 1/4"),
    assumptions={
        "independent_rows": "the K directions are independent",
        "independent_points": "the points start in independent directions",
        "degree_at_most_3": "the link has degree 2 and 3 only",
    },
    instances={
        "terms": links([2, 3], max_r=2).filter(lambda terms: any(sum(k) == 2 for _, k in terms)),
        "extra": st.integers(2, 12),
        "k": st.integers(1, 16),
        "m1": st.integers(1, 8),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control(
            "independent_rows", "directions in pairs w, -w", {"mirrored": st.just(True), "k": st.integers(4, 16), "m1": st.integers(4, 8)}
        ),
        Control("independent_points", "one starting direction", {"same": st.just(True), "m1": st.integers(4, 8)}),
        Control("degree_at_most_3", "a large term of degree 4", {"terms": st.just([[30, [2]], [200, [4]]]), "extra": st.just(2)}),
    ),
    examples=40,
    code=("theory.predictions.diversity_ratio",),
)
