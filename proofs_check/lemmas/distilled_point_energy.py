"""Energy of the distilled points on S* and off it at N samples and K directions.

    D(u) = (1/K) sum_i g(w_i) 1{w_i.u >= 0}:   E_K(D) = (1 - 1/K) E_inf(D) + E(g)/(2K),   E_inf(D) = E_even(g)/4 + E_h
    E_h   shrinkage^2 population + noise, the gate averaged to h = arcsin(cos(x, u))/(2 pi):
          noise off S* = sigma^2 (d - r)(E h^2 - eta^2/d)(1 - (d+1)/N)/N,   eta = E[(x.u) h];   without removal sigma^2 (d - r) E h^2/N
    ratio -> (sigma^2/|H|^2)(d^2/N)(1 + pi rho)/(1 + 2 rho) + [tau + 2 rho (tau + 2)]/(4 d (1 + 2 rho)),   rho = pi d/(2K)
             without removal, K = infinity: (sigma^2/|H|^2)[(pi^2/4) d^3/N + d^2/N] + tau/(4d)               `point_ratio_leading`

Derivation: given the data the w_i are independent and |g|^2 is even in w. Checked as the rows are: the formula from moments by quadrature,
without preprocessing the exact energy to LEFT_OUT/N, and drawn samples in standard errors with ALLOWED relative room for the orders left
out.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

from proofs_check.gaussian import link_of, sphere_mean
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.lemmas.matching_direction import averaged
from proofs_check.margins import closeness, refuses
from proofs_check.sampled import (
    CONTROLS,
    INSTANCES,
    agrees_exactly,
    directions,
    drawn_rows,
    energies_agree,
    in_every_way,
    independent_samples,
    moments,
    raw_rows,
)
from theory import predictions
from theory.multi_index import HermiteLink

EXACT = 1e-9
REPLICATES, POINTS = 400, 4
NEAR, FAR = 8, 2000


@functools.cache
def cosine_means(d: int) -> tuple[float, float]:
    """(E arcsin(rho)^2, E rho arcsin(rho)) of the cosine of uniform directions, by quadrature in the angle t = arcsin(rho)."""
    t, weight = leggauss(200)
    t = 0.5 * math.pi * t
    weight = weight * np.cos(t) ** (d - 2)
    weight = weight / np.sum(weight)
    return float(weight @ t**2), float(weight @ (t * np.sin(t)))


def formula(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str) -> np.ndarray:
    """(on, off) at K = infinity."""
    m, r = moments(link, noise, preprocessing), link.r
    square, product = cosine_means(d)
    h2 = square / (4.0 * math.pi**2)
    length = math.sqrt(2.0) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    taken = (length * product / (2.0 * math.pi)) ** 2 / d
    population, even = predictions.point_population(link, d), predictions.even_part(link, noise, d, n, preprocessing)
    signal, drawn = np.array([population.on, population.off]), np.array([even.on, even.off])
    labels = np.array([m.chi, m.sigma2 * (d - r)])
    if preprocessing == "none":
        return drawn / 4.0 + signal + labels * h2 / n
    lost = np.array([2.0 * m.chi - m.sigma2 * r, m.sigma2 * (d - r)]) * taken
    return drawn / 4.0 + (1.0 - (d + 4.0) / n) ** 2 * signal + (labels * h2 - lost) * (1.0 - (d + 1.0) / n) / n


def raw_points(link: HermiteLink, noise: float, d: int, n: int, k: int) -> np.ndarray:
    """(on, off) at K directions where nothing is removed, by quadrature over caps and the sphere: exact. The gate is 1/4 + h."""
    r = link.r

    def of(v: np.ndarray) -> np.ndarray:
        found = averaged(link, np.array([*v, math.sqrt(max(0.0, 1.0 - float(v @ v)))]), d, 0.0, 1.0)
        return np.array([found[:r] @ found[:r], found[r] ** 2])

    gate = 1.0 / 16.0 + cosine_means(d)[0] / (4.0 * math.pi**2)
    limit = independent_samples(link, noise, d, n, sphere_mean(of, d, r, 2 * link.degree + 2), gate)
    return (1.0 - 1.0 / k) * limit + raw_rows(link, noise, d, n) / (2.0 * k)


def margin(
    rng: np.random.Generator,
    terms: list[Any],
    extra: int,
    per_d: int,
    noise: float,
    preprocessing: str,
    k: int,
    sample: int,
    spread: float = 1.0,
    removed: str | None = None,
    shared: bool = False,
) -> float:
    """extra: d - r; per_d: N/d; spread: of the inputs; removed: what is really removed; shared: the K directions are one."""
    link = link_of(terms)
    r, d = link.r, link.r + extra
    n = per_d * d
    exact = in_every_way(lambda sigma, how: written(link, sigma, d, n, k, how), noise)
    exact = min(exact, *(leading(link, noise, per_d, k, how) for how in predictions.PREPROCESSING))
    raw = agrees_exactly(predictions.distilled_points(link, noise, d, n, k, "none"), raw_points(link, noise, d, n, k), n)
    refused = all(refuses(predictions.distilled_points, link, 0.0, d, n, count) for count in (0, -1))
    w = directions(rng, REPLICATES, k, d)
    if shared:
        w[:] = w[:, :1]
    g = drawn_rows(link, noise, d, n, w, removed or preprocessing, rng, spread)
    gate = directions(rng, REPLICATES, POINTS, d) @ np.swapaxes(w, 1, 2) >= 0
    sampled = energies_agree(gate @ g / k, r, predictions.distilled_points(link, noise, d, n, k, preprocessing))
    return min(exact, raw, sampled, 1.0 if refused else -9.0)


def written(link: HermiteLink, noise: float, d: int, n: int, k: int, preprocessing: str) -> float:
    """The code against the formula, at K = infinity, at K and at one direction."""
    expected = formula(link, noise, d, n, preprocessing)
    rows = predictions.teacher_rows(link, noise, d, n, preprocessing)
    margins = []
    for count in (math.inf, k, 1):
        claim = predictions.distilled_points(link, noise, d, n, None if count == math.inf else int(count), preprocessing)
        finite = (1.0 - 1.0 / count) * expected + np.array([rows.on, rows.off]) / (2.0 * count)
        margins.append(closeness([claim.on, claim.off], finite, EXACT, finite.sum()))
    return min(margins)


def leading(link: HermiteLink, noise: float, per_d: int, k: int, preprocessing: str) -> float:
    """The leading ratio as written above at d = NEAR, and against the full one at d = FAR, with N and K such that its terms count.

    Without removal the term d^2/N is one of several of relative order 1/d beside d^3/N, so at FAR it is held against the noise alone.
    """
    quadratic, raw = HermiteLink(tuple(term for term in link.terms if sum(term[1]) == 2)), preprocessing == "none"
    h2, tau, scale = float(np.sum(quadratic.hessian**2)), quadratic.tau, quadratic.variance + noise**2

    def ratio(d: int, n: int, count: float) -> float:
        rho = math.pi * d / (2.0 * count)
        if raw:
            return scale / h2 * (math.pi**2 * d**3 / (4.0 * n) + d**2 / n) + tau / (4.0 * d)
        return (scale / h2 * d**2 / n * (1.0 + math.pi * rho) + (tau + 2.0 * rho * (tau + 2.0)) / (4.0 * d)) / (1.0 + 2.0 * rho)

    margins = []
    for count in (float(k), math.inf):
        found, expected = (
            predictions.point_ratio_leading(quadratic, noise, NEAR, 3 * NEAR, count, preprocessing),
            ratio(NEAR, 3 * NEAR, count),
        )
        margins.append(closeness(found, expected, EXACT, expected))
    n, count = per_d * FAR ** (4 if raw else 3), None if raw else k * FAR
    full = predictions.distilled_points(quadratic, noise, FAR, n, count, preprocessing).ratio
    margins.append(closeness(ratio(FAR, n, math.inf if count is None else count), full, 0.02, full))
    if raw:
        noise_ratio = predictions.point_noise(quadratic, noise, FAR, n, "none").off / predictions.point_population(quadratic, FAR).on
        margins.append(closeness(scale / h2 * FAR**2 / n, noise_ratio, 0.02, noise_ratio))
    return min(margins)


def symbolic() -> Iterator[Identity]:
    t = sp.Symbol("t", real=True)
    for d in (2, 3, 4, 6):
        density = sp.cos(t) ** (d - 2) / sp.integrate(sp.cos(t) ** (d - 2), (t, -sp.pi / 2, sp.pi / 2))
        for power, f in ((2, t**2), (1, t * sp.sin(t))):
            exact = sp.integrate(sp.expand(f * density), (t, -sp.pi / 2, sp.pi / 2))
            yield Identity(f"E[cos^{2 - power} arcsin^{power}] at d = {d} in the code", predictions.cosine_moment(d, power), exact)
    k, a, b = sp.symbols("K a b", positive=True)  # a = E|g 1|^2, b = |E g 1|^2
    mean_square = (k * a + k * (k - 1) * b) / k**2
    yield Identity("E |(1/K) sum|^2 of K independent terms", mean_square, (1 - 1 / k) * b + a / k)


LEMMA = Lemma(
    number=22,
    name="distilled-point-energy",
    latex=(
        r"\mathbb E_K(D) = \Bigl(1 - \frac1K\Bigr)\mathbb E_\infty(D) + \frac{1}{2K}\,\mathbb E(g),\qquad q_D \to "
        r"\frac{\sigma^2}{\|H\|_F^2}\,\frac{d^2}{N}\,\frac{1+\pi\rho}{1+2\rho} + \frac{\tau + 2\rho(\tau+2)}{4d(1+2\rho)},\quad "
        r"\rho = \frac{\pi d}{2K}"
    ),
    plain="Distilled points leave S* as d^2/N with preprocessing (d^3/N without); few directions K add half a row's energy over K.",
    source=Source("derived", "the rows' energies, with the gate averaged over K directions"),
    assumptions={
        "gaussian_inputs": "x ~ N(0, I)",
        "preprocessing": "mean and linear part are removed as stated",
        "independent_rows": "the K directions are independent and uniform",
    },
    instances={**INSTANCES, "k": st.integers(1, 12)},
    margin=margin,
    symbolic=symbolic,
    controls=(
        *CONTROLS,
        Control(
            "independent_rows",
            "all directions are one",
            {"shared": st.just(True), "k": st.integers(14, 20), "noise": st.just(0.0), "terms": st.just([[100, [2]]])},
        ),
    ),
    examples=25,
    also=(
        "tests/sims/test_energies.py::test_off_subspace_energy_after_least_squares",
        "tests/sims/test_energies.py::test_energies_themselves_not_only_their_ratio",
        "tests/sims/test_energies.py::test_without_preprocessing_points_follow_d3_over_n_and_rows_d2_over_n",
    ),
    code=(
        "theory.predictions.cosine_moment",
        "theory.predictions.kernel_moments",
        "theory.predictions.point_noise",
        "theory.predictions.distilled_points",
        "theory.predictions.point_ratio_leading",
        "theory.predictions.Energy",
    ),
)
