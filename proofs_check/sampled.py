"""Teacher rows and distilled points of drawn samples, the moments that their energies are made of, and what the lemmas on both share.

rows      g(w) = (1/N) sum_n y_n x_n 1{w.x_n >= 0}          points   D(u) = (1/K) sum_i g(w_i) 1{w_i.u >= 0}

Where nothing is removed the samples are independent, so that for any gate a(x, w) in place of 1{w.x >= 0}, exactly,
    E|P g|^2 = (1 - 1/N) |E P y x a|^2 + E[y^2 |P x|^2 a^2]/N                                     `independent_samples`
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from proofs_check.gaussian import gauss_nodes, half_space_mean, links, sphere_mean
from proofs_check.lemma import Control, Strategies
from proofs_check.margins import Z_LIMIT, closeness
from theory.multi_index import HermiteLink
from theory.predictions import PREPROCESSING, Energy

ALLOWED = 0.15
"""Relative room for the orders in 1/N and 1/d that the predicted energies leave out."""
LEFT_OUT = 3.0
"""The same without preprocessing, in units of 1/N."""
INSTANCES: Strategies = {
    "terms": links([1, 2, 3], max_r=2).filter(lambda terms: any(sum(k) == 2 for _, k in terms)),
    "extra": st.integers(8, 12),
    "per_d": st.integers(30, 50),
    "noise": st.sampled_from([0.0, 0.5, 1.0]),
    "preprocessing": st.sampled_from(PREPROCESSING),
    "sample": st.integers(0, 2**32 - 1),
}
"""Instances of a lemma on energies; extra: d - r, per_d: N/d."""
CONTROLS = (
    Control("gaussian_inputs", "standard deviation 1.3 to 1.6", {"spread": st.floats(1.3, 1.6)}),
    Control(
        "preprocessing",
        "a linear part is left in",
        {"removed": st.just("none"), "preprocessing": st.just("ols"), "terms": st.just([[150, [1]], [50, [2]]])},
    ),
)
"""What every such lemma can do without."""


@dataclass(frozen=True)
class Moments:
    """sigma^2 = E y^2, chi = E y^2 |z|^2 and |beta|^2 = |E f z|^2 of the label that is left."""

    sigma2: float
    chi: float
    beta2: float


def moments(link: HermiteLink, noise: float, preprocessing: str) -> Moments:
    """By exact quadrature over z; the mean and the linear part are removed unless nothing is."""
    z, weight = gauss_nodes(link.r, 2 * link.degree + 2)
    f = link(z)
    beta = (weight * f) @ z
    y = f if preprocessing == "none" else f - weight @ f - z @ beta
    square, radius = weight * (y**2 + noise**2), np.sum(z**2, axis=1)
    return Moments(float(np.sum(square)), float(square @ radius), float(beta @ beta))


def independent_samples(link: HermiteLink, noise: float, d: int, n: int, population: np.ndarray, gate: float) -> np.ndarray:
    """(on, off) of N raw samples, from |E P y x a|^2 on S* and off it and E a^2 = `gate`, both averaged over the directions."""
    m = moments(link, noise, "none")
    return (1.0 - 1.0 / n) * population + np.array([m.chi, m.sigma2 * (d - link.r)]) * gate / n


def raw_rows(link: HermiteLink, noise: float, d: int, n: int) -> np.ndarray:
    """(on, off) of teacher rows where nothing is removed, by quadrature over the half space and the sphere: exact."""
    r = link.r

    def of(v: np.ndarray) -> np.ndarray:
        w = np.array([*v, math.sqrt(max(0.0, 1.0 - float(v @ v)))])
        g = half_space_mean(lambda x: link(x[:, :r])[:, None] * x, w, link.degree + 1)
        return np.array([g[:r] @ g[:r], g[r] ** 2])

    return independent_samples(link, noise, d, n, sphere_mean(of, d, r, 2 * link.degree + 2), 0.5)


def agrees_exactly(claim: Energy, exact: np.ndarray, n: int) -> float:
    """A predicted energy against an exact one, on S* and off it, with room for the orders in 1/N that the prediction leaves out."""
    return closeness([claim.on, claim.off], exact, LEFT_OUT / n, exact)


def drawn_rows(
    link: HermiteLink, noise: float, d: int, n: int, w: np.ndarray, preprocessing: str, rng: np.random.Generator, spread: float = 1.0
) -> np.ndarray:
    """g at the rows of w (R, K, d), one sample a replicate; S* holds the first r coordinates; spread: standard deviation of the inputs."""
    x = spread * rng.standard_normal((len(w), n, d))
    y = link(x.reshape(-1, d)[:, : link.r]).reshape(len(w), n) + noise * rng.standard_normal((len(w), n))
    if preprocessing == "ols":
        design = np.concatenate([np.ones((len(w), n, 1)), x], axis=2)
        turned = np.swapaxes(design, 1, 2)
        fit = np.linalg.solve(turned @ design, turned @ y[:, :, None])
        y = y - (design @ fit)[:, :, 0]
    elif preprocessing == "one-shot":
        slope = np.einsum("rn,rnd->rd", y, x) / n
        y = y - np.mean(y, axis=1, keepdims=True) - np.einsum("rnd,rd->rn", x, slope)
    gate = x @ np.swapaxes(w, 1, 2) >= 0
    return np.swapaxes(gate * y[:, :, None], 1, 2) @ x / n


def on_and_off(x: np.ndarray, r: int) -> np.ndarray:
    """(replicates, 2): mean energy on S* and off it over the second axis of x (R, K, d)."""
    square = np.mean(x**2, axis=1)
    return np.stack([np.sum(square[:, :r], axis=1), np.sum(square[:, r:], axis=1)], axis=1)


def energies_agree(x: np.ndarray, r: int, claim: Energy) -> float:
    """Drawn vectors (replicates, n, d) against their expected energies, in standard errors with ALLOWED of relative room."""
    seen, found = on_and_off(x, r), np.array([claim.on, claim.off])
    error = np.std(seen, axis=0, ddof=1) / math.sqrt(len(seen))
    return 1.0 - float(np.max(np.abs(np.mean(seen, axis=0) - found) / (Z_LIMIT * error + ALLOWED * found)))


def in_every_way(agrees: Callable[[float, str], float], noise: float) -> float:
    """The least of agrees(noise, preprocessing) over every preprocessing, at the noise given and at more."""
    return float(np.min([agrees(sigma, how) for sigma in (noise, noise + 0.7) for how in PREPROCESSING]))  # np.min keeps a NaN


def directions(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uniform on the unit sphere of the last axis."""
    w = rng.standard_normal(shape)
    return w / np.linalg.norm(w, axis=-1, keepdims=True)
