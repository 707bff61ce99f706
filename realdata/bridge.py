"""Any torch network as an inner problem of `theory.distill`, and its loss on real images as an objective.

    S       (images,) with fixed labels, or (images, logits) with learned ones;  images (classes * ipc, channels, height, width),
            class-major: the ipc images of class 0 first
    theta   the network's parameter tensors, in the order of `module.parameters()`
    xi      rows of S used in the step and the warp of that batch
    loss    cross-entropy of the network at the warped batch; learned labels enter as softmax(logits)
    g = d loss / d theta;   H c = (d g / d theta)^T c,   M c = (d g / d S)^T c

H c and M c are exact: `realdata.second_order` gives the products at the warped batch, then one pullback of the image part through the
warp leads to S (so warps need only a first derivative). The module is a template: its own parameter values are never read or changed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn

from realdata.augment import Augment, Warp
from realdata.compiled import compiler_here
from realdata.lift import Tensors, by_image
from realdata.ranks import ALONE, Ranks
from realdata.second_order import StepDerivatives, derivatives, in_chunks, leaf, summed_loss
from realdata.streaming import Rows, Streamed
from realdata.transfer import sent

PIXELS = 20 * 32 * 32  # that a processor works on at a time in a training step


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


def _pulled_back(batch: Tensors, s: Tensors, cotangents: Tensors) -> Tensors:
    """(d batch / d S)^T cotangents."""
    return torch.autograd.grad(batch, s, cotangents)


@dataclass(frozen=True, eq=False)
class ModuleProblem:
    """Training `module` on S, as an InnerProblem.

    labels           (classes * ipc,) int64, or (classes * ipc, classes) probabilities, fixed; None: S carries logits as its second leaf
    batch_per_class  images of each class in one step, drawn without replacement; None: all
    classes_per_step classes in one step, drawn likewise; None: all
    batch            images of one step whatever their class, drawn likewise; None: as batch_per_class says
    product          how second-order products are made: fast, autograd, or auto (fast where every layer is covered)
    compiled         compile the step and its product where a compiler is found, once for all steps; on a GPU replay them as CUDA graphs
    """

    module: nn.Module
    classes: int
    ipc: int
    labels: torch.Tensor | None
    augment: Augment
    batch_per_class: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    product: str = "auto"
    compiled: bool = False
    classes_per_step: int | None = None
    batch: int | None = None
    step: StepDerivatives = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_template(self.module)
        if self.ipc < 1:
            raise ValueError(f"a distilled set needs at least one image per class: ipc={self.ipc}")
        if self.batch_per_class is not None and not 1 <= self.batch_per_class <= self.ipc:
            raise ValueError(f"the batch per class must lie in [1, ipc={self.ipc}]: batch_per_class={self.batch_per_class}")
        if self.classes_per_step is not None and not 1 <= self.classes_per_step <= self.classes:
            raise ValueError(f"the classes per step must lie in [1, {self.classes}]: classes_per_step={self.classes_per_step}")
        if self.batch is not None and (self.batch_per_class is not None or not 1 <= self.batch <= self.classes * self.ipc):
            raise ValueError(f"the batch must lie in [1, {self.classes * self.ipc}], and stand alone: batch={self.batch}")
        compiled = self.compiled and compiler_here(self.device)
        captured = compiled and self.device.type == "cuda"
        step = derivatives(self.module, self.product, compiled=compiled, captured=captured)
        # A GPU is the busier the more images it has at a time.
        object.__setattr__(self, "step", in_chunks(step, PIXELS) if self.device.type == "cpu" and by_image(self.module) else step)

    def init(self, rng: np.random.Generator) -> Tensors:
        return fresh_parameters(self.module, rng, self.dtype, self.device)

    def draw(self, rng: np.random.Generator) -> Batch:
        k = self.batch_per_class
        if self.batch is not None:
            return Batch(rng.permutation(self.classes * self.ipc)[: self.batch], self.augment.draw(rng, self.batch))
        n = self.classes if self.classes_per_step is None else self.classes_per_step
        if (k is None or k == self.ipc) and n == self.classes:
            return Batch(None, self.augment.draw(rng, self.classes * self.ipc))
        classes = range(self.classes) if n == self.classes else np.sort(rng.permutation(self.classes)[:n])
        rows = np.concatenate([c * self.ipc + rng.permutation(self.ipc)[:k] for c in classes])
        return Batch(rows, self.augment.draw(rng, len(rows)))

    def _batch(self, s: Tensors, xi: Batch) -> Tensors:
        """(warped images,) or (warped images, logits) of one step, differentiable in S."""
        chosen = s if xi.rows is None else tuple(leaf[sent(xi.rows, leaf.device)] for leaf in s)
        return chosen if xi.warp is None else (xi.warp(chosen[0]), *chosen[1:])

    def _probabilities(self, xi: Batch) -> torch.Tensor | None:
        """The fixed label probabilities of one step, (n, classes)."""
        if self.labels is None:
            return None
        chosen = self.labels if xi.rows is None else self.labels[sent(xi.rows, self.labels.device)]
        return (
            chosen if chosen.is_floating_point() else (chosen[:, None] == torch.arange(self.classes, device=chosen.device)).to(self.dtype)
        )

    def gradient(self, theta: Tensors, s: Tensors, xi: Batch) -> Tensors:
        with torch.no_grad():
            batch = self._batch(s, xi)
        return self.step.gradient(theta, batch, self._probabilities(xi))

    def second_order(self, theta: Tensors, s: Tensors, xi: Batch, c: Tensors) -> tuple[Tensors, Tensors]:
        s = leaf(s)
        batch = self._batch(s, xi)
        with_theta, with_batch = self.step.products(theta, batch, self._probabilities(xi), c)
        return with_theta, _pulled_back(batch, s, with_batch)

    def mixed(self, theta: Tensors, s: Tensors, xi: Batch, c: Tensors) -> Tensors:
        s = leaf(s)
        batch = self._batch(s, xi)
        return _pulled_back(batch, s, self.step.mixed(theta, batch, self._probabilities(xi), c))


@dataclass(frozen=True, eq=False)
class RealImages:
    """Mean cross-entropy on a drawn real batch, as a RealLoss; worked off `chunk` images at a time, so memory does not grow with the batch.

    images (n, channels, height, width), indexed by rows, and labels (n,) int64 on the device; `batch` rows are drawn without replacement.
    On a CPU small chunks (32) stay in cache and are also the fastest. Batch norm takes the statistics of the chunk it sees. Chunks go round
    the `ranks` that share the run; their gradients are added in the order of the chunks. `compiled`: as for a ModuleProblem, for chunks
    of full size (each other size would be compiled by itself).
    """

    module: nn.Module
    images: Rows
    labels: torch.Tensor
    batch: int
    augment: Augment
    chunk: int = 32
    ranks: Ranks = ALONE
    compiled: bool = False
    whole: Callable[..., Tensors] = field(init=False, repr=False)
    rest: Callable[..., Tensors] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"the chunk of the real batch must have at least one image: chunk={self.chunk}")
        if not 1 <= self.batch <= len(self.images):
            raise ValueError(f"the real batch must lie in [1, {len(self.images)}]: batch={self.batch}")
        device = self.labels.device
        compiled = self.compiled and compiler_here(device)
        object.__setattr__(self, "whole", summed_loss(self.module, compiled=compiled, captured=compiled and device.type == "cuda"))
        object.__setattr__(self, "rest", summed_loss(self.module))

    def draw(self, rng: np.random.Generator) -> Batch:
        rows = rng.choice(len(self.images), size=self.batch, replace=False, shuffle=False)
        return Batch(rows, self.augment.draw(rng, self.batch))

    def loss_and_gradient(self, theta: Tensors, xi: Batch) -> tuple[float, Tensors]:
        rows = np.arange(len(self.images)) if xi.rows is None else xi.rows
        theta = self.ranks.agreed(theta)
        total: Tensors | None = None
        works = [partial(self._chunk, theta, xi, rows, start) for start in range(0, len(rows), self.chunk)]
        for loss, *grad in self.ranks.chunks(works, (theta[0].new_zeros(()), *theta)):
            part = (loss.double(), *grad)
            total = part if total is None else tuple(a + b for a, b in zip(total, part, strict=True))
        assert total is not None
        value, *gradient = (x / len(rows) for x in total)
        return float(value), tuple(gradient)

    def _chunk(self, theta: Tensors, xi: Batch, rows: np.ndarray, start: int) -> Tensors:
        """(summed loss, its gradient) of the images from `start` on."""
        part = rows[start : start + self.chunk]
        here = sent(part, self.labels.device)
        images = self.images[part if isinstance(self.images, Streamed) else here]
        images = images if xi.warp is None else xi.warp.part(start, start + self.chunk)(images)
        return (self.whole if len(part) == min(self.chunk, self.batch) else self.rest)(theta, images, self.labels[here])
