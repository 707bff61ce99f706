"""Any torch network as an inner problem of `theory.distill`, and its loss on real images as an objective: where autograd is called.

    S       (images,) with fixed labels, or (images, logits) with learned ones;  images (classes * ipc, channels, height, width),
            class-major: the ipc images of class 0 first
    theta   the network's parameter tensors, in the order of `module.parameters()`
    xi      rows of S used in the step and the warp of that batch
    loss    cross-entropy of the network at the warped batch; learned labels enter as softmax(logits)
    g = d loss / d theta;   H c = (d g / d theta)^T c,   M c = (d g / d S)^T c

H c and M c are exact: reverse over reverse, d <c, g> / d (theta, x) at the warped batch x, then one pullback of the x part through the
warp to S (so warps need only a first derivative). The module is a template: its own parameter values are never read or changed.
"""

import copy
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from realdata.augment import Augment, Warp

Tensors: TypeAlias = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """The noise of one step: rows of the set (None: all of it) and the warp of those images (None: as they are)."""

    rows: np.ndarray | None
    warp: Warp | None


def _check_template(module: nn.Module) -> None:
    for name, part in module.named_modules():
        kind = f"{type(part).__name__} {name!r}"
        if any(True for _ in part.buffers(recurse=False)):
            raise ValueError(f"{kind} keeps running statistics, which no reverse sweep replays: build it with track_running_stats=False")
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise ValueError(f"{kind} draws its own randomness, which no reverse sweep replays: leave it out")
        if any(True for _ in part.parameters(recurse=False)) and not hasattr(part, "reset_parameters"):
            raise ValueError(f"{kind} has parameters and no reset_parameters(), so it cannot be drawn anew: give it one")


def fresh_parameters(module: nn.Module, rng: np.random.Generator, dtype: torch.dtype, device: torch.device) -> Tensors:
    """The module's own initialisation, drawn on the host from `rng` (every device sees the same numbers), then moved."""
    drawn = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        for part in drawn.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return tuple(p.detach().to(device, dtype) for p in drawn.parameters())


def forward(module: nn.Module, theta: Tensors, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes) of the network with parameters theta."""
    names = (name for name, _ in module.named_parameters())
    return torch.func.functional_call(module, dict(zip(names, theta, strict=True)), (images,))


def _leaf(x: Tensors) -> Tensors:
    """The same numbers, as independent variables of a new graph."""
    return tuple(a.detach().requires_grad_() for a in x)


@dataclass(frozen=True, eq=False)
class ModuleProblem:
    """Training `module` on S, as an InnerProblem.

    labels           (classes * ipc,) int64, or (classes * ipc, classes) probabilities, fixed; None: S carries logits as its second leaf
    batch_per_class  images of each class in one step, drawn without replacement; None: all
    """

    module: nn.Module
    classes: int
    ipc: int
    labels: torch.Tensor | None
    augment: Augment
    batch_per_class: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        _check_template(self.module)
        if self.ipc < 1:
            raise ValueError(f"a distilled set needs at least one image per class: ipc={self.ipc}")
        if self.batch_per_class is not None and not 1 <= self.batch_per_class <= self.ipc:
            raise ValueError(f"the batch per class must lie in [1, ipc={self.ipc}]: batch_per_class={self.batch_per_class}")

    def init(self, rng: np.random.Generator) -> Tensors:
        return fresh_parameters(self.module, rng, self.dtype, self.device)

    def draw(self, rng: np.random.Generator) -> Batch:
        k = self.batch_per_class
        if k is None or k == self.ipc:
            return Batch(None, self.augment.draw(rng, self.classes * self.ipc))
        rows = np.concatenate([c * self.ipc + rng.permutation(self.ipc)[:k] for c in range(self.classes)])
        return Batch(rows, self.augment.draw(rng, len(rows)))

    def _batch(self, s: Tensors, xi: Batch) -> Tensors:
        """(warped images,) or (warped images, logits) of one step, differentiable in S."""
        chosen = s if xi.rows is None else tuple(leaf[torch.from_numpy(xi.rows).to(leaf.device)] for leaf in s)
        return chosen if xi.warp is None else (xi.warp(chosen[0]), *chosen[1:])

    def _loss(self, theta: Tensors, batch: Tensors, xi: Batch) -> torch.Tensor:
        if self.labels is None:
            target = torch.softmax(batch[1], dim=1)
        else:
            target = self.labels if xi.rows is None else self.labels[torch.from_numpy(xi.rows).to(self.labels.device)]
        return F.cross_entropy(forward(self.module, theta, batch[0]), target)

    def gradient(self, theta: Tensors, s: Tensors, xi: Batch) -> Tensors:
        theta = _leaf(theta)
        return torch.autograd.grad(self._loss(theta, self._batch(s, xi), xi), theta)

    def second_order(self, theta: Tensors, s: Tensors, xi: Batch, c: Tensors) -> tuple[Tensors, Tensors]:
        return self._products(_leaf(theta), s, xi, c, with_theta=True)

    def mixed(self, theta: Tensors, s: Tensors, xi: Batch, c: Tensors) -> Tensors:
        return self._products(_leaf(theta), s, xi, c, with_theta=False)[1]

    def _products(self, theta: Tensors, s: Tensors, xi: Batch, c: Tensors, *, with_theta: bool) -> tuple[Tensors, Tensors]:
        s = _leaf(s)
        warped = self._batch(s, xi)
        batch = _leaf(warped)
        g = torch.autograd.grad(self._loss(theta, batch, xi), theta, create_graph=True)
        inputs = theta + batch if with_theta else batch
        products = torch.autograd.grad(g, inputs, c, allow_unused=True, materialize_grads=True)
        n = len(inputs) - len(batch)
        return products[:n], torch.autograd.grad(warped, s, products[n:], materialize_grads=True, allow_unused=True)


@dataclass(frozen=True, eq=False)
class RealImages:
    """Mean cross-entropy on a drawn real batch, as a RealLoss; worked off `chunk` images at a time, so memory does not grow with the batch.

    images (n, channels, height, width) and labels (n,) int64 lie on the device; `batch` rows are drawn without replacement.
    On a CPU small chunks (64) stay in cache and are also the fastest.
    """

    module: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    batch: int
    augment: Augment
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"the chunk of the real batch must have at least one image: chunk={self.chunk}")
        if not 1 <= self.batch <= len(self.images):
            raise ValueError(f"the real batch must lie in [1, {len(self.images)}]: batch={self.batch}")

    def draw(self, rng: np.random.Generator) -> Batch:
        rows = rng.choice(len(self.images), size=self.batch, replace=False, shuffle=False)
        return Batch(rows, self.augment.draw(rng, self.batch))

    def loss_and_gradient(self, theta: Tensors, xi: Batch) -> tuple[float, Tensors]:
        rows = torch.arange(len(self.images)) if xi.rows is None else torch.from_numpy(xi.rows)
        theta = _leaf(theta)
        value, total = torch.zeros((), dtype=torch.float64, device=self.images.device), None
        for start in range(0, len(rows), self.chunk):
            part = rows[start : start + self.chunk].to(self.images.device)
            images = self.images[part] if xi.warp is None else xi.warp.part(start, start + self.chunk)(self.images[part])
            loss = F.cross_entropy(forward(self.module, theta, images), self.labels[part], reduction="sum") / len(rows)
            grad = torch.autograd.grad(loss, theta)
            total = grad if total is None else tuple(a + b for a, b in zip(total, grad, strict=True))
            value += loss.detach()
        assert total is not None
        return float(value), total
