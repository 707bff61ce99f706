"""Experts side by side against one after another: the time of one gradient of K networks, by torch.func.vmap over that of K calls.

A ratio above 1 speaks for one after another, which is what `realdata.experts` does.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from realdata.bridge import Tensors, fresh_parameters
from realdata.networks import ConvNetConfig, convnet
from realdata.second_order import forward

ROUNDS = 5


def seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@pytest.mark.parametrize(("width", "batch", "count"), [(4, 64, 4), (16, 64, 4), (16, 256, 2), (32, 64, 4), (64, 64, 2), (128, 32, 2)])
def test_side_by_side_over_one_after_another(width: int, batch: int, count: int):
    device, rng = torch.device("cuda" if torch.cuda.is_available() else "cpu"), np.random.default_rng(0)
    module = convnet(ConvNetConfig(width=width), (3, 32, 32), 10)
    theta = [fresh_parameters(module, rng, torch.float32, device) for _ in range(count)]
    images = torch.from_numpy(rng.standard_normal((count, batch, 3, 32, 32)).astype(np.float32)).to(device)
    labels = torch.from_numpy(rng.integers(0, 10, (count, batch))).to(device)

    def loss(theta: Tensors, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward(module, theta, images), labels)

    gradient, stacked = torch.func.grad(loss), tuple(torch.stack(leaves) for leaves in zip(*theta, strict=True))
    together = torch.func.vmap(gradient)

    def apart() -> list[Tensors]:
        return [gradient(theta[k], images[k], labels[k]) for k in range(count)]

    for a, b in zip(together(stacked, images, labels), zip(*apart(), strict=True), strict=True):
        assert torch.allclose(a, torch.stack(b), rtol=1e-2, atol=1e-4)
    ratios = [seconds(lambda: together(stacked, images, labels), device) / seconds(apart, device) for _ in range(ROUNDS)]
    where = f"width {width}, batch {batch}, {count} networks on {device.type}"
    print(f"{where}: {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})")
