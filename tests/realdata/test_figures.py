"""Figures: every shape of set has a grid, and the same figure gives the same bytes."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from realdata import figures


@settings(max_examples=4)
@example(classes=11, ipc=1, channels=3, flat=False)
@example(classes=2, ipc=11, channels=1, flat=False)
@given(classes=st.integers(1, 3), ipc=st.integers(1, 3), channels=st.sampled_from([1, 3]), flat=st.booleans())
def test_any_set_has_a_grid(classes: int, ipc: int, channels: int, flat: bool):
    rng = np.random.default_rng(0)
    images = np.zeros((classes * ipc, channels, 4, 4)) if flat else 5.0 * rng.standard_normal((classes * ipc, channels, 4, 4))
    names = [f"class {c}" for c in range(classes)]
    grid = figures.image_grid(images, names)
    assert [axes.get_title() for axes in grid.axes if axes.get_title()] == names
    assert sum(bool(axes.images) for axes in grid.axes) == classes * min(ipc, 10)
    assert Image.open(io.BytesIO(figures.render(grid, "png", dpi=20))).size[0] > 10


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_curve_files_are_the_same_every_time(kind: str):
    def curve() -> bytes:
        return figures.render(figures.learning_curve([0, 5, 10], [0.1, 0.3, 0.2], [0.0, 0.05, 0.1], 3, 5, "title"), kind)

    assert curve() == curve()
    assert curve()[:4] == (b"%PDF" if kind == "pdf" else b"\x89PNG")


def test_colours_are_stretched_to_the_full_range():
    image = np.linspace(-7.0, 3.0, 48).reshape(3, 4, 4)
    shown = figures._stretched(image)
    assert shown.shape == (4, 4, 3)
    assert shown.min() == 0.0
    assert shown.max() == 1.0
