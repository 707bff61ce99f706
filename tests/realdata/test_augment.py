"""Warps: draws, replay, values against SciPy and plain loops, and the derivative."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import affine_transform
from scipy.stats import chisquare

from realdata.augment import AUGMENTATIONS, Augment, Warp
from tests.strategies import generators, seeds

warps = st.sampled_from([name for name in AUGMENTATIONS if name != "none"])
FAMILIES = AUGMENTATIONS["dsa"]
sides = st.integers(2, 9)


@given(name=warps, seed=seeds, n=st.integers(1, 5), shared=st.booleans())
def test_a_warp_is_a_function_of_its_draw(name: str, seed: int, n: int, shared: bool):
    images = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 2, 5, 6)))
    first, again = (Augment(name, shared=shared).draw(np.random.default_rng(seed), n) for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first(images), again(images))
    assert first(images).shape == images.shape
    parts = [first.part(k, k + 1)(images[k : k + 1]) for k in range(n)]
    assert torch.allclose(torch.cat(parts), first(images), rtol=0.0, atol=1e-14)


@given(kind=st.sampled_from(FAMILIES), rng=generators)
def test_warps_are_affine_and_their_pullback_is_the_transpose(kind: str, rng: np.random.Generator):
    x, y = (torch.from_numpy(rng.standard_normal((3, 2, 4, 5))) for _ in range(2))
    warp = Augment(kind, max_degrees=90.0).draw(rng, 3)
    assert warp is not None
    zero = warp(torch.zeros_like(x))
    assert kind == "color" or not zero.any()
    assert torch.allclose(warp(2.0 * x + y) - zero, 2.0 * (warp(x) - zero) + warp(y) - zero, atol=1e-12)
    x.requires_grad_()
    (pulled,) = torch.autograd.grad(warp(x), x, y)
    assert float((pulled * x).sum().detach()) == pytest.approx(float((y * (warp(x) - zero)).sum().detach()), rel=1e-10, abs=1e-12)
    assert torch.autograd.gradcheck(warp, (x,))


@given(rng=generators, angle=st.floats(-180.0, 180.0), shape=st.tuples(st.integers(3, 7), st.integers(3, 7)))
def test_rotation_is_that_of_scipy(rng: np.random.Generator, angle: float, shape: tuple[int, int]):
    """Bilinear, zeros outside, about the centre, in pixels (also where the image is not square)."""
    image = rng.standard_normal(shape)
    a = np.deg2rad(angle)
    matrix = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])  # acts on (row, column)
    turned = Warp("rotate", np.array([a]))(torch.from_numpy(image)[None, None])[0, 0].numpy()
    assert np.allclose(turned, _about_the_centre(image, matrix), atol=1e-9)


@given(rng=generators, factors=st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)), shape=st.tuples(sides, sides))
def test_stretching_is_that_of_scipy(rng: np.random.Generator, factors: tuple[float, float], shape: tuple[int, int]):
    image = rng.standard_normal(shape)
    stretched = Warp("scale", np.array([factors]))(torch.from_numpy(image)[None, None])[0, 0].numpy()
    assert np.allclose(stretched, _about_the_centre(image, np.diag(factors)), atol=1e-9)


def _about_the_centre(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    centre = (np.array(image.shape) - 1) / 2
    return affine_transform(image, matrix, offset=centre - matrix @ centre, order=1, mode="grid-constant", cval=0.0)


@given(rng=generators, shape=st.tuples(sides, st.integers(12, 20)))
def test_a_crop_is_a_window_of_the_padded_image(rng: np.random.Generator, shape: tuple[int, int]):
    images, u = rng.standard_normal((3, 2, *shape)), rng.random((3, 2))
    pad = [int(side / 8 + 0.5) for side in shape]
    cropped = Warp("crop", u)(torch.from_numpy(images)).numpy()
    for image, result, draw in zip(images, cropped, u, strict=True):
        padded = np.pad(image, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
        row, column = (int(draw[k] * (2 * pad[k] + 1)) for k in range(2))
        assert np.array_equal(result, padded[:, row : row + shape[0], column : column + shape[1]])


@given(rng=generators, shape=st.tuples(sides, sides))
def test_cutout_zeroes_a_box_of_half_the_size_about_a_pixel(rng: np.random.Generator, shape: tuple[int, int]):
    images, u = rng.standard_normal((3, 2, *shape)), rng.random((3, 2))
    result = Warp("cutout", u)(torch.from_numpy(images)).numpy()
    for image, cut, draw in zip(images.copy(), result, u, strict=True):
        size = [int(side / 2 + 0.5) for side in shape]
        middle = [int(draw[k] * (shape[k] + 1 - size[k] % 2)) for k in range(2)]
        for row in range(size[0]):
            for column in range(size[1]):
                i, j = (min(max(p + middle[k] - size[k] // 2, 0), shape[k] - 1) for k, p in enumerate((row, column)))
                image[:, i, j] = 0.0
        assert np.array_equal(cut, image)


@given(rng=generators)
def test_colours_shift_and_stretch_about_grey_and_the_mean(rng: np.random.Generator):
    x = rng.standard_normal((4, 3, 5, 6))
    b, s, c = rng.random((3, 4, 1, 1, 1)) * [[[[[1.0]]]], [[[[2.0]]]], [[[[1.0]]]]]
    bright = x + b
    grey = (bright[:, :1] + bright[:, 1:2] + bright[:, 2:]) / 3
    saturated = s * bright + (1 - s) * grey
    expected = c * saturated + (1 - c) * np.array([image.mean() for image in saturated])[:, None, None, None]
    warped = Warp("color", np.concatenate([b, s, c], axis=1).reshape(4, 3))(torch.from_numpy(x)).numpy()
    assert np.allclose(warped, expected, atol=1e-12)


def test_flips_mirror_whole_images():
    images = torch.arange(12.0).reshape(2, 1, 2, 3)
    flipped = Warp("flip", np.array([True, False]))(images)
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])


def test_draws_cover_their_ranges():
    rng = np.random.default_rng(0)
    drawn: dict[str, list[np.ndarray]] = {}
    for _ in range(600):
        warp = Augment("dsa").draw(rng, 50)
        assert warp is not None
        drawn.setdefault(warp.kind, []).append(warp.parameters)
    assert set(drawn) == set(FAMILIES)
    assert chisquare([len(drawn[kind]) for kind in FAMILIES]).pvalue > 1e-3
    found = {kind: np.concatenate(parameters).astype(float) for kind, parameters in drawn.items()}
    angle = np.deg2rad(15.0)
    ranges = {
        "rotate": (-angle, angle), "scale": (1 / 1.2, 1.2), "crop": (0.0, 1.0), "cutout": (0.0, 1.0),
        "color": (np.array([-0.5, 0.0, 0.5]), np.array([0.5, 2.0, 1.5])),
    }  # fmt: skip
    for kind, (low, high) in ranges.items():
        u = (found[kind] - low) / (np.asarray(high) - low)
        assert u.min() >= 0.0
        assert u.max() <= 1.0
        # Uniform: mean 1/2 and mean square 1/3, within four standard errors (sqrt(1/12) and sqrt(4/45)).
        assert np.all(np.abs(u.mean(axis=0) - 1 / 2) < 4 * (1 / 12 / len(u)) ** 0.5)
        assert np.all(np.abs((u**2).mean(axis=0) - 1 / 3) < 4 * (4 / 45 / len(u)) ** 0.5)
    assert abs(found["flip"].mean() - 0.5) < 4 * 0.5 / len(found["flip"]) ** 0.5
    assert Augment("none").draw(rng, 3) is None
    assert {kind for _ in range(50) if (w := Augment("flip-rotate").draw(rng, 1)) for kind in [w.kind]} == {"flip", "rotate"}


def test_every_shift_of_a_crop_is_equally_likely():
    n = 9000
    warp = Augment("crop").draw(np.random.default_rng(0), n)
    assert warp is not None
    place = torch.zeros(1, 1, 32, 32)
    place[..., 16, 16] = 1.0  # with p = 4 it lands on one of 9 x 9 places
    landed = warp(place.expand(n, -1, -1, -1)).sum(dim=(0, 1))[12:21, 12:21]
    assert float(landed.sum()) == n
    assert chisquare(landed.flatten().numpy().astype(int)).pvalue > 1e-3


@given(name=warps, seed=seeds, sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_one_shared_draw_warps_batches_of_any_size_alike(name: str, seed: int, sizes: tuple[int, int]):
    rngs = [np.random.default_rng(seed) for _ in sizes]
    first, second = (Augment(name, shared=True).draw(rng, n) for rng, n in zip(rngs, sizes, strict=True))
    assert first is not None
    assert second is not None
    assert first.kind == second.kind
    rows = np.concatenate([first.parameters, second.parameters])
    assert (len(first.parameters), len(second.parameters)) == sizes
    assert np.array_equal(rows, np.repeat(rows[:1], len(rows), axis=0))
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


@pytest.mark.parametrize(("name", "degrees"), [("mirror", 15.0), ("rotate", 0.0), ("rotate", 181.0)])
def test_unknown_warps_are_refused(name: str, degrees: float):
    with pytest.raises(ValueError, match=r"'mirror'|max_degrees="):
        Augment(name, degrees)
