"""The loss of one training step with its gradient g and the exact products (dg/dtheta)^T c and (dg/dbatch)^T c.

    batch   (images,) or (images, logits of learned labels);  p = fixed label probabilities, or softmax(logits)
    L       -(1/n) sum_i sum_k p_ik log softmax(f(theta, x_i))_k, the cross-entropy (rows of p need not sum to 1)
    g       dL / dtheta;   c a cotangent of g, shaped as theta
    D       <c, g> = d/de L(theta + e c, batch) at e = 0;   products: dD / dtheta and dD / dbatch, by symmetry of second derivatives

fast       D by one lifted forward pass (`realdata.lift`), then one first-order reverse pass: 3 forward and 5 backward passes of each
           contraction where a plain step has 1 and 2, so 8/3 of its contractions; needs an entry for every layer of the network
autograd   any network: double backward of L
Both are exact. Compiled, everything between two contractions is fused; the first call of each batch size then takes tens of
seconds, minutes for a ResNet.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from realdata.compiled import each, fused, replayed
from realdata.lift import Tensors, lifted, uncovered
from theory.distill.leaves import add, scale

PRODUCTS = ("auto", "fast", "autograd")


def forward(module: nn.Module, theta: Tensors, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes) of the network with parameters theta."""
    names = (name for name, _ in module.named_parameters())
    return torch.func.functional_call(module, dict(zip(names, theta, strict=True)), (images,))


def leaf(x: Tensors) -> Tensors:
    """The same numbers, as independent variables of a new graph."""
    return tuple(a.detach().requires_grad_() for a in x)


@dataclass(frozen=True, eq=False)
class StepDerivatives:
    """Derivatives of one step's loss; p is None where the batch carries logits.

    gradient   (theta, batch, p) -> g
    products   (theta, batch, p, c) -> ((dg/dtheta)^T c, (dg/dbatch)^T c)
    mixed      (theta, batch, p, c) -> (dg/dbatch)^T c
    """

    gradient: Callable[..., Tensors]
    products: Callable[..., tuple[Tensors, Tensors]]
    mixed: Callable[..., Tensors]


def _reverse(f: Callable[..., torch.Tensor], places: tuple[int, ...], *, compiled: bool) -> Callable[..., Any]:
    """The gradient of a scalar function in those of its arguments (tuples of tensors), by one reverse pass."""
    if compiled:
        derivative = torch.func.grad(f, places)
        return fused(lambda *args: derivative(*args))

    def run(*args: Any) -> tuple[Tensors, ...]:
        leaves = [leaf(a) if i in places else each(torch.detach, a) for i, a in enumerate(args)]
        variables = [leaves[i] for i in places]
        flat = iter(torch.autograd.grad(f(*leaves), [v for group in variables for v in group]))
        return tuple(tuple(next(flat) for _ in group) for group in variables)

    return run


def _double_backward(loss: Callable[..., torch.Tensor], *, with_theta: bool) -> Callable[..., Any]:
    """d <c, g> / d (theta, batch) or / d (batch,), reverse over reverse."""

    def run(theta: Tensors, batch: Tensors, p: torch.Tensor | None, c: Tensors) -> tuple[Tensors, ...]:
        theta, batch = leaf(theta), leaf(batch)
        g = torch.autograd.grad(loss(theta, batch, p), theta, create_graph=True)
        inputs = theta + batch if with_theta else batch
        found = torch.autograd.grad(g, inputs, c, allow_unused=True, materialize_grads=True)
        split = len(inputs) - len(batch)
        return (found[:split], found[split:]) if with_theta else (found,)

    return run


def _probabilities(batch: Tensors, p: torch.Tensor | None) -> torch.Tensor:
    return torch.softmax(batch[1], dim=1) if p is None else p


