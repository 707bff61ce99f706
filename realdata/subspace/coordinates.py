"""Whitened coordinates of transformed images: z = diag(e)^(-1/2) V^T (x - m), (e, V) the p leading eigenpairs of the images' covariance.

The theory speaks of inputs with mean zero and covariance I_d; here d = p. What the other components hold is left out and its share told.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from realdata.preprocess import LARGEST, PART
from sims.lab.files import RunError


@dataclass(frozen=True, eq=False)
class Whitening:
    """mean (D,), maps (D, p), and the share of the images' variance that the p components hold."""

    mean: np.ndarray
    maps: np.ndarray
    share: float

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """z (n, p) float64 of transformed images (n, channels, height, width)."""
        return (images.reshape(len(images), -1) - self.mean) @ self.maps


def refuse_large(dataset: str, shape: tuple[int, ...]) -> None:
    """RunError where a covariance of all numbers of an image is too large to be taken apart."""
    size = math.prod(shape)
    if size > LARGEST:
        limit = f"{size} numbers, their covariance {8e-9 * size**2:.0f} GB (the limit is {LARGEST} numbers)"
        raise RunError(f"an image of {dataset} has {limit}: take smaller ones, as imagenette-64 for imagenette")


def fit_whitening(images: np.ndarray, p: int) -> Whitening:
    """From transformed training images; RunError where they have no p directions."""
    flat = images.reshape(len(images), -1)
    size = flat.shape[1]
    if not 1 <= p <= min(size, len(flat) - 1):
        raise RunError(f"{len(flat)} images of {size} numbers have 1 to {min(size, len(flat) - 1)} principal directions: directions={p}")
    mean = flat.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((size, size))
    for start in range(0, len(flat), PART):
        part = (flat[start : start + PART] - mean).astype(np.float32)  # products of a part in float32, their sum in float64
        covariance += part.T @ part
    covariance /= len(flat)
    total = float(np.trace(covariance))
    e, v = scipy.linalg.eigh(covariance, subset_by_index=(size - p, size - 1), overwrite_a=True, check_finite=False)
    if not e[0] > 1e-6 * e[-1]:
        raise RunError(f"the images vary in fewer than {p} directions: lower --directions")
    return Whitening(mean, v / np.sqrt(e), float(np.sum(e)) / total)
