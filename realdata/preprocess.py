"""Linear transforms of images, fitted on training images only and kept with the distilled set: x = A (u / 255 - m), u the stored bytes.

    standardise   m, s: mean and standard deviation of each channel over all training pixels;  x = (u/255 - m) / s
    published-*   the same with figures that other work prints, to compare with it; see PUBLISHED
    zca           per image v = u/255 - mean(u/255), v <- v / ||v||;  x = V diag((e + ridge mean(e))^(-1/2)) V^T v,
                  (e, V) the eigenpairs of Sigma = (1/n) sum v v^T (features not centred; RaT-BPTT's released preprocessing)
    zca-mtt       v = u/255 - m, m the mean training image;  x = V diag((e + 1/10)^(-1/2)) V^T v   (the whitening of trajectory matching's
                  released code, Cazenavette et al. 2022, which takes it from kornia; Sigma with 1/(n - 1) there)

Both invert in closed form. With per-image scaling an image's own mean and norm are gone: the inverse gives it the average ones.
Sums, eigenpairs and matrices are computed in float64, a part of the images at a time, and stored in float32. Whitening D = channels *
height * width features takes about 4 D^2 doubles and 10 D^3 operations: D <= 12288 (3x64x64), where that is 5 GB and some 20 minutes.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import safetensors
import scipy.linalg

from realdata.data.imageset import Images, chunks, digest
from sims.lab.artefact import sealed, unsealed
from sims.lab.files import RunError, atomic_write, make_folder

Tensors: TypeAlias = dict[str, np.ndarray]

PART = 2048  # images in memory as float64 at a time
BLOCKS = (64, 16, 8, 4, 2, 1)  # images whitened in one product
LARGEST = 12288  # features that are whitened
RIDGE = 0.1
WHITENINGS: dict[str, dict[str, Any]] = {"zca": {}, "zca-mtt": {"per_image": False, "ridge": 0.0, "absolute": 0.1}}

# Mean and standard deviation of each channel as printed in the released code of dataset condensation (Zhao et al. 2021) and trajectory
# matching (Cazenavette et al. 2022). CIFAR-10's deviations there are averages over images (the pixels' own are 0.247, 0.243, 0.262).
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED = {
    "published-mnist": ((0.1307,), (0.3081,)),
    "published-fashion-mnist": ((0.2861,), (0.3530,)),
    "published-cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "published-cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "published-imagenet": _IMAGENET,
    "published-tiny-imagenet": _IMAGENET,
}
TRANSFORMS = ("standardise", *WHITENINGS, *PUBLISHED)


class Transform(Protocol):
    """An invertible map from bytes (n, channels, height, width) to float32 arrays of the same shape, each image by itself."""

    def apply(self, images: Images) -> np.ndarray:
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

    def apply(self, images: Images) -> np.ndarray:
        out = np.empty(images.shape, dtype=np.float32)
        for k, part in enumerate(chunks(images, PART)):
            out[k * PART : k * PART + len(part)] = (part.astype(np.float32) / 255.0 - self.mean[:, None, None]) / self.std[:, None, None]
        return out

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

    def apply(self, images: Images) -> np.ndarray:
        out, size = np.empty(images.shape, dtype=np.float32), self.block
        v = np.zeros((size, len(self.zca)), dtype=np.float32)
        for k, part in enumerate(chunks(images, size)):
            v[: len(part)] = _features(part, bool(self.per_image), self.mean)
            out[k * size : k * size + len(part)] = (v @ self.zca)[: len(part)].reshape(part.shape)
        return out

    @functools.cached_property
    def block(self) -> int:
        """How many images are whitened in one product, so that the bits of an image depend neither on those beside it nor on its place.

        Always equally many, and so many that equal rows have equal products: kernels for some processors (Haswell, Zen) take the last rows
        of a block in another order of summation than the first ones.
        """
        row = np.linspace(-1.0, 1.0, len(self.zca), dtype=np.float32) ** 3
        products = ((size, np.tile(row, (size, 1)) @ self.zca) for size in BLOCKS)
        return next((size for size, product in products if np.array_equal(product, np.broadcast_to(product[0], product.shape))), 1)

    def invert(self, x: np.ndarray) -> np.ndarray:
        v = x.reshape(len(x), -1) @ self.zca_inverse
        return (v * self.scale + self.offset + self.mean).reshape(x.shape)

    def tensors(self) -> Tensors:
        return {name: getattr(self, name) for name in ZCA.__dataclass_fields__}


def fit(kind: str, images: Images, cache: Path | None = None) -> Transform:
    """The transform called `kind` (one of TRANSFORMS), fitted on training images (n, channels, height, width) of bytes.

    cache   a folder where whitening matrices are kept, named by a hash of the images, so that they are computed once a data set
    """
    if kind in PUBLISHED:
        return published(kind, images.shape[1])
    if kind == "standardise":
        return fit_standardise(images)
    if kind in WHITENINGS:
        return fit_zca(images, **WHITENINGS[kind]) if cache is None else _kept_zca(kind, images, cache)
    raise RunError(f"unknown transform {kind!r}: choose one of {', '.join(TRANSFORMS)}")


def published(kind: str, channels: int) -> Standardise:
    """The standardisation with the figures of PUBLISHED."""
    mean, std = (np.asarray(x, dtype=np.float32) for x in PUBLISHED[kind])
    if len(mean) != channels:
        raise RunError(f"{kind} is for images of {len(mean)} channels, these have {channels}: choose standardise or zca")
    return Standardise(mean, std)


def fit_standardise(images: Images) -> Standardise:
    """Mean and standard deviation of each channel over all pixels; a constant channel gets std 1."""
    # From the histogram of the 256 values: exact, and no float copy of the data set.
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for part in chunks(images, PART):
        counts += np.stack([np.bincount(part[:, channel].ravel(), minlength=256) for channel in range(part.shape[1])])
    share = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255.0
    mean = share @ values
    std = np.sqrt(np.sum(share * (values - mean[:, None]) ** 2, axis=1))
    return Standardise(mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32))


def fit_zca(images: Images, *, per_image: bool = True, ridge: float = RIDGE, absolute: float = 0.0) -> ZCA:
    """Whitening of the features of `images`; `ridge` times the mean eigenvalue, and `absolute`, are added to every eigenvalue."""
    if not (min(ridge, absolute) >= 0 and ridge + absolute > 0):
        raise RunError(f"the whitening ridge must be positive: ridge={ridge}, absolute={absolute}")
    n, size = len(images), int(np.prod(images.shape[1:]))
    if size > LARGEST:
        gigabytes = 4 * 8 * size**2 / 1e9
        raise RunError(f"zca of {size} features an image needs {gigabytes:.0f} GB (the limit is {LARGEST} features): use standardise")
    mean = np.zeros(size)
    if not per_image:
        for part in chunks(images, PART):
            mean += part.reshape(-1, size).sum(axis=0, dtype=np.float64) / (255.0 * n)
    (syrk,) = scipy.linalg.get_blas_funcs(("syrk",), dtype=np.float64)
    covariance, offset, scale = np.zeros((size, size), order="F"), 0.0, 0.0
    for part in chunks(images, PART):
        v = _features(part, per_image, mean)
        covariance = syrk(1.0, v.T, beta=1.0, c=covariance, overwrite_c=1)  # upper triangle of += v^T v, in place
        if per_image:
            u = part.reshape(len(part), -1) / 255.0
            offset += float(u.mean(axis=1).sum())
            scale += float(np.linalg.norm(u - u.mean(axis=1, keepdims=True), axis=1).sum())
    covariance /= n
    e, basis = scipy.linalg.eigh(covariance, lower=False, driver="evd", overwrite_a=True, check_finite=False)
    root = np.sqrt(np.maximum(e, 0.0) + ridge * np.mean(e) + absolute)

    def single(x: np.ndarray | float) -> np.ndarray:
        return np.asarray(x, dtype=np.float32)

    zca, inverse = single((basis / root) @ basis.T), single((basis * root) @ basis.T)
    return ZCA(zca, inverse, single(mean), single(offset / n), single(scale / n if per_image else 1.0), np.asarray(per_image))


def _kept_zca(kind: str, images: Images, cache: Path) -> Transform:
    path = cache / f"{kind}-{digest(images, f'{kind} 2 {RIDGE}')[:20]}.safetensors"
    try:
        return read_transform(path)
    except (OSError, ValueError, safetensors.SafetensorError, RunError):
        pass  # absent or damaged: it is computed
    transform = fit_zca(images, **WHITENINGS[kind])
    make_folder(cache)
    atomic_write(path, sealed(transform.tensors()))
    return transform


def read_transform(path: Path) -> Transform:
    """The transform in a file of its own, sealed; errors as those of `unsealed`."""
    return load_transform(unsealed(path)[0])


def load_transform(tensors: Mapping[str, np.ndarray]) -> Transform:
    """The transform that `tensors()` described."""
    for form in (Standardise, ZCA):
        if set(tensors) == set(form.__dataclass_fields__):
            return form(**tensors)
    raise RunError(f"no transform has exactly the tensors {', '.join(sorted(tensors)) or '(none)'}: the distilled set is damaged")


def check_transform(transform: Transform, shape: tuple[int, int, int]) -> None:
    """Refuses a transform that is not for images of `shape` or holds what no fit gives."""
    size = math.prod(shape)
    expected = {"mean": (size,), "zca": (size, size), "zca_inverse": (size, size)}
    if isinstance(transform, Standardise):
        expected = {"mean": shape[:1], "std": shape[:1]}
    for name, x in transform.tensors().items():
        if x.shape != expected.get(name, ()) or x.dtype.kind not in "bf" or not np.isfinite(x).all() or (name == "std" and x.min() <= 0):
            raise RunError(f"the transform's {name} ({x.dtype} {x.shape}) is not one for images {shape}, or not finite: it is damaged")


def _features(images: np.ndarray, per_image: bool, mean: np.ndarray) -> np.ndarray:
    """(n, D) float64: centred by `mean`, or each image by its own mean and scaled to unit norm (a constant image stays 0)."""
    u = images.reshape(len(images), -1) / 255.0
    if not per_image:
        return u - mean
    v = u - u.mean(axis=1, keepdims=True)
    length = np.linalg.norm(v, axis=1, keepdims=True)
    return v / np.where(length > 0, length, 1.0)
