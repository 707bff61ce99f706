"""From images and distilled sets to numbers: the task's gradient subspace, what a set captures of it, and what it teaches.

    labels      "centred": one-hot minus the classes' shares;  "residual": what least squares on (1, z) leaves of them, as in the theory
    G^, cut     theory.gradient_subspace, from N real training images in whitened coordinates z (realdata.subspace.coordinates)
    U           the k = ceil(r_eff) leading directions of (1/K) sum_i g_i g_i^T on a set's own images and centred labels, same neurons
    captured    sum_j lambda_j |U^T u_j|^2 / sum_j lambda_j over the r directions u_j above the task's cut
    angles      between U and the k leading u_j

A set of M images spans at most M directions, so it is compared with random real images at the same M, and with `best`, the share of the
first dim U directions themselves. Accuracy is that of fresh networks on held-out training images, trained as the set's configuration says.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from realdata.checks import at_least, one_of
from realdata.config import DistillConfig
from realdata.preprocess import TRANSFORMS
from realdata.protocol import accuracy, stored_floats, train
from realdata.subspace.coordinates import Whitening, fit_whitening
from realdata.task import stream, training_problem
from sims.lab.files import RunError
from sims.lab.laws import Interval, mean_interval, percentile_interval
from sims.lab.progress import Bar
from sims.lab.subspace import principal_angles
from theory.gradient_subspace import (
    Estimate,
    Neurons,
    block_rows,
    captured,
    draw_neurons,
    estimate,
    fresh_estimates,
    leading,
    set_moment,
)

LABELS = {"centred": "mean", "residual": "linear"}
Measured = tuple[float, Interval]


@dataclass(frozen=True)
class BridgeConfig:
    """What is measured and how finely."""

    images: int = 60_000
    """Training images at most; they are held in memory."""
    transform: str = "zca"
    """Preprocessing where no set brings its own: zca or standardise."""
    directions: int = 64
    """Whitened principal coordinates of the images, the theory's d; the estimate wants many more than d^2 images."""
    neurons: int = 1024
    """K: first-layer directions of fresh initialisations."""
    blocks: int = 40
    """Blocks of images whose scatter gives the noise; an even number."""
    draws: int = 200
    """Draws behind the noise edge, and again behind each interval."""
    ipc: tuple[int, ...] = (1, 10)
    """Images per class of the random real subsets, beside those of the sets."""
    subsets: int = 5
    """Random subsets of each size."""
    networks: int = 3
    """Fresh networks trained on each set; a random subset gets one."""
    held_out_images: int = 2000
    """Held-out training images that judge them."""
    seed: int = 0
    """Root of all randomness."""

    def __post_init__(self) -> None:
        one_of(TRANSFORMS, transform=self.transform)
        at_least(1, images=self.images, directions=self.directions, neurons=self.neurons, held_out_images=self.held_out_images)
        at_least(2, subsets=self.subsets, networks=self.networks)
        at_least(20, draws=self.draws)
        at_least(0, seed=self.seed)
        if self.blocks < 4 or self.blocks % 2:
            raise RunError(f"the number of blocks must be even and at least 4: blocks={self.blocks}")
        if any(ipc < 1 for ipc in self.ipc):
            raise RunError(f"the random subsets need at least one image per class: ipc={self.ipc}")


@dataclass(frozen=True, eq=False)
class TaskSubspace:
    """The task's gradient subspace for one kind of labels: the estimate, and others as fresh samples would give them."""

    found: Estimate
    fresh: tuple[Estimate, ...]

    def measured(self, statistic: Callable[[Estimate], float], limit: float) -> Measured | None:
        """The statistic, a number between 0 and `limit`, with its interval; None where no direction was found.

        The interval is as wide on both sides as the farther 95 % percentile of fresh samples. They lie to one side of the estimate where
        many directions are close to the cut, and there the estimate itself is off its truth by as much, to the other side.
        """
        ends, _ = percentile_interval(np.array([statistic(estimate) for estimate in self.fresh], dtype=float))
        if ends is None or not self.found.rank:
            return None
        value = float(statistic(self.found))
        half = max(value - ends[0], ends[1] - value)
        return value, (max(0.0, value - half), min(limit, value + half))

    @property
    def rank(self) -> Measured | None:
        """r."""
        return self.measured(lambda estimate: estimate.rank, len(self.found.values))

    @property
    def effective_rank(self) -> Measured | None:
        """r_eff."""
        return self.measured(lambda estimate: estimate.effective_rank, len(self.found.values))

    def captured(self, u: np.ndarray) -> Measured | None:
        """Share of the gradient energy inside span u."""
        return self.measured(lambda estimate: captured(u, estimate), 1.0)

    def best(self, k: int) -> float | None:
        """The largest share that k directions can hold."""
        return captured(self.found.basis[:, :k], self.found) if self.found.rank else None

    def angles(self, u: np.ndarray) -> tuple[float, ...]:
        """Principal angles in degrees between the directions found and span u, smallest first."""
        return tuple(np.degrees(principal_angles(self.found.subspace, u)).tolist()) if self.found.rank and u.shape[1] else ()


