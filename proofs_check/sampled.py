"""Teacher rows and distilled points of drawn samples, and the moments that their energies are made of, by quadrature.

rows      g(w) = (1/N) sum_n y_n x_n 1{w.x_n >= 0}          points   D(u) = (1/K) sum_i g(w_i) 1{w_i.u >= 0}
"""

from dataclasses import dataclass

import numpy as np

from proofs_check.gaussian import gauss_nodes
from theory.multi_index import HermiteLink


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


def directions(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uniform on the unit sphere of the last axis."""
    w = rng.standard_normal(shape)
    return w / np.linalg.norm(w, axis=-1, keepdims=True)
