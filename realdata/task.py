"""From a configuration and image files to the objects of `theory.distill`: problem, objective, outer loop, first images.

    training split = fitted part + held-out part (stratified);  transform, real batches and first images come from the fitted part only

Random streams: every use has its own name, stream(seed, name) = SeedSequence((seed, CRC-32 of the name)).
"""

import zlib
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from realdata import data
from realdata.augment import Augment
from realdata.baselines import random_rows
from realdata.bridge import ModuleProblem, RealImages, Tensors
from realdata.compiled import compiled_optimiser
from realdata.config import DistillConfig
from realdata.gradient_matching import ClassGradients
from realdata.networks import convnet
from realdata.preprocess import Transform
from realdata.ranks import ALONE, Ranks
from realdata.streaming import Labelled, Rows, on_device
from sims.lab.files import RunError
from theory.distill.distiller import Distiller
from theory.distill.inner_optim import Adam
from theory.distill.matching import PathObjective, PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.patches import Aligned, PatchTurns
from theory.distill.problem import Objective

WITHOUT_FLIP = {"flip-rotate": "rotate", "dsa": "dsa-no-flip"}
LABEL_CONFIDENCE = 0.9  # probability of the hard label where learned labels start


def stream(seed: int, name: str, *key: int) -> np.random.Generator:
    """The generator of one named use of randomness."""
    return np.random.default_rng(np.random.SeedSequence((seed, zlib.crc32(name.encode())), spawn_key=key))


class Choices(Protocol):
    """What is said of data and warps, in every configuration."""

    @property
    def dataset(self) -> str: ...

    @property
    def held_out(self) -> float: ...

    @property
    def augment(self) -> str: ...

    @property
    def family(self) -> str:
        """The warps that augment = auto stands for, where mirroring keeps the class."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """The training split in its two parts, and the data set's description."""

    fitted: data.ImageSet
    held_out: data.ImageSet
    source: data.Source


def training_split(config: Choices, root: str) -> Split:
    """The training images below `root`, split as the configuration says (always by the same seed, whatever the run's own)."""
    images = data.load(config.dataset, root, "train")
    fitted, held_out = data.held_out_split(images.labels, config.held_out, seed=0)
    return Split(images.subset(fitted), images.subset(held_out), data.source(config.dataset))


def hard_labels(classes: int, ipc: int) -> torch.Tensor:
    """Class-major labels of a distilled set."""
    return torch.arange(classes).repeat_interleave(ipc)


def augmentation(config: Choices) -> Augment:
    """The warps of the run; auto asks the data set whether mirroring keeps the class."""
    automatic = config.family if data.source(config.dataset).mirror else WITHOUT_FLIP[config.family]
    return Augment(automatic if config.augment == "auto" else config.augment)


def training_problem(config: DistillConfig, labels: torch.Tensor | None, device: torch.device, compiled: bool = False) -> ModuleProblem:
    """Training the configured network on a set of `ipc` images a class, with fixed labels or (None) logits in the set."""
    source = data.source(config.dataset)
    return ModuleProblem(
        module=convnet(config.network, source.shape, len(source.classes)),
        classes=len(source.classes),
        ipc=config.ipc,
        labels=None if labels is None else labels.to(device),
        augment=augmentation(config),
        batch_per_class=config.batch_per_class,
        classes_per_step=config.classes_per_step,
        batch=config.trajectory.batch if config.trajectories else None,
        device=device,
        compiled=compiled,
    )


def first_set(config: DistillConfig, images: Rows, labels: np.ndarray, device: torch.device) -> Tensors:
    """The distilled set before the first step, from transformed training images: (images,) or (images, logits)."""
    rng, classes = stream(config.seed, "first set"), len(data.source(config.dataset).classes)
    if config.init == "real":
        s = images[random_rows(labels, config.ipc, rng)]
    else:
        noise = rng.standard_normal((classes * config.ipc, *images.shape[1:]))
        first = config.init_norm * noise / np.linalg.norm(noise.reshape(len(noise), -1), axis=1)[:, None, None, None]
        s = torch.from_numpy(first.astype(np.float32)).to(device)
    if not config.learn_labels:
        return (s,)
    gap = np.log(LABEL_CONFIDENCE * (classes - 1) / (1.0 - LABEL_CONFIDENCE))
    return s, torch.nn.functional.one_hot(hard_labels(classes, config.ipc), classes).to(device, torch.float32) * gap


@dataclass(frozen=True, eq=False)
class Task:
    """What the outer loop works on, and the held-out images that judge it."""

    problem: ModuleProblem
    objective: Objective | PathObjective
    distiller: Distiller
    first: Tensors
    held_out: Labelled


def check(config: DistillConfig, split: Split) -> None:
    """Refuses what a configuration and its data set do not allow together."""
    if not config.trajectories and config.real_batch > len(split.fitted):
        raise RunError(f"the real batch must lie in [1, {len(split.fitted)}]: real_batch={config.real_batch}")
    smallest = int(np.bincount(split.fitted.labels, minlength=len(split.source.classes)).min())
    if config.init == "real" and config.ipc > smallest:
        raise RunError(f"the smallest class has {smallest} images to start from: ipc={config.ipc}, use --init noise or fewer")
    convnet(config.network, split.source.shape, len(split.source.classes))


def judges(config: DistillConfig, split: Split, transform: Transform, device: torch.device) -> Labelled:
    """The held-out images of the learning curve."""
    rows = stream(config.seed, "curve").permutation(len(split.held_out))[: config.curve_images]
    return on_device(transform, split.held_out.subset(np.sort(rows)), device)


def build(
    config: DistillConfig,
    split: Split,
    transform: Transform,
    device: torch.device,
    chunk: int,
    compiled: bool = False,
    ranks: Ranks = ALONE,
) -> Task:
    """The task of a configuration, for the methods that look at real images."""
    labels = None if config.learn_labels else hard_labels(len(split.source.classes), config.ipc)
    problem = training_problem(config, labels, device, compiled)
    images, classes = on_device(transform, split.fitted, device)
    real = RealImages(problem.module, images, classes, config.real_batch, problem.augment, chunk, ranks, compiled)
    matching = PerformanceMatching(real)
    objective: Objective | PathObjective = matching
    if config.alignment:
        objective = Aligned(matching, problem.classes, config.patches, config.alignment)
    if config.method == "dc":
        rows = tuple(np.flatnonzero(split.fitted.labels == label) for label in range(problem.classes))
        each = max(1, config.real_batch // problem.classes)
        objective = ClassGradients(real, rows, each, config.ipc, replace(problem.augment, shared=True))
    return Task(
        problem=problem,
        objective=objective,
        distiller=Distiller(
            config.windows(),
            compiled_optimiser(config.inner_optimiser(), device) if compiled else config.inner_optimiser(),
            PatchTurns(Adam(config.outer_lr), config.patches) if config.by_patch else Adam(config.outer_lr),
            NormClip(),
            starts=config.inner_runs,
            clock=config.clock(),
            hessian=config.hessian(),
            sphere=config.init_norm if config.project else None,
        ),
        first=first_set(config, images, split.fitted.labels, device),
        held_out=judges(config, split, transform, device),
    )
