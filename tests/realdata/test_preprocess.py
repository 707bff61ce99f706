"""Transforms: what they make of the images they were fitted on, their inverses, and their stored form."""

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from realdata import preprocess
from sims.lab.files import RunError
from tests.strategies import generators


def some_images(rng: np.random.Generator, n: int = 60, shape: tuple[int, int, int] = (2, 3, 4)) -> np.ndarray:
    """Correlated bytes: neighbours share most of their value."""
    smooth = rng.integers(0, 200, (n, shape[0], 1, 1)) + rng.integers(0, 56, (n, *shape))
    return smooth.astype(np.uint8)


@given(rng=generators)
def test_standardised_channels_have_mean_zero_and_variance_one(rng: np.random.Generator):
    images = some_images(rng)
    x = preprocess.fit("standardise", images).apply(images)
    assert x.dtype == np.float32
    assert np.allclose(x.mean(axis=(0, 2, 3)), 0.0, atol=1e-5)
    assert np.allclose(x.var(axis=(0, 2, 3)), 1.0, atol=1e-5)


def test_a_constant_channel_stays_finite():
    images = np.full((5, 1, 2, 2), 7, dtype=np.uint8)
    transform = preprocess.fit("standardise", images)
    assert np.allclose(transform.apply(images), 0.0)
    # The whitening of constant images is undefined in every direction; each image is its own mean and stays 0.
    with np.errstate(all="ignore"):
        assert not transform.apply(images).any()


@given(rng=generators, per_image=st.booleans(), ridge=st.floats(0.01, 1.0))
def test_zca_whitens_up_to_the_ridge(rng: np.random.Generator, per_image: bool, ridge: float):
    """The covariance becomes V diag(e / (e + ridge mean e)) V^T: eigenvalues computed here by an SVD of the features."""
    images = some_images(rng)
    transform = preprocess.fit_zca(images, per_image=per_image, ridge=ridge)
    u = images.reshape(len(images), -1) / 255.0
    v = u - (u.mean(axis=1, keepdims=True) if per_image else u.mean(axis=0))
    v = v / np.linalg.norm(v, axis=1, keepdims=True) if per_image else v
    e = np.linalg.svd(v, compute_uv=False) ** 2 / len(v)
    x = transform.apply(images).reshape(len(images), -1).astype(np.float64)
    whitened = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    assert np.allclose(whitened, np.sort(e / (e + ridge * e.mean()))[::-1], atol=1e-4)
    assert np.allclose(transform.zca, transform.zca.T, atol=1e-4)
    assert np.linalg.eigvalsh(transform.zca.astype(np.float64)).min() > 0


@given(rng=generators, kind=st.sampled_from(["standardise", "zca", "zca by pixel"]))
def test_inverse_gives_the_images_back(rng: np.random.Generator, kind: str):
    images = some_images(rng)
    transform = preprocess.fit_zca(images, per_image=False) if kind == "zca by pixel" else preprocess.fit(kind, images)
    back = transform.invert(transform.apply(images))
    u = images / 255.0
    if kind == "zca":  # an image's own mean and norm are gone
        flat, again = (z.reshape(len(z), -1) - z.reshape(len(z), -1).mean(axis=1, keepdims=True) for z in (u, back))
        u, back = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (flat, again))
    assert np.allclose(back, u, atol=1e-3)


@given(rng=generators, kind=st.sampled_from(["standardise", "zca"]))
def test_stored_transform_does_the_same(rng: np.random.Generator, kind: str):
    images = some_images(rng)
    transform = preprocess.fit(kind, images)
    stored = safetensors.numpy.load(safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in transform.tensors().items()}))
    again = preprocess.load_transform(stored)
    assert np.array_equal(again.apply(images), transform.apply(images))
    x = transform.apply(images)
    assert np.array_equal(again.invert(x), transform.invert(x))


def test_unknown_transforms_are_refused():
    images = some_images(np.random.default_rng(0))
    with pytest.raises(RunError, match="'pca': choose one of standardise, zca, published-mnist"):
        preprocess.fit("pca", images)
    with pytest.raises(RunError, match="no transform has exactly"):
        preprocess.load_transform({"mean": np.zeros(3)})
    with pytest.raises(RunError, match="ridge=0"):
        preprocess.fit_zca(images, ridge=0.0)
