"""Energy of the teacher's rows on S* and off it at N samples: signal, fluctuation and even part add.

    E|P g|^2, E|(I - P) g|^2 = even + shrinkage^2 population + noise                            `teacher_rows`
    ols        even = 0,  noise off S* = sigma^2 (d - r)(1/4 - 1/(2 pi d))(1 - (d+1)/N)/N,  shrinkage = 1 - (d+4)/N
    none       even = [|beta|^2 + (chi - |beta|^2)/N, sigma^2 (d-r)/N]/4,  noise = [chi, sigma^2 (d-r)]/(4N),  shrinkage = 1
    one-shot   even and noise from the Wishart moments of (I - S) S beta and (I - S) s, S = X^T X/N; shrinkage = 1 - (d+4)/N
    ratio -> (pi/2)(sigma^2/|H|^2) d^2/N + (tau+2)/(4d)                                          `row_ratio_leading`

Leading order in 1/N, next order in 1/d. The check has three parts: the formula from moments taken by quadrature (to rounding); without
preprocessing the exact energy, to LEFT_OUT/N; and energies of drawn samples in standard errors with ALLOWED relative room for the orders
left out.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import exact_half_mean, link_of
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, refuses
from proofs_check.sampled import (
    CONTROLS,
    INSTANCES,
    agrees_exactly,
    directions,
    drawn_rows,
    energies_agree,
    in_every_way,
    moments,
    raw_rows,
)
from theory import predictions
from theory.multi_index import HermiteLink

EXACT = 1e-11
REPLICATES, ROWS = 120, 4
FAR = 10**6


def formula(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str) -> np.ndarray:
    """(on, off) from moments by quadrature, written from the list above."""
    m, r = moments(link, noise, preprocessing), link.r
    sides = np.array([r, d - r])
    population = predictions.row_population(link, d)
    signal = np.array([population.on, population.off])
    labels = np.array([m.chi, m.sigma2 * (d - r)])
    if preprocessing == "none":
        even = np.array([m.beta2, 0.0]) + (labels - np.array([m.beta2, 0.0])) / n
        return even / 4.0 + signal + labels / (4.0 * n)
    taken = np.array([2.0 * m.chi - m.sigma2 * r, m.sigma2 * (d - r)]) / (2.0 * math.pi * d)
    total = (1.0 - (d + 4.0) / n) ** 2 * signal + (labels / 4.0 - taken) * (1.0 - (d + 1.0) / n) / n
    if preprocessing == "ols":
        return total
    gamma = d / n
    spread = m.beta2 * gamma * (1.0 + 3.0 * gamma) * np.array([r + 1, d - r]) / d
    drift = np.array([m.beta2 * ((d + 1.0) / n) ** 2, 0.0])
    # E|(I - S) s|^2 over |s|^2: (d+1)/N from S^2, and (d^2 + 3 d + 4)/N^2 from its square.
    mixed = np.sum(labels) / n * ((d + 1.0) / n + (d * d + 3.0 * d + 4.0) / n**2) * sides / d
    left = m.beta2 / n * (1.0 / (2.0 * math.pi * d) + gamma / 4.0) * sides
    return total + (drift + spread + mixed) / 4.0 + left


def margin(
    rng: np.random.Generator,
    terms: list[Any],
    extra: int,
    per_d: int,
    noise: float,
    preprocessing: str,
    sample: int,
    spread: float = 1.0,
    removed: str | None = None,
    inside: bool = False,
) -> float:
    """extra: d - r; per_d: N/d; spread: of the inputs; removed: what is really removed; inside: rows are drawn in S* only."""
    link = link_of(terms)
    r, d = link.r, link.r + extra
    n = per_d * d
    exact = in_every_way(lambda sigma, how: written(link, sigma, d, n, how), noise)
    raw = agrees_exactly(predictions.teacher_rows(link, noise, d, n, "none"), raw_rows(link, noise, d, n), n)

    w = directions(rng, REPLICATES, ROWS, d)
    if inside:
        w[..., r:] = 0.0
    rows = drawn_rows(link, noise, d, n, w, removed or preprocessing, rng, spread)
    sampled = energies_agree(rows, r, predictions.teacher_rows(link, noise, d, n, preprocessing))

    quadratic, many = HermiteLink(tuple(term for term in link.terms if sum(term[1]) == 2)), per_d * FAR**3
    far = predictions.teacher_rows(quadratic, noise, FAR, many).ratio
    leading = closeness(predictions.row_ratio_leading(quadratic, noise, FAR, many), far, 1e-4, far)
    return min(exact, raw, sampled, leading, 1.0 if refusals(link) else -9.0)


def written(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str) -> float:
    """The code against the formula, and its two ratios."""
    claim, expected = predictions.teacher_rows(link, noise, d, n, preprocessing), formula(link, noise, d, n, preprocessing)
    ratios = closeness([claim.fraction, claim.ratio], [expected[1] / expected.sum(), expected[1] / expected[0]], 1e-9)
    return min(closeness([claim.on, claim.off], expected, EXACT, np.sum(expected)), ratios)


def refusals(link: HermiteLink) -> bool:
    """Sizes and words that the predictions refuse, and the last ones they take."""
    r, least = link.r, max(link.r, 2)
    raised = HermiteLink((*link.terms, (0.5, (0,) * r)))  # of mean 1/2, which least squares alone removes
    bad = [(link, max(r - 1, 1), 100, "ols"), (link, least, least + 1, "ols"), (link, r + 4, 100, "some")]
    bad += [(raised, r + 4, 100, how) for how in predictions.PREPROCESSING if how != "ols"]
    for one in (link, raised):
        predictions.teacher_rows(one, 0.0, least, least + 2, "ols")
    return all(refuses(predictions.teacher_rows, one, 0.0, *sizes) for one, *sizes in bad)


def symbolic() -> Iterator[Identity]:
    d, n, t = sp.symbols("d N t", positive=True)
    s = sp.Symbol("s", real=True)
    c1 = exact_half_mean(t, t, s)
    yield Identity("energy of x (G - 1/2) along w that its linear part takes", c1**2, 1 / (2 * sp.pi))
    # A quadratic target t^2 - 1 along w and |x|^2 = t^2 + s, E s = d - 1: leverage times signal over signal.
    a, b, c = sp.symbols("a b c", real=True)  # H in the plane of w and of H w: y = (x.H x - tr H)/2, |x|^2 = t^2 + s^2 + rest
    y = (a * t**2 + 2 * b * t * s + c * s**2 - a - c) / 2
    for name, x, trace in (("along w", t, (a + c) * c1), ("across w", s, sp.Integer(0))):
        signal, weighted = exact_half_mean(y * x, t, s), exact_half_mean(y * x * (t**2 + s**2 + d - 2), t, s)
        yield Identity(
            f"E[|x|^2 y x (G - 1/2)] = (d + 3) E[y x (G - 1/2)] + (tr H) w/sqrt(2 pi), {name}", weighted, (d + 3) * signal + trace
        )
    leverage = exact_half_mean((s**2 - 1) * s**2, t, s)
    yield Identity("E[xbar.beta^] N = E[y |x|^2] = tr H, which the intercept gives back", leverage, 1)
    square = (n * (d + 2) + n * (n - 1)) / n**2  # E S^2: pairs n = m give (d + 2) I, others I
    yield Identity("E (I - S) S = -((d+1)/N) I", sp.expand(1 - square), sp.expand(-(d + 1) / n))


LEMMA = Lemma(
    number=21,
    name="teacher-row-energy",
    latex=(
        r"\frac{\mathbb E\|(I-P)g\|^2}{\mathbb E\|P g\|^2} \to \frac{\pi}{2}\,\frac{\sigma^2}{\|H\|_F^2}\,\frac{d^2}{N} + "
        r"\frac{\tau+2}{4d}"
    ),
    plain="On S* and off it the energy of a teacher row is signal, fluctuation and even part; off S* it falls as d^2/N.",
    source=Source("derived", "sphere and Wishart moments"),
    assumptions={
        "gaussian_inputs": "x ~ N(0, I)",
        "preprocessing": "mean and linear part are removed as stated",
        "isotropic_rows": "w is uniform on the unit sphere",
    },
    instances=INSTANCES,
    margin=margin,
    symbolic=symbolic,
    controls=(*CONTROLS, Control("isotropic_rows", "rows in S* alone", {"inside": st.just(True)})),
    examples=25,
    also=(
        "tests/sims/test_energies.py::test_off_subspace_energy_after_least_squares",
        "tests/sims/test_energies.py::test_energies_themselves_not_only_their_ratio",
        "tests/sims/test_energies.py::test_row_noise_on_and_off_the_subspace",
    ),
    code=(
        "theory.predictions._check",
        "theory.predictions._label_moments",
        "theory.predictions._noise_factor",
        "theory.predictions.signal_shrinkage",
        "theory.predictions.even_part",
        "theory.predictions.row_noise",
        "theory.predictions.teacher_rows",
        "theory.predictions.row_ratio_leading",
        "theory.predictions.Energy",
    ),
)