def derivatives(module: nn.Module, product: str = "auto", *, compiled: bool = False, captured: bool = False) -> StepDerivatives:
    """The derivatives of a step of this network; `auto` is fast where every layer is covered, else autograd.

    compiled   fuse what lies between contractions, where the product is the fast one
    captured   replay as CUDA graphs
    """
    if product not in PRODUCTS:
        raise ValueError(f"unknown product {product!r}: choose one of {', '.join(PRODUCTS)}")

    def loss(theta: Tensors, batch: Tensors, p: torch.Tensor | None) -> torch.Tensor:
        return F.cross_entropy(forward(module, theta, batch[0]), _probabilities(batch, p))

    if product == "autograd" or (product == "auto" and uncovered(module) is not None):
        gradient = _reverse(loss, (0,), compiled=False)
        both, mixed = _double_backward(loss, with_theta=True), _double_backward(loss, with_theta=False)
    else:
        network = lifted(module)

        def along(theta: Tensors, batch: Tensors, p: torch.Tensor | None, c: Tensors) -> torch.Tensor:
            logits, dot = network(theta, c, batch[0])
            p = _probabilities(batch, p)
            return ((p.sum(1, keepdim=True) * torch.softmax(logits, dim=1) - p) * dot).sum() / len(logits)

        gradient = _reverse(loss, (0,), compiled=compiled)
        both, mixed = _reverse(along, (0, 1), compiled=compiled), _reverse(along, (1,), compiled=compiled)
    if captured:
        gradient, both, mixed = replayed(gradient), replayed(both), replayed(mixed)
    return StepDerivatives(lambda *args: gradient(*args)[0], both, lambda *args: mixed(*args)[0])


def in_chunks(step: StepDerivatives, pixels: int) -> StepDerivatives:
    """The same derivatives from at most so many pixels at a time, for networks that see each image by itself (`realdata.lift.by_image`).

    L = sum_k (n_k / n) L_k over chunks of n_k images, so g, Hc and the parts of Mc add up likewise. On a processor what a chunk makes then
    stays in its cache from one layer to the next.
    """

    def chunks(batch: Tensors, p: torch.Tensor | None) -> Iterator[tuple[float, Tensors, torch.Tensor | None]]:
        n = len(batch[0])
        rows = -(-n // max(1, -(-n * batch[0][0, 0].numel() // pixels)))
        parts = zip(*(x.split(rows) for x in batch), strict=True)
        labels = [None] * -(-n // rows) if p is None else p.split(rows)
        return ((len(part[0]) / n, part, some) for part, some in zip(parts, labels, strict=True))

    def gradient(theta: Tensors, batch: Tensors, p: torch.Tensor | None) -> Tensors:
        return _weighted((share, step.gradient(theta, part, some)) for share, part, some in chunks(batch, p))

    def products(theta: Tensors, batch: Tensors, p: torch.Tensor | None, c: Tensors) -> tuple[Tensors, Tensors]:
        found = [(share, *step.products(theta, part, some, c)) for share, part, some in chunks(batch, p)]
        return _weighted((share, hc) for share, hc, _ in found), _joined((share, mc) for share, _, mc in found)

    def mixed(theta: Tensors, batch: Tensors, p: torch.Tensor | None, c: Tensors) -> Tensors:
        return _joined((share, step.mixed(theta, part, some, c)) for share, part, some in chunks(batch, p))

    return StepDerivatives(gradient, products, mixed)


def _scaled(parts: Iterable[tuple[float, Tensors]]) -> list[Tensors]:
    """share_k x_k for all k."""
    return [x if share == 1.0 else scale(share, x) for share, x in parts]


def _weighted(parts: Iterable[tuple[float, Tensors]]) -> Tensors:
    """sum_k share_k x_k."""
    return reduce(add, _scaled(parts))


def _joined(parts: Iterable[tuple[float, Tensors]]) -> Tensors:
    """share_k x_k for all k, one after the other."""
    return tuple(torch.cat(group) for group in zip(*_scaled(parts), strict=True))


def summed_loss(module: nn.Module, *, compiled: bool = False, captured: bool = False) -> Callable[..., Tensors]:
    """(theta, images, hard labels) -> (the sum of their losses, its gradient in theta); compiled where every layer is covered."""

    def loss(theta: Tensors, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward(module, theta, images), labels, reduction="sum")

    def run(theta: Tensors, images: torch.Tensor, labels: torch.Tensor) -> Tensors:
        theta = leaf(theta)
        value = loss(theta, images, labels)
        return value.detach(), *torch.autograd.grad(value, theta)

    if not compiled or uncovered(module) is not None:
        return run
    both = torch.func.grad_and_value(loss)

    def flat(theta: Tensors, images: torch.Tensor, labels: torch.Tensor) -> Tensors:
        gradient, value = both(theta, images, labels)
        return value, *gradient

    return replayed(fused(flat)) if captured else fused(flat)
