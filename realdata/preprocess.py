"""Linear transforms of images, fitted on training images only and kept with the distilled set: x = A (u / 255 - m), u the stored bytes.

    standardise   m, s: mean and standard deviation of each channel;  x = (u/255 - m) / s
    zca           per image v = u/255 - mean(u/255), v <- v / ||v||;  x = V diag((e + ridge mean(e))^(-1/2)) V^T v,
                  (e, V) the eigenpairs of Sigma = (1/n) sum v v^T (features not centred; RaT-BPTT's released preprocessing)
                  per_image = False: v = u/255 - m with the mean training image m instead, and no norm

Both invert in closed form. With per-image scaling an image's own mean and norm are gone: the inverse gives it the average ones.
Eigenpairs and matrices are computed in float64 and stored in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import scipy.linalg

from sims.lab.files import RunError

Tensors: TypeAlias = dict[str, np.ndarray]


class Transform(Protocol):
    """An invertible map from bytes (n, channels, height, width) to float32 arrays of the same shape."""

    def apply(self, images: np.ndarray) -> np.ndarray:
        """x of bytes u."""
        ...

    def invert(self, x: np.ndarray) -> np.ndarray:
        """Intensities in units of u / 255, not clipped."""
        ...

    def tensors(self) -> Tensors:
        """What `load_transform` needs to build it again."""
        ...


@dataclass(frozen=True, eq=False)
class Standardise:
    """Zero mean and unit variance a channel; mean and std are (channels,) in units of u / 255."""

    mean: np.ndarray
    std: np.ndarray

    def apply(self, images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) / 255.0 - self.mean[:, None, None]) / self.std[:, None, None]

    def invert(self, x: np.ndarray) -> np.ndarray:
        return x * self.std[:, None, None] + self.mean[:, None, None]

    def tensors(self) -> Tensors:
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True, eq=False)
class ZCA:
    """Symmetric whitening: zca and zca_inverse are (D, D), D = channels * height * width.

    mean is (D,) with per_image = 0, else zeros; offset and scale are the average mean and norm of a training image (per_image = 1).
    """

    zca: np.ndarray
    zca_inverse: np.ndarray
    mean: np.ndarray
    offset: np.ndarray
    scale: np.ndarray
    per_image: np.ndarray

    def apply(self, images: np.ndarray) -> np.ndarray:
        out = np.empty(images.shape, dtype=np.float32)
        for start in range(0, len(images), 2048):
            v = _features(images[start : start + 2048], bool(self.per_image), self.mean)
            out[start : start + 2048] = (v.astype(np.float32) @ self.zca).reshape(-1, *images.shape[1:])
        return out

    def invert(self, x: np.ndarray) -> np.ndarray:
        v = x.reshape(len(x), -1) @ self.zca_inverse
        return (v * self.scale + self.offset + self.mean).reshape(x.shape)

    def tensors(self) -> Tensors:
        return {name: getattr(self, name) for name in ZCA.__dataclass_fields__}


def fit(kind: str, images: np.ndarray) -> Transform:
    """The transform called `kind` ("standardise" or "zca"), fitted on training images (n, channels, height, width) of bytes."""
    if kind == "standardise":
        return fit_standardise(images)
    if kind == "zca":
        return fit_zca(images)
    raise RunError(f"unknown transform {kind!r}: choose standardise or zca")


def fit_standardise(images: np.ndarray) -> Standardise:
    """Mean and standard deviation of each channel; a constant channel gets std 1."""
    # From the histogram of the 256 values: exact, and no float copy of the data set.
    counts = np.stack([np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])])
    share = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255.0
    mean = share @ values
    std = np.sqrt(np.sum(share * (values - mean[:, None]) ** 2, axis=1))
    return Standardise(mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32))


def fit_zca(images: np.ndarray, *, per_image: bool = True, ridge: float = 0.1) -> ZCA:
    """Whitening of the features of `images`; `ridge` times the mean eigenvalue is added to every eigenvalue."""
    if not ridge > 0:
        raise RunError(f"the whitening ridge must be positive: ridge={ridge}")
    n, size = len(images), int(np.prod(images.shape[1:]))
    flat = images.reshape(n, size)
    mean = np.zeros(size) if per_image else flat.mean(axis=0, dtype=np.float64) / 255.0
    covariance, offset, scale = np.zeros((size, size)), 0.0, 0.0
    for start in range(0, n, 2048):
        part = images[start : start + 2048]
        v = _features(part, per_image, mean)
        covariance += v.T @ v
        if per_image:
            u = part.reshape(len(part), -1) / 255.0
            offset += float(u.mean(axis=1).sum())
            scale += float(np.linalg.norm(u - u.mean(axis=1, keepdims=True), axis=1).sum())
    e, basis = scipy.linalg.eigh(covariance / n, driver="evd", overwrite_a=True, check_finite=False)
    root = np.sqrt(np.maximum(e, 0.0) + ridge * np.mean(e))

    def single(x: np.ndarray | float) -> np.ndarray:
        return np.asarray(x, dtype=np.float32)

    zca, inverse = (basis / root) @ basis.T, (basis * root) @ basis.T
    return ZCA(
        single(zca), single(inverse), single(mean), single(offset / n), single(scale / n if per_image else 1.0), np.asarray(per_image)
    )


def load_transform(tensors: Mapping[str, np.ndarray]) -> Transform:
    """The transform that `tensors()` described."""
    for form in (Standardise, ZCA):
        if set(tensors) == set(form.__dataclass_fields__):
            return form(**tensors)
    raise RunError(f"no transform has exactly the tensors {', '.join(sorted(tensors)) or '(none)'}: the distilled set is damaged")


def _features(images: np.ndarray, per_image: bool, mean: np.ndarray) -> np.ndarray:
    """(n, D) float64: centred by `mean`, or each image by its own mean and scaled to unit norm (a constant image stays 0)."""
    u = images.reshape(len(images), -1) / 255.0
    if not per_image:
        return u - mean
    v = u - u.mean(axis=1, keepdims=True)
    length = np.linalg.norm(v, axis=1, keepdims=True)
    return v / np.where(length > 0, length, 1.0)
