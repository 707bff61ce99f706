"""What a set of images is worth: fresh networks trained on it with the distillation's own optimiser and warps, then judged on real ones.

    1. each network is trained once, its parameters kept at every length of a short grid
    2. the length with the best mean held-out accuracy is chosen, for each kind of set by itself
    3. the test split is read, once, and the chosen parameters are judged on it

With accuracies a_{jk} of draw j (which images) and network k: mean = mean a_{jk}; std over networks = sqrt(mean_j var_k a_{jk});
std over draws = std_j mean_k a_{jk} (both with n - 1), the latter only where a set is drawn more than once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from realdata.bridge import ModuleProblem, Tensors, forward
from realdata.checks import at_least
from sims.lab.files import RunError
from sims.lab.progress import Bar
from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import norm
from theory.distill.problem import Diverged

Labelled = tuple[torch.Tensor, torch.Tensor]

JUDGE_CHUNK = 128  # images judged at a time


def train(problem: ModuleProblem, optimiser: InnerOptimiser, s: Tensors, rng: np.random.Generator, lengths: Sequence[int]) -> list[Tensors]:
    """One fresh network trained on S: its parameters after each of the increasing `lengths`, in steps."""
    theta = problem.init(rng)
    slots, kept = optimiser.init(theta), []
    for t in range(max(lengths)):
        theta, slots = optimiser.step(theta, slots, t, problem.gradient(theta, s, problem.draw(rng)))
        if t + 1 in lengths:
            kept.append(theta)
    if not norm(theta) < float("inf"):
        raise Diverged(f"training on the set diverged within {max(lengths)} steps: lower the inner learning rate")
    return kept


def accuracy(problem: ModuleProblem, theta: Tensors, real: Labelled) -> float:
    """Share of real images whose largest logit is that of their class."""
    hits = 0
    with torch.no_grad():
        for images, labels in zip(real[0].split(JUDGE_CHUNK), real[1].split(JUDGE_CHUNK), strict=True):
            hits += int((forward(problem.module, theta, images).argmax(1) == labels).sum())
    return hits / len(real[1])


@dataclass(frozen=True)
class Protocol:
    """The fixed rules of an evaluation."""

    lengths: tuple[int, ...]
    """Training lengths to choose from, in optimiser steps."""
    networks: int = 5
    """Fresh networks a set."""
    draws: int = 5
    """Draws of each baseline's images."""
    held_out_images: int = 2000
    """Held-out training images that choose the length."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise RunError(f"training lengths must be positive and increasing: lengths={self.lengths}")
        at_least(1, networks=self.networks, draws=self.draws, held_out_images=self.held_out_images)
        at_least(0, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Trained:
    """One kind of set after steps 1 and 2: the chosen length, and theta[draw][network] there."""

    name: str
    problem: ModuleProblem
    length: int
    held_out: dict[int, float]
    theta: list[list[Tensors]]


def train_arm(
    name: str, problem: ModuleProblem, optimiser: InnerOptimiser, sets: Sequence[Tensors], held_out: Labelled, protocol: Protocol, bar: Bar
) -> Trained:
    """Trains `protocol.networks` fresh networks on each of `sets` and chooses the length on the held-out images.

    Network k of draw j starts from the stream (seed, j, k) in every arm: arms are compared at equal initialisations.
    """
    runs: list[list[list[Tensors]]] = []
    scores = np.zeros(len(protocol.lengths))
    for j, s in enumerate(sets):
        runs.append([])
        for k in range(protocol.networks):
            kept = train(problem, optimiser, s, np.random.default_rng((protocol.seed, j, k)), protocol.lengths)
            scores += [accuracy(problem, theta, held_out) for theta in kept]
            runs[-1].append(kept)
            bar.advance(note=name)
    scores /= len(sets) * protocol.networks
    best = int(np.argmax(scores))
    held = dict(zip(protocol.lengths, map(float, scores), strict=True))
    return Trained(name, problem, protocol.lengths[best], held, [[kept[best] for kept in row] for row in runs])


@dataclass(frozen=True)
class Result:
    """One kind of set after step 3."""

    name: str
    length: int
    held_out: dict[int, float]
    accuracies: list[list[float]]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def std_networks(self) -> float | None:
        """Spread among networks trained on one set; None with a single network."""
        a = np.asarray(self.accuracies)
        return float(np.sqrt(np.mean(np.var(a, axis=1, ddof=1)))) if a.shape[1] > 1 else None

    @property
    def std_draws(self) -> float | None:
        """Spread among the means of the draws; None with a single draw."""
        return float(np.std(np.mean(self.accuracies, axis=1), ddof=1)) if len(self.accuracies) > 1 else None

    def record(self) -> dict[str, Any]:
        """Everything, JSON-ready; accuracies are shares."""
        return {
            "name": self.name,
            "length": self.length,
            "held_out": {str(length): value for length, value in self.held_out.items()},
            "mean": self.mean,
            "std_networks": self.std_networks,
            "std_draws": self.std_draws,
            "draws": len(self.accuracies),
            "networks": len(self.accuracies[0]),
            "accuracies": self.accuracies,
        }


def judge(arm: Trained, test: Labelled, bar: Bar) -> Result:
    """Step 3, after every choice has been made."""

    def judged(theta: Tensors) -> float:
        bar.advance(note=f"{arm.name} on the test split")
        return accuracy(arm.problem, theta, test)

    return Result(arm.name, arm.length, arm.held_out, [[judged(theta) for theta in row] for row in arm.theta])
