"""A network's value together with its derivative along a direction of its parameters, layer by layer.

    theta   parameters, c a direction of the same shapes;  x the input (constant along c)
    (z, z')  a value and its derivative d/de at theta + e c:  the network maps (x, -) to (f(theta, x), (d f / d theta) c)

One entry of `LAYERS` per kind of layer; networks are these composed in order (`Sequential`) and added (`Residual`), so a new layer is
one entry and a new network needs nothing. Contractions run on PyTorch's own kernels, everything else is written from primitives, with
derivatives that a compiler can fuse. Reverse-differentiating the result is Pearlmutter's R-operator (1994, "Fast exact multiplication by
the Hessian"): the cotangent of z' is the plain back-propagated signal, the cotangent of z its derivative along c.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from realdata.networks import Norm, Residual

Tensors: TypeAlias = tuple[torch.Tensor, ...]


class Pair(NamedTuple):
    """A value and its derivative along c (None: zero)."""

    value: torch.Tensor
    dot: torch.Tensor | None


Moving: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""A parameter and its direction."""

Lift: TypeAlias = Callable[[Pair, list[Moving]], Pair]
"""(input, the layer's own parameters) -> output."""


class Layer(NamedTuple):
    """A kind of layer: `lift` reads a module's settings; `plain` says whether they are all ones that the lift knows."""

    lift: Callable[[Any], Lift]
    plain: Callable[[Any], bool] = lambda module: True


def _dot(z: Pair) -> torch.Tensor:
    return torch.zeros_like(z.value) if z.dot is None else z.dot


def _contraction(product: Callable[..., torch.Tensor]) -> Lift:
    """y = w * z + b, linear in z and in (w, b):   y' = w * z' + w' * z + b'."""

    def lifted(z: Pair, parameters: list[Moving]) -> Pair:
        (weight, weight_dot), (bias, bias_dot) = parameters[0], parameters[1] if len(parameters) > 1 else (None, None)
        y, dot = product(z.value, weight, bias), product(z.value, weight_dot, bias_dot)
        return Pair(y, dot if z.dot is None else dot + product(z.dot, weight, None))

    return lifted


def _convolution(module: nn.Conv2d) -> Lift:
    settings: Any = module.stride, module.padding, module.dilation, module.groups
    return _contraction(lambda z, weight, bias: F.conv2d(z, weight, bias, *settings))


