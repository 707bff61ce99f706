"""ConvNet-D, the network of the distillation literature: D blocks of convolution - norm - ReLU - pooling, then one linear layer.

    block   conv 3x3 (width, padding 1);  norm over groups of channels, affine;  ReLU;  2x2 pooling
    head    Linear(width * floor(size / 2^D)^2, classes)
    norm    z -> gamma (z - mean z) / sqrt(var z + 1e-5) + beta, over each image and group (instance: one channel a group)

Depth 3 and width 128 at 32 pixels, 3 channels and 10 classes have 320,010 parameters. Initialisation is PyTorch's default.
"""

from dataclasses import dataclass

import torch
from torch import nn

from realdata.checks import at_least, one_of
from sims.lab.files import RunError

NORMS = ("instance", "layer", "none")
POOLINGS = ("avg", "max", "none")


@dataclass(frozen=True)
class ConvNetConfig:
    """Size of a ConvNet."""

    depth: int = 3
    """Number of convolution blocks."""
    width: int = 128
    """Channels of every block."""
    norm: str = "instance"
    """instance, layer or none."""
    pooling: str = "avg"
    """2x2 pooling after each block: avg, max or none."""

    def __post_init__(self) -> None:
        at_least(1, depth=self.depth, width=self.width)
        one_of(NORMS, norm=self.norm)
        one_of(POOLINGS, pooling=self.pooling)


class Norm(nn.Module):
    """Group normalisation written from sums and products.

    The fused kernel has a slow and, on some devices, missing second derivative; these operations have fast ones of any order.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        grouped = z.reshape(z.shape[0], self.groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        normal = (centred * torch.rsqrt(variance + 1e-5)).reshape(z.shape)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def convnet(config: ConvNetConfig, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The network for images of `shape` (channels, height, width)."""
    channels, height, width = shape
    if config.pooling != "none" and min(height, width) >> config.depth < 1:
        deepest = min(height, width).bit_length() - 1
        raise RunError(f"depth {config.depth} halves {height}x{width} images to nothing: use at most {deepest}")
    blocks: list[nn.Module] = []
    for _ in range(config.depth):
        blocks.append(nn.Conv2d(channels, config.width, 3, padding=1))
        if config.norm != "none":
            blocks.append(Norm(config.width, config.width if config.norm == "instance" else 1))
        blocks.append(nn.ReLU())
        if config.pooling != "none":
            blocks.append(nn.AvgPool2d(2) if config.pooling == "avg" else nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        channels = config.width
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels * height * width, classes))


def parameter_count(module: nn.Module) -> int:
    """Number of trained floats."""
    return sum(p.numel() for p in module.parameters())