@dataclass(frozen=True, eq=False)
class Scene:
    """What all measurements share: whitened training images z (N, p), their labels, and the neurons."""

    z: np.ndarray
    labels: np.ndarray
    classes: int
    whitening: Whitening
    neurons: Neurons

    def centred(self, labels: np.ndarray) -> np.ndarray:
        """(n, C) label vectors: one-hot or probabilities, minus the shares of the classes among the training images."""
        one_hot = np.eye(self.classes)
        return (one_hot[labels] if labels.ndim == 1 else labels.astype(np.float64)) - one_hot[self.labels].mean(axis=0)


def make_scene(config: BridgeConfig, images: np.ndarray, labels: np.ndarray, classes: int) -> Scene:
    """Coordinates and neurons for transformed training images (n, channels, height, width)."""
    least = config.blocks * (config.directions + 2)
    if len(images) < least:
        raise RunError(
            f"{config.blocks} blocks and {config.directions} directions need {least} images, there are {len(images)}: lower them"
        )
    whitening = fit_whitening(images, config.directions)
    return Scene(
        whitening(images),
        labels,
        classes,
        whitening,
        draw_neurons(config.directions, classes, config.neurons, stream(config.seed, "neurons")),
    )


def task_subspaces(config: BridgeConfig, scene: Scene) -> dict[str, TaskSubspace]:
    """The task's subspace for each kind of labels."""
    order = stream(config.seed, "order").permutation(len(scene.z))
    z, y = scene.z[order], scene.centred(scene.labels)[order]
    found = {}
    for kind, removed in LABELS.items():
        rows = block_rows(scene.neurons, z, y, config.blocks, removed)
        estimated = estimate(rows, stream(config.seed, f"null {kind}"), config.draws)
        fresh = fresh_estimates(rows, estimated, stream(config.seed, f"fresh {kind}"), config.draws)
        found[kind] = TaskSubspace(estimated, tuple(fresh))
    return found


@dataclass(frozen=True, eq=False)
class Candidate:
    """A set of images to be measured, or several draws of one kind: transformed images each, with one tensor of labels for all; networks
    are trained as `config` says, at the learning rate `lr`.
    """

    name: str
    config: DistillConfig
    lr: float
    labels: torch.Tensor
    draws: tuple[np.ndarray, ...]
    distilled: bool

    @property
    def floats(self) -> int:
        """Stored numbers of one draw."""
        return stored_floats(self.draws[0].size, self.labels)


@dataclass(frozen=True, eq=False)
class Row:
    """What was found of a candidate. Everything by kind of labels; the angles, in degrees, are those of its first draw."""

    name: str
    distilled: bool
    images: int
    floats: int
    captured: dict[str, Measured | None]
    best: dict[str, float | None]
    angles: dict[str, tuple[float, ...]]
    accuracy: Measured | None


def measure(
    config: BridgeConfig,
    scene: Scene,
    task: dict[str, TaskSubspace],
    candidate: Candidate,
    held_out: tuple[torch.Tensor, torch.Tensor] | None,
    bar: Bar,
) -> Row:
    """Intervals are over fresh samples of the task for a set by itself, over draws for several. Networks start alike for all candidates;
    without held-out images none are trained.
    """
    held, best, angles = {}, {}, {}
    for kind, subspace in task.items():
        u = [set_subspace(scene, images, candidate.labels.numpy(), max(1, subspace.found.subspace.shape[1])) for images in candidate.draws]
        shares = [subspace.captured(basis) for basis in u]
        known = [share for share in shares if share is not None]
        if len(known) > 1:
            held[kind] = mean_interval(np.array([value for value, _ in known]))
        else:
            held[kind] = known[0] if known else None
        best[kind] = subspace.best(u[0].shape[1])
        angles[kind] = subspace.angles(u[0])
    scores = []
    for k in range(config.networks if len(candidate.draws) == 1 else len(candidate.draws)):
        images = candidate.draws[k % len(candidate.draws)]
        if held_out is not None:
            scores.append(held_out_accuracy(candidate, images, held_out, stream(config.seed, "network", k)))
        bar.advance(note=candidate.name)
    learned = mean_interval(np.array(scores)) if scores else None
    return Row(candidate.name, candidate.distilled, len(candidate.labels), candidate.floats, held, best, angles, learned)


def set_subspace(scene: Scene, images: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """U (p, k) of a set of transformed images with class numbers or probabilities; fewer columns where the set has fewer directions."""
    return leading(set_moment(scene.neurons, scene.whitening(images), scene.centred(labels)), k)


def held_out_accuracy(
    candidate: Candidate, images: np.ndarray, held_out: tuple[torch.Tensor, torch.Tensor], rng: np.random.Generator
) -> float:
    """Of one fresh network trained on the images."""
    device = held_out[0].device
    problem, (optimiser, steps) = training_problem(candidate.config, candidate.labels, device), candidate.config.judging(candidate.lr)
    (theta,) = train(problem, optimiser, (torch.from_numpy(images).to(device),), rng, (steps,))
    return accuracy(problem, theta, held_out)
