"""The recipe of an expert: everything that determines its training but its number.

    key      first 12 hex digits of SHA-256 over the recipe and the digest of its training images
    folder   STORE/DATASET-plain-KEY or STORE/DATASET-flat-KEY: two recipes never share one

Expert k draws its start from stream (seed, "expert start", k) and epoch e of its batches and warps from (seed, "expert epoch", k, e), so
that neither the number of experts nor an interruption changes any of them. A further pass j within an epoch draws from
(seed, "expert epoch", k, e, j).
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from realdata.augment import AUGMENTATIONS
from realdata.checks import at_least, one_of, positive, share
from realdata.data import ImageSet, digest, source
from realdata.networks import ConvNetConfig, convnet
from realdata.preprocess import TRANSFORMS
from sims.lab.files import RunError
from theory.distill.flatness import Flat
from theory.distill.inner_optim import SGD, InnerOptimiser, Momentum


@dataclass(frozen=True)
class FlatConfig:
    """Training towards flat minima; with rho = 0 it is plain."""

    rho: float = 0.0
    """Radius of the perturbation, in units of the weights; 0 is plain training."""
    alpha: float = 0.0
    """Weight: of what GSAM takes off (surrogate), or of the perturbed gradient (penalty)."""
    ball: str = "euclidean"
    """euclidean (SAM), or adaptive: stretched by the size of each weight (ASAM)."""
    combination: str = "surrogate"
    """surrogate: g_p - alpha g_perp (GSAM; SAM at alpha = 0), or penalty: (1 - alpha) g + alpha g_p."""

    def __post_init__(self) -> None:
        self.direction()

    def direction(self) -> Flat | None:
        """The direction, None for the gradient itself."""
        flat = Flat(self.rho, self.alpha, self.ball, self.combination)
        return flat if self.rho > 0 else None


@dataclass(frozen=True)
class Recipe:
    """How experts are trained. Lengths are in epochs, sizes in images, learning rates per step."""

    dataset: str
    """Data set: a named one (cifar10, mnist, tiny-imagenet, imagenette-64, ..) or your own, e.g. folders:3x64x64:10."""
    seed: int = 0
    """Root of all randomness."""
    network: ConvNetConfig = field(default_factory=ConvNetConfig)
    transform: str = "zca"
    """Preprocessing fitted on the training part: zca or standardise."""
    augment: str = "auto"
    """Warps of a batch: none, flip, rotate, dsa, ..; auto is dsa, without flips where they change the class."""
    held_out: float = 0.1
    """Share of the training split that no expert sees."""
    epochs: int = 50
    """E: length of an expert; snapshots are 0 .. E."""
    batch: int = 256
    """Real images of a step."""
    lr: float = 0.01
    """Learning rate of gradient descent."""
    momentum: float = 0.0
    """Its momentum."""
    weight_decay: float = 0.0
    """Its weight decay."""
    flat: FlatConfig = field(default_factory=FlatConfig)
    pace: float = 1.0
    """Passes over the images that an epoch takes; other than 1 for flat experts that are to fit just as well as plain ones do at 1."""

    def __post_init__(self) -> None:
        source(self.dataset)
        one_of(TRANSFORMS, transform=self.transform)
        one_of(("auto", *AUGMENTATIONS), augment=self.augment)
        at_least(0, seed=self.seed)
        at_least(1, epochs=self.epochs, batch=self.batch)
        positive(lr=self.lr, pace=self.pace)
        share(held_out=self.held_out)
        if not (0.0 <= self.momentum < 1.0 and 0.0 <= self.weight_decay < float("inf")):
            raise RunError(f"need 0 <= momentum < 1 and weight_decay >= 0: momentum={self.momentum}, weight_decay={self.weight_decay}")

    @property
    def family(self) -> str:
        """The warps that `auto` stands for."""
        return "dsa"

    def optimiser(self) -> InnerOptimiser:
        """The optimiser; without momentum it keeps no velocity."""
        return Momentum(self.lr, self.momentum, self.weight_decay) if self.momentum else SGD(self.lr, self.weight_decay)

    def module(self) -> nn.Sequential:
        """The network, as a template."""
        known = source(self.dataset)
        return convnet(self.network, known.shape, len(known.classes))


def as_settings(recipe: Recipe, data: str) -> dict[str, Any]:
    """The recipe and the digest of its training images as a folder's config.toml holds them."""
    return {"data": data} | dataclasses.asdict(recipe)


def data_digest(images: ImageSet) -> str:
    """16 hex digits naming training images and their labels."""
    return digest(images.images, f"labels {hashlib.sha256(images.labels.tobytes()).hexdigest()}")[:16]


def key(recipe: Recipe, data: str) -> str:
    """The recipe's name."""
    content = json.dumps(as_settings(recipe, data), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def folder(store: Path, recipe: Recipe, data: str) -> Path:
    """The recipe's folder below `store`."""
    name = re.sub("[^A-Za-z0-9]+", "-", recipe.dataset)[:40]
    return store / f"{name}-{'flat' if recipe.flat.rho > 0 else 'plain'}-{key(recipe, data)}"
