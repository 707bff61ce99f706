"""ConvNets: size, shapes, and the norm against PyTorch's fused one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from realdata.networks import NORMS, POOLINGS, ConvNetConfig, Norm, convnet, parameter_count
from sims.lab.files import RunError
from tests.strategies import generators


@pytest.mark.parametrize(
    ("depth", "shape", "classes", "count"), [(3, (3, 32, 32), 10, 320_010), (3, (3, 32, 32), 100, 504_420), (4, (3, 64, 64), 200, 857_160)]
)
def test_published_sizes(depth: int, shape: tuple[int, int, int], classes: int, count: int):
    assert parameter_count(convnet(ConvNetConfig(depth=depth), shape, classes)) == count


@given(
    depth=st.integers(1, 3),
    width=st.integers(1, 5),
    norm=st.sampled_from(NORMS),
    pooling=st.sampled_from(POOLINGS),
    shape=st.tuples(st.integers(1, 4), st.integers(8, 15), st.integers(8, 15)),
    classes=st.integers(1, 12),
)
def test_any_size_gives_logits(depth: int, width: int, norm: str, pooling: str, shape: tuple[int, int, int], classes: int):
    module = convnet(ConvNetConfig(depth, width, norm, pooling), shape, classes)
    assert module(torch.ones(2, *shape)).shape == (2, classes)


@given(rng=generators, channels=st.integers(1, 4), data=st.data())
def test_norm_is_group_norm_in_value_and_in_both_derivatives(rng: np.random.Generator, channels: int, data: st.DataObject):
    groups = data.draw(st.sampled_from([1, channels]))
    norm = Norm(channels, groups).double()
    z, gamma, beta = (torch.from_numpy(rng.standard_normal(shape)).requires_grad_() for shape in ((3, channels, 3, 2), channels, channels))
    direction = torch.from_numpy(rng.standard_normal(z.shape))
    mine = torch.func.functional_call(norm, {"weight": gamma, "bias": beta}, (z,))
    theirs = F.group_norm(z, groups, gamma, beta)
    assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(_derivatives(y, (z, gamma, beta), direction) for y in (mine, theirs)), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)


def _derivatives(y: torch.Tensor, inputs: tuple[torch.Tensor, ...], direction: torch.Tensor) -> tuple[torch.Tensor, ...]:
    first = torch.autograd.grad((y.tanh() * direction).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)
    return (*first, *second)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"depth": 0}, "depth=0"), ({"width": 0}, "width=0"), ({"norm": "batch"}, "'batch'"), ({"pooling": "sum"}, "'sum'")],
)
def test_impossible_settings_are_refused(settings: dict[str, int | str], words: str):
    with pytest.raises(RunError, match=words):
        ConvNetConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_images_too_small_for_the_depth_are_refused():
    with pytest.raises(RunError, match="use at most 2"):
        convnet(ConvNetConfig(depth=3), (3, 4, 4), 10)
