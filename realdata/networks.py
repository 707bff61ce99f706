"""The networks of the distillation literature, each a chain of known layers and residual sums over images (channels, height, width).

    convnetD   D blocks of conv 3x3 (width) - norm - activation - 2x2 pooling, then one linear layer
    mlp        two hidden layers of `width` ReLU units
    lenet      5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 max pooling, then linear layers of 120 and 84
    alexnet    five convolutions of 2, 3, 4, 3, 3 times `width` channels, no norm, three max poolings, one linear layer
    vgg11      eight 3x3 convolutions of 1, 2, 4, 4, 8, 8, 8, 8 times `width` channels, norm and ReLU, five max poolings, one linear layer
    resnet18   eight blocks of two 3x3 convolutions in four stages of 1, 2, 4, 8 times `width` channels, global mean, one linear layer
    NAME-narrow   convnet3 to 5, alexnet, vgg11 and resnet18 at `width` 16 for a processor: an eighth, or a quarter, of the usual one
    norm       z -> gamma (z - mean z) / sqrt(var z + 1e-5) + beta, over each image and group of channels (instance: one channel a
               group, group: four groups, layer: all channels), or over the batch (batch: never a running average)

These are the 32-pixel variants with instance norm that the literature compares on (Zhao, Mopuri, Bilen, "Dataset Condensation with
Gradient Matching", ICLR 2021, and its successors); LeNet, AlexNet and VGG-11 pad smaller images to 32 pixels in their first convolution.
Sizes at 3 x 32 x 32 and 10 classes (computed here): ConvNet-3 of width 128 320,010; MLP 411,146; LeNet 62,006; AlexNet 1,872,202;
VGG-11 9,231,114; ResNet-18 11,173,962. Initialisation is PyTorch's default.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from realdata.checks import at_least, one_of
from sims.lab.files import RunError

NORMS = ("instance", "layer", "group", "batch", "none")
POOLINGS = ("avg", "max", "none")
ACTIVATIONS = {"relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid}


@dataclass(frozen=True)
class ConvNetConfig:
    """Size of a ConvNet."""

    depth: int = 3
    """Number of convolution blocks."""
    width: int = 128
    """Channels of every block."""
    norm: str = "instance"
    """instance, layer, group (four groups), batch (statistics of the batch at hand) or none."""
    pooling: str = "avg"
    """2x2 pooling after each block: avg, max or none."""
    activation: str = "relu"
    """relu, leaky-relu (slope 0.01) or sigmoid."""

    def __post_init__(self) -> None:
        at_least(1, depth=self.depth, width=self.width)
        one_of(NORMS, norm=self.norm)
        one_of(POOLINGS, pooling=self.pooling)
        one_of(ACTIVATIONS, activation=self.activation)


class Norm(nn.GroupNorm):
    """Group normalisation over `groups` groups of the channels, affine per channel."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels)


class Residual(nn.Module):
    """z -> main(z) + shortcut(z)."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z) + self.shortcut(z)


def _norm(kind: str, channels: int) -> list[nn.Module]:
    one_of(NORMS, norm=kind)
    if kind == "none":
        return []
    if kind == "batch":
        return [nn.BatchNorm2d(channels, track_running_stats=False)]
    return [Norm(channels, {"instance": channels, "layer": 1, "group": math.gcd(4, channels)}[kind])]


def convnet(config: ConvNetConfig, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The network for images of `shape` (channels, height, width)."""
    channels, height, width = shape
    if config.pooling != "none" and min(height, width) >> config.depth < 1:
        deepest = min(height, width).bit_length() - 1
        raise RunError(f"depth {config.depth} halves {height}x{width} images to nothing: use at most {deepest}")
    blocks: list[nn.Module] = []
    for _ in range(config.depth):
        blocks += [nn.Conv2d(channels, config.width, 3, padding=1), *_norm(config.norm, config.width), ACTIVATIONS[config.activation]()]
        if config.pooling != "none":
            blocks.append(nn.AvgPool2d(2) if config.pooling == "avg" else nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        channels = config.width
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels * height * width, classes))


