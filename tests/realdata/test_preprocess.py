"""Transforms: what they make of the images they were fitted on, their inverses, and their stored form."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from realdata import data, preprocess
from realdata.data import Selection
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


@given(rng=generators)
def test_whitening_of_trajectory_matching(rng: np.random.Generator):
    """Centred by the mean image, 0.1 added to every eigenvalue: by an SVD of the centred images."""
    images = some_images(rng)
    transform = preprocess.fit("zca-mtt", images)
    u = images.reshape(len(images), -1) / 255.0
    centred = u - u.mean(axis=0)
    _, singular, basis = np.linalg.svd(centred)
    e = np.zeros(u.shape[1])
    e[: len(singular)] = singular**2 / len(u)
    expected = centred @ (basis.T / np.sqrt(e + 0.1)) @ basis
    assert np.allclose(transform.apply(images).reshape(len(images), -1), expected, atol=1e-4)
    assert np.allclose(transform.invert(transform.apply(images)), images / 255.0, atol=1e-4)


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
    stored = safetensors.numpy.load(safetensors.numpy.save({k: np.array(v, order="C") for k, v in transform.tensors().items()}))
    again = preprocess.load_transform(stored)
    assert np.array_equal(again.apply(images), transform.apply(images))
    x = transform.apply(images)
    assert np.array_equal(again.invert(x), transform.invert(x))


@given(rng=generators, per_image=st.booleans(), part=st.integers(1, 70))
def test_parts_and_mapped_rows_give_the_same_transforms(
    tmp_path_factory: pytest.TempPathFactory, rng: np.random.Generator, per_image: bool, part: int
):
    """Statistics over parts of images on disk against those of one array in float64."""
    images, rows = some_images(rng, 80), np.sort(rng.permutation(80)[:60])
    path = tmp_path_factory.mktemp("mapped") / "images.npy"
    np.save(path, images)
    mapped = Selection(np.load(path, mmap_mode="r"), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "PART", part)
        standardise, zca = preprocess.fit("standardise", mapped), preprocess.fit_zca(mapped, per_image=per_image)
        x = zca.apply(mapped)
        assert np.array_equal(standardise.apply(mapped), preprocess.fit("standardise", images[rows]).apply(images[rows]))
    u = images[rows] / 255.0
    assert isinstance(standardise, preprocess.Standardise)
    assert np.allclose(standardise.mean, u.mean(axis=(0, 2, 3)), rtol=1e-7)
    assert np.allclose(standardise.std, u.std(axis=(0, 2, 3)), rtol=1e-7)
    whole = preprocess.fit_zca(images[rows], per_image=per_image)
    assert np.allclose(zca.zca, whole.zca, rtol=1e-6, atol=1e-6)
    assert np.allclose(x, whole.apply(images[rows]), atol=1e-4)


def test_published_figures_stand_beside_the_measured_ones(data_root: Path):
    """Means agree to the digits printed; deviations do for MNIST, and for CIFAR-10 are averages over images, as the module says."""
    if not (data_root / "cifar10").is_dir() or not (data_root / "mnist").is_dir():
        pytest.skip(f"no cifar10 or mnist under {data_root}")
    mnist, cifar = (data.load(name, data_root / name, "train").images for name in ("mnist", "cifar10"))
    for name, images in (("mnist", mnist), ("cifar10", cifar)):
        measured, printed = preprocess.fit("standardise", images), preprocess.published(f"published-{name}", images.shape[1])
        assert isinstance(measured, preprocess.Standardise)
        assert np.allclose(measured.mean, printed.mean, atol=1e-4)
        assert np.allclose(measured.std, printed.std, atol=1e-4) == (name == "mnist")
    of_images = np.mean([image.std(axis=(1, 2)) for image in cifar[:5000] / 255.0], axis=0)
    assert np.allclose(of_images, preprocess.PUBLISHED["published-cifar10"][1], atol=2e-3)


def test_published_figures_are_for_their_channels():
    images = some_images(np.random.default_rng(0), shape=(3, 2, 2))
    assert "published-cifar10" in preprocess.TRANSFORMS
    x = preprocess.fit("published-cifar10", images).apply(images)
    assert np.allclose(x[0, 1, 0, 0], (images[0, 1, 0, 0] / 255 - 0.4822) / 0.1994, atol=1e-5)
    with pytest.raises(RunError, match="published-mnist is for images of 1 channels, these have 3"):
        preprocess.fit("published-mnist", images)


def test_whitening_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = some_images(np.random.default_rng(0))
    place = tmp_path / "new" / "cache"
    first = preprocess.fit("zca", images, place)
    (kept,) = place.iterdir()
    compute = preprocess.fit_zca
    monkeypatch.setattr(preprocess, "fit_zca", None)
    again = preprocess.fit("zca", images, place)
    assert all(np.array_equal(again.tensors()[name], tensor) for name, tensor in first.tensors().items())
    monkeypatch.setattr(preprocess, "fit_zca", compute)
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: made again
    assert np.array_equal(preprocess.fit("zca", images, place).apply(images), first.apply(images))
    preprocess.fit("zca", images[::-1], place)
    assert len(list(place.iterdir())) == 2


def test_a_flipped_bit_of_a_kept_whitening_is_seen(tmp_path: Path):
    images = some_images(np.random.default_rng(0), shape=(1, 2, 2))
    first = preprocess.fit("zca", images, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for k in range(0, len(whole), 5):
        kept.write_bytes(whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :])
        again = preprocess.fit("zca", images, tmp_path).tensors()
        assert all(again[name].tobytes() == x.tobytes() for name, x in first.tensors().items()), k
    kept.write_bytes(safetensors.numpy.save(dict(preprocess.fit_zca(images[::2]).tensors())))  # of an earlier version, without a seal
    assert not np.array_equal(preprocess.read_transform(kept).tensors()["zca"], first.tensors()["zca"])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"mean": np.zeros(2, dtype=np.float32), "std": np.ones(2, dtype=np.float32)}, r"mean \(float32 \(2,\)\)"),
        ({"mean": np.zeros(3, dtype=np.float32), "std": np.zeros(3, dtype=np.float32)}, "std"),
        ({"mean": np.full(3, np.nan, dtype=np.float32), "std": np.ones(3, dtype=np.float32)}, "mean"),
        ({"mean": np.zeros(3, dtype=np.int64), "std": np.ones(3, dtype=np.float32)}, "mean .*int64"),
    ],
)
def test_a_transform_of_other_images_is_refused(tensors: dict[str, np.ndarray], words: str):
    with pytest.raises(RunError, match=f"the transform's {words}"):
        preprocess.check_transform(preprocess.load_transform(tensors), (3, 2, 2))


def test_every_fitted_transform_passes_for_its_own_shape_alone():
    images = some_images(np.random.default_rng(0), shape=(3, 2, 2))
    for kind in ("standardise", "zca", "zca-mtt", "published-cifar10"):
        transform = preprocess.fit(kind, images)
        preprocess.check_transform(transform, (3, 2, 2))
        with pytest.raises(RunError, match="is not one for images"):
            preprocess.check_transform(transform, (1, 2, 2))


def test_whitening_has_a_limit():
    images = np.zeros((2, 3, 65, 64), dtype=np.uint8)
    with pytest.raises(RunError, match=r"zca of 12480 features an image needs 5 GB .*: use standardise"):
        preprocess.fit("zca", images)


def test_unknown_transforms_are_refused():
    images = some_images(np.random.default_rng(0))
    with pytest.raises(RunError, match="'pca': choose one of standardise, zca, zca-mtt, published-mnist"):
        preprocess.fit("pca", images)
    with pytest.raises(RunError, match="no transform has exactly"):
        preprocess.load_transform({"mean": np.zeros(3)})
    with pytest.raises(RunError, match="ridge=0"):
        preprocess.fit_zca(images, ridge=0.0)
