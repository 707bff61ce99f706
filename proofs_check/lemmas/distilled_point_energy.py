"""Energy of the distilled points on S* and off it at N samples and K directions.

    D(u) = (1/K) sum_i g(w_i) 1{w_i.u >= 0}:   E_K(D) = (1 - 1/K) E_inf(D) + E(g)/(2K),   E_inf(D) = E_even(g)/4 + E_h
    E_h   shrinkage^2 population + noise, the gate averaged to h = arcsin(cos(x, u))/(2 pi):
          noise off S* = sigma^2 (d - r)(E h^2 - eta^2/d)(1 - (d+1)/N)/N,   eta = E[(x.u) h];   without removal sigma^2 (d - r) E h^2/N
    ratio -> (sigma^2/|H|^2)(d^2/N)(1 + pi rho)/(1 + 2 rho) + [tau + 2 rho (tau + 2)]/(4 d (1 + 2 rho)),   rho = pi d/(2K)
             without removal, K = infinity: (sigma^2/|H|^2)[(pi^2/4) d^3/N + d^2/N] + tau/(4d)               `point_ratio_leading`

Derivation: given the data the w_i are independent and |g|^2 is even in w. Checked as the rows are: the formula from moments by
quadrature, and drawn samples in standard errors with ALLOWED relative room for the orders left out.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

from proofs_check.gaussian import link_of, links
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import Z_LIMIT, closeness, refuses
from proofs_check.sampled import directions, drawn_rows, moments, on_and_off
from theory import predictions
from theory.multi_index import HermiteLink

EXACT, ALLOWED = 1e-9, 0.15
REPLICATES, POINTS = 400, 4
FAR = 2000


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
    expected = formula(link, noise, d, n, preprocessing)
    rows = predictions.teacher_rows(link, noise, d, n, preprocessing)
    claim = predictions.distilled_points(link, noise, d, n, k, preprocessing)
    found = np.array([claim.on, claim.off])
    finite = (1.0 - 1.0 / k) * expected + np.array([rows.on, rows.off]) / (2.0 * k)
    exact = min(written(link, sigma, d, n, how) for sigma in (noise, noise + 0.7) for how in predictions.PREPROCESSING)
    exact = min(exact, closeness(found, finite, EXACT, finite.sum()))

    none_refused = all(refuses(predictions.distilled_points, link, 0.0, d, n, count) for count in (0, -1))
    one = predictions.distilled_points(link, 0.0, d, n, 1)
    w = directions(rng, REPLICATES, k, d)
    if shared:
        w[:] = w[:, :1]
    g = drawn_rows(link, noise, d, n, w, removed or preprocessing, rng, spread)
    gate = directions(rng, REPLICATES, POINTS, d) @ np.swapaxes(w, 1, 2) >= 0
    seen = on_and_off(gate @ g / k, r)
    error = np.std(seen, axis=0, ddof=1) / math.sqrt(REPLICATES)
    sampled = 1.0 - float(np.max(np.abs(np.mean(seen, axis=0) - found) / (Z_LIMIT * error + ALLOWED * found)))
    return min(exact, sampled, leading(link, noise, per_d, k, preprocessing), 1.0 if none_refused and one.on > 0 else -9.0)


def written(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str) -> float:
    """The code at K = infinity against the formula."""
    limit, expected = predictions.distilled_points(link, noise, d, n, None, preprocessing), formula(link, noise, d, n, preprocessing)
    return closeness([limit.on, limit.off], expected, EXACT, expected.sum())


def leading(link: HermiteLink, noise: float, per_d: int, k: int, preprocessing: str) -> float:
    """The leading ratio against the full one at d = FAR, with N and K such that every term counts."""
    how = "none" if preprocessing == "none" else "ols"
    quadratic = HermiteLink(tuple(term for term in link.terms if sum(term[1]) == 2))
    n, count = per_d * FAR ** (4 if how == "none" else 3), None if how == "none" else k * FAR
    full = predictions.distilled_points(quadratic, noise, FAR, n, count, how).ratio
    near = predictions.point_ratio_leading(quadratic, noise, FAR, n, math.inf if count is None else count, how)
    return closeness(near, full, 0.02, full)


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
    instances={
        "terms": links([1, 2, 3], max_r=2).filter(lambda terms: any(sum(k) == 2 for _, k in terms)),
        "extra": st.integers(8, 12),
        "per_d": st.integers(30, 50),
        "noise": st.sampled_from([0.0, 0.5, 1.0]),
        "preprocessing": st.sampled_from(predictions.PREPROCESSING),
        "k": st.integers(1, 12),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("gaussian_inputs", "standard deviation 1.3 to 1.6", {"spread": st.floats(1.3, 1.6)}),
        Control(
            "preprocessing",
            "a linear part is left in",
            {"removed": st.just("none"), "preprocessing": st.just("ols"), "terms": st.just([[150, [1]], [50, [2]]])},
        ),
        Control(
            "independent_rows",
            "all directions are one",
            {"shared": st.just(True), "k": st.integers(14, 20), "noise": st.just(0.0), "terms": st.just([[100, [2]]])},
        ),
    ),
    examples=25,
    code=(
        "theory.predictions.cosine_moment",
        "theory.predictions.kernel_moments",
        "theory.predictions.point_noise",
        "theory.predictions.distilled_points",
        "theory.predictions.point_ratio_leading",
        "theory.predictions.Energy",
    ),
)