def _padded(shape: tuple[int, int, int], padding: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(padding of the first convolution, image size it then sees): sides below 32 pixels are padded up to them."""
    extra = tuple(max(0, (33 - side) // 2) for side in shape[1:])
    return (padding + extra[0], padding + extra[1]), (shape[1] + 2 * extra[0], shape[2] + 2 * extra[1])


def mlp(shape: tuple[int, int, int], classes: int, width: int = 128) -> nn.Sequential:
    """Three linear layers."""
    hidden = nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


def lenet(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling."""
    padding, (height, width) = _padded(shape, 0)
    height, width = ((side - 4) // 2 for side in (height, width))
    height, width = ((side - 4) // 2 for side in (height, width))
    features = nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
    head = nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
    return nn.Sequential(*features, nn.Flatten(), *head)


# (width multiple, kernel) of a convolution, or "pool".
ALEXNET = ((2, 5), "pool", (3, 5), "pool", (4, 3), (3, 3), (3, 3), "pool")
VGG11 = ((1, 3), "pool", (2, 3), "pool", (4, 3), (4, 3), "pool", (8, 3), (8, 3), "pool", (8, 3), (8, 3), "pool")


def _chain(plan: tuple, shape: tuple[int, int, int], classes: int, norm: str, width: int) -> nn.Sequential:
    """The convolutions (each with norm and ReLU) and 2x2 max poolings of a plan, then one linear layer."""
    padding, (height, across) = _padded(shape, plan[0][1] // 2)
    layers: list[nn.Module] = []
    channels = shape[0]
    for part in plan:
        if part == "pool":
            layers.append(nn.MaxPool2d(2))
            height, across = height // 2, across // 2
            continue
        wider, kernel = width * part[0], part[1]
        layers += [nn.Conv2d(channels, wider, kernel, padding=kernel // 2 if layers else padding), *_norm(norm, wider), nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * across, classes))


def alexnet(shape: tuple[int, int, int], classes: int, norm: str = "none", width: int = 64) -> nn.Sequential:
    """AlexNet as scaled to small images, with one linear layer."""
    return _chain(ALEXNET, shape, classes, norm, width)


def vgg11(shape: tuple[int, int, int], classes: int, norm: str = "instance", width: int = 64) -> nn.Sequential:
    """VGG-11 with one linear layer."""
    return _chain(VGG11, shape, classes, norm, width)


def _conv_norm(channels: int, wider: int, kernel: int, stride: int, norm: str) -> list[nn.Module]:
    return [nn.Conv2d(channels, wider, kernel, stride, kernel // 2, bias=norm == "none"), *_norm(norm, wider)]


def resnet18(shape: tuple[int, int, int], classes: int, norm: str = "instance", width: int = 64) -> nn.Sequential:
    """ResNet-18 for small images: a 3x3 first convolution without pooling, shortcuts by 1x1 convolution where the shape changes."""
    layers: list[nn.Module] = [*_conv_norm(shape[0], width, 3, 1, norm), nn.ReLU()]
    channels = width
    for stage in range(4):
        for block in range(2):
            wider, stride = width << stage, 2 if stage > 0 and block == 0 else 1
            main = *_conv_norm(channels, wider, 3, stride, norm), nn.ReLU(), *_conv_norm(wider, wider, 3, 1, norm)
            same = channels == wider and stride == 1
            shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(channels, wider, 1, stride, norm))
            layers += [Residual(nn.Sequential(*main), shortcut), nn.ReLU()]
            channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


NARROW = 16
NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    **{f"convnet{depth}": partial(convnet, ConvNetConfig(depth=depth)) for depth in (3, 4, 5)},
    "mlp": mlp,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    **{f"convnet{depth}-narrow": partial(convnet, ConvNetConfig(depth=depth, width=NARROW)) for depth in (3, 4, 5)},
    **{f"{name}-narrow": partial(made, width=NARROW) for name, made in (("alexnet", alexnet), ("vgg11", vgg11), ("resnet18", resnet18))},
}


def network(name: str, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The literature's network of that name for images of `shape` (channels, height, width)."""
    one_of(NETWORKS, network=name)
    return NETWORKS[name](shape, classes)


def parameter_count(module: nn.Module) -> int:
    """Number of trained floats."""
    return sum(p.numel() for p in module.parameters())
