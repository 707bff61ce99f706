"""Warps: draws, replay, values against SciPy, and the derivative."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from realdata.augment import AUGMENTATIONS, Augment, Warp
from tests.strategies import generators, seeds

warps = st.sampled_from([name for name in AUGMENTATIONS if name != "none"])


@given(name=warps, seed=seeds, n=st.integers(1, 5))
def test_a_warp_is_a_function_of_its_draw(name: str, seed: int, n: int):
    images = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 2, 5, 6)))
    first, again = (Augment(name).draw(np.random.default_rng(seed), n) for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first(images), again(images))
    assert first(images).shape == images.shape
    assert torch.equal(torch.cat([first.part(k, k + 1)(images[k : k + 1]) for k in range(n)]), first(images))


@given(name=warps, rng=generators)
def test_warps_are_linear_and_their_pullback_is_the_transpose(name: str, rng: np.random.Generator):
    x, y = (torch.from_numpy(rng.standard_normal((3, 1, 4, 5))) for _ in range(2))
    warp = Augment(name, max_degrees=90.0).draw(rng, 3)
    assert warp is not None
    assert torch.allclose(warp(2.0 * x + y), 2.0 * warp(x) + warp(y), atol=1e-12)
    x.requires_grad_()
    (pulled,) = torch.autograd.grad(warp(x), x, y)
    assert float((pulled * x).sum().detach()) == pytest.approx(float((y * warp(x)).sum().detach()), rel=1e-10, abs=1e-12)
    assert torch.autograd.gradcheck(warp, (x,))


@given(rng=generators, angle=st.floats(-180.0, 180.0), shape=st.tuples(st.integers(3, 7), st.integers(3, 7)))
def test_rotation_is_that_of_scipy(rng: np.random.Generator, angle: float, shape: tuple[int, int]):
    """Bilinear, zeros outside, about the centre, in pixels (also where the image is not square)."""
    image = rng.standard_normal(shape)
    a = np.deg2rad(angle)
    matrix = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])  # acts on (row, column)
    centre = (np.array(shape) - 1) / 2
    expected = affine_transform(image, matrix, offset=centre - matrix @ centre, order=1, mode="grid-constant", cval=0.0)
    turned = Warp("rotate", np.array([a]))(torch.from_numpy(image)[None, None])[0, 0].numpy()
    assert np.allclose(turned, expected, atol=1e-9)


def test_flips_mirror_whole_images():
    images = torch.arange(12.0).reshape(2, 1, 2, 3)
    flipped = Warp("flip", np.array([True, False]))(images)
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])


def test_draws_cover_their_ranges():
    rng = np.random.default_rng(0)
    drawn = [Augment("flip-rotate").draw(rng, 50) for _ in range(200)]
    kinds = [warp.kind for warp in drawn if warp is not None]
    assert 70 <= kinds.count("flip") <= 130
    angles = np.concatenate([warp.parameters for warp in drawn if warp is not None and warp.kind == "rotate"])
    flips = np.concatenate([warp.parameters for warp in drawn if warp is not None and warp.kind == "flip"])
    assert np.abs(angles).max() <= np.deg2rad(15.0)
    assert angles.min() < -0.95 * np.deg2rad(15.0)
    assert angles.max() > 0.95 * np.deg2rad(15.0)
    # Standard errors: 0.5 / sqrt(n) for the flips, range / sqrt(12 n) for the angles.
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / len(flips) ** 0.5
    assert abs(angles.mean()) < 4 * np.deg2rad(30.0) / (12 * len(angles)) ** 0.5
    assert Augment("none").draw(rng, 3) is None


@pytest.mark.parametrize(("name", "degrees"), [("mirror", 15.0), ("rotate", 0.0), ("rotate", 181.0)])
def test_unknown_warps_are_refused(name: str, degrees: float):
    with pytest.raises(ValueError, match=r"'mirror'|max_degrees="):
        Augment(name, degrees)
