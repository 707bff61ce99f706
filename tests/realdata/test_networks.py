"""The networks: sizes, shapes, what the norms standardise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realdata.networks import ACTIVATIONS, NETWORKS, NORMS, POOLINGS, ConvNetConfig, convnet, network, parameter_count
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
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    shape=st.tuples(st.integers(1, 4), st.integers(8, 15), st.integers(8, 15)),
    classes=st.integers(1, 12),
)
def test_any_size_gives_logits(depth: int, width: int, norm: str, pooling: str, activation: str, shape: tuple[int, int, int], classes: int):
    module = convnet(ConvNetConfig(depth, width, norm, pooling, activation), shape, classes)
    assert module(torch.ones(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "count"),
    [("convnet3", 320_010), ("mlp", 411_146), ("lenet", 62_006), ("alexnet", 1_872_202), ("vgg11", 9_231_114), ("resnet18", 11_173_962)],
)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 33)])
def test_networks_of_the_literature(name: str, count: int, shape: tuple[int, int, int]):
    module = network(name, shape, 10)
    assert module(torch.ones(2, *shape)).shape == (2, 10)
    assert shape != (3, 32, 32) or parameter_count(module) == count


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.endswith("-narrow")])
def test_narrow_networks_have_the_layers_of_the_wide_ones(name: str):
    narrow, wide = (network(n, (3, 32, 32), 10) for n in (name, name.removesuffix("-narrow")))
    assert [type(layer) for layer in narrow.modules()] == [type(layer) for layer in wide.modules()]
    assert parameter_count(narrow) < parameter_count(wide) / 7
    assert narrow(torch.ones(2, 3, 32, 32)).shape == (2, 10)


def test_unknown_networks_are_refused():
    with pytest.raises(RunError, match="'resnet19'"):
        network("resnet19", (3, 32, 32), 10)


@given(rng=generators, channels=st.integers(1, 9), norm=st.sampled_from(NORMS[:-1]))
def test_norms_standardise_over_their_axes(rng: np.random.Generator, channels: int, norm: str):
    groups = {"instance": channels, "layer": 1, "group": 4 if channels % 4 == 0 else 2 if channels % 2 == 0 else 1}
    module = convnet(ConvNetConfig(1, channels, norm, "none"), (2, 4, 4), 3)[1]
    z = torch.from_numpy(rng.standard_normal((3, channels, 4, 4)).astype(np.float32))
    rows = z.transpose(0, 1).reshape(channels, -1) if norm == "batch" else z.reshape(3 * groups[norm], -1)
    out = module(z).transpose(0, 1).reshape(rows.shape) if norm == "batch" else module(z).reshape(rows.shape)
    expected = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"depth": 0}, "depth=0"), ({"width": 0}, "width=0"), ({"norm": "weight"}, "'weight'"), ({"pooling": "sum"}, "'sum'")],
)
def test_impossible_settings_are_refused(settings: dict[str, int | str], words: str):
    with pytest.raises(RunError, match=words):
        ConvNetConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_images_too_small_for_the_depth_are_refused():
    with pytest.raises(RunError, match="use at most 2"):
        convnet(ConvNetConfig(depth=3), (3, 4, 4), 10)