def _pointwise(value: Callable[[torch.Tensor], torch.Tensor], slope: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Lift:
    """y = f(z),   y' = f'(z) z' with f' = slope(z, y)."""

    def lifted(z: Pair, parameters: list[Moving]) -> Pair:
        y = value(z.value)
        return Pair(y, slope(z.value, y) * _dot(z))

    return lifted


def _leaky(negative: float) -> Lift:
    """y = max(z, 0) + negative min(z, 0);   y' = z' or negative z', the slope at 0 that of the left (and constant around z)."""
    slope = torch.ops.aten.leaky_relu_backward

    def lifted(z: Pair, parameters: list[Moving]) -> Pair:
        y = F.leaky_relu(z.value, negative) if negative else F.relu(z.value)
        return Pair(y, slope(_dot(z), z.value.detach(), negative, False))

    return lifted


def _linear_map(module: nn.Module) -> Lift:
    """y = A z without parameters:   y' = A z'."""
    return lambda z, parameters: Pair(module(z.value), None if z.dot is None else module(z.dot))


def _max_pool(module: nn.MaxPool2d) -> Lift:
    """y takes the largest z of each patch, y' the z' of the same place."""
    settings = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode

    def lifted(z: Pair, parameters: list[Moving]) -> Pair:
        y, places = F.max_pool2d(z.value, *settings, return_indices=True)
        return Pair(y, _dot(z).flatten(2).gather(2, places.flatten(2)).view_as(y))

    return lifted


def _standardised(z: torch.Tensor, dot: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row:   n = r (z - mean z), r = (var z + eps)^(-1/2);   n' = P z' with P v = r (v - mean v - n mean(n v))."""
    if not torch.compiler.is_compiling():
        return _Standardised.apply(z, dot, eps)  # pyright: ignore[reportReturnType]
    centred = z - z.mean(1, keepdim=True)
    r = torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
    n = centred * r
    return n, r * (dot - dot.mean(1, keepdim=True) - n * (n * dot).mean(1, keepdim=True))


class _Standardised(torch.autograd.Function):
    """The same from fused kernels, for where nothing fuses the primitives: P is the norm's own backward pass.

    With cotangents a of n and b of n' (derived here; m(v, w) = mean of v w over the row, P symmetric):
        z'  <-  P b
        z   <-  P (a - r m(n, z') b - r m(n, b) z') - r m(b, n') n
    """

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, dot: torch.Tensor, eps: float) -> Tensors:
        z, dot = z.contiguous(), dot.contiguous()
        n, mean, r = torch.native_group_norm(z, None, None, z.shape[0], 1, z.shape[1], 1, eps)
        n_dot = _project(dot, z, mean, r)
        ctx.save_for_backward(z, dot, mean, r, n, n_dot)
        return n, n_dot

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        z, dot, mean, r, n, n_dot = ctx.saved_tensors
        through = a.addcmul(b, _row_mean(n, dot) * r, value=-1).addcmul_(dot, _row_mean(n, b) * r, value=-1)
        z_bar = _project(through, z, mean, r).addcmul_(n, _row_mean(b, n_dot) * r, value=-1)
        return z_bar, _project(b, z, mean, r), None


def _project(v: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    rows, length = z.shape
    wanted = [True, False, False]
    return torch.ops.aten.native_group_norm_backward(v.contiguous(), z, mean, r, None, rows, 1, length, 1, wanted)[0]


def _row_mean(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.bmm(v[:, None, :], w[:, :, None])[:, 0] / v.shape[1]


def _normalisation(groups: int | None, eps: float) -> Lift:
    """y = gamma n + beta per channel; n standardised over each image and group of channels, or (None) over the batch for each channel."""

    def lifted(z: Pair, parameters: list[Moving]) -> Pair:
        value, dot = z.value, _dot(z)
        if groups is None:
            value, dot = value.transpose(0, 1), dot.transpose(0, 1)
        rows = value.shape[0] * (groups or 1)
        n, n_dot = (q.view(value.shape) for q in _standardised(value.reshape(rows, -1), dot.reshape(rows, -1), eps))
        if groups is None:
            n, n_dot = n.transpose(0, 1), n_dot.transpose(0, 1)
        if not parameters:
            return Pair(n, n_dot)
        (gamma, gamma_dot), (beta, beta_dot) = ([q.view(-1, *[1] * (n.dim() - 2)) for q in moving] for moving in parameters)
        return Pair(torch.addcmul(beta, n, gamma), torch.addcmul(beta_dot, n, gamma_dot).addcmul(n_dot, gamma))

    return lifted


def _affine_or_bare(module: Any) -> bool:
    return (module.weight is None) == (module.bias is None)


def _without_memory(module: Any) -> bool:
    return module.running_mean is None and _affine_or_bare(module)


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv2d: Layer(_convolution, lambda module: module.padding_mode == "zeros"),
    nn.Linear: Layer(lambda module: _contraction(F.linear)),
    Norm: Layer(lambda module: _normalisation(module.num_groups, module.eps)),
    nn.GroupNorm: Layer(lambda module: _normalisation(module.num_groups, module.eps), _affine_or_bare),
    nn.InstanceNorm2d: Layer(lambda module: _normalisation(module.num_features, module.eps), _without_memory),
    nn.BatchNorm1d: Layer(lambda module: _normalisation(None, module.eps), _without_memory),
    nn.BatchNorm2d: Layer(lambda module: _normalisation(None, module.eps), _without_memory),
    nn.ReLU: Layer(lambda module: _leaky(0.0)),
    nn.LeakyReLU: Layer(lambda module: _leaky(module.negative_slope)),
    nn.Sigmoid: Layer(lambda module: _pointwise(torch.sigmoid, lambda z, y: y * (1.0 - y))),
    nn.Tanh: Layer(lambda module: _pointwise(torch.tanh, lambda z, y: 1.0 - y * y)),
    nn.MaxPool2d: Layer(_max_pool),
    nn.AvgPool2d: Layer(_linear_map),
    nn.AdaptiveAvgPool2d: Layer(_linear_map),
    nn.Flatten: Layer(_linear_map),
    nn.Identity: Layer(_linear_map),
}


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers in the order of their parameters; one that stands in two places comes twice."""
    if type(module) not in (nn.Sequential, Residual):
        yield module
    else:
        for child in module._modules.values():
            assert child is not None
            yield from _layers(child)


def uncovered(module: nn.Module) -> str | None:
    """What keeps a network from being lifted (a layer without entry, a hook, a parameter in two places), or None."""
    layers = list(_layers(module))
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return "forward hooks change what the network computes"
    for part in layers:
        known = LAYERS.get(type(part))
        if known is None or not known.plain(part):
            return f"no derivative rule for the layer {part}"
    places = [p for part in layers for p in part.parameters()]
    return None if len(places) == len(list(module.parameters())) else "a parameter stands in two places"


def by_image(module: nn.Module) -> bool:
    """Whether what a network says of an image surely depends on that image alone: every layer is known, and none is a batch norm."""
    return uncovered(module) is None and not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in _layers(module))


def _composed(module: nn.Module) -> Callable[[Pair, Iterator[Moving]], Pair]:
    """The lift of a network; each layer takes its own parameters from the iterator, in the order of `module.parameters()`."""
    if isinstance(module, Residual):
        main, shortcut = _composed(module.main), _composed(module.shortcut)

        def added(z: Pair, parameters: Iterator[Moving]) -> Pair:
            a, b = main(z, parameters), shortcut(z, parameters)
            return Pair(a.value + b.value, _dot(a) + _dot(b))

        return added
    if isinstance(module, nn.Sequential):
        parts = [_composed(child) for child in module]

        def chained(z: Pair, parameters: Iterator[Moving]) -> Pair:
            for part in parts:
                z = part(z, parameters)
            return z

        return chained
    lift, count = LAYERS[type(module)].lift(module), len(list(module.parameters()))
    return lambda z, parameters: lift(z, [next(parameters) for _ in range(count)])


def lifted(module: nn.Module) -> Callable[[Tensors, Tensors, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(theta, c, x) -> (f(theta, x), (d f / d theta) c) of a covered network."""
    missing = uncovered(module)
    if missing is not None:
        raise ValueError(f"no fast product: {missing}; use product='autograd', or give a layer its entry in realdata.lift.LAYERS")
    network = _composed(module)

    def value_and_derivative(theta: Tensors, c: Tensors, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = network(Pair(x, None), zip(theta, c, strict=True))
        return y.value, _dot(y)

    return value_and_derivative
