"""What a set of images is worth: fresh networks trained on it with the distillation's own optimiser and warps, then judged on real ones.

    1. each network is trained once, its parameters kept at every length of a short grid
    2. the length with the best mean held-out accuracy is chosen, for each kind of set by itself
    3. the test split is read, once, and the chosen parameters are judged on it

With accuracies a_{jk} of draw j (which images) and network k: mean = mean a_{jk}; std over networks = sqrt(mean_j var_k a_{jk});
std over draws = std_j mean_k a_{jk} (both with n - 1), the latter only where a set is drawn more than once.

    x_i         mean_k a_{ik} where a set is drawn n > 1 times, else the a_{1i} of its n networks
    interval    mean +- t_{0.975, n-1} s / sqrt(n), s = std_i x_i: over draws, or for the one set there is over networks
    difference  mean_x - mean_y +- t_{0.975, f} sqrt(v_x + v_y), v = s^2 / n, f = (v_x + v_y)^2 / (v_x^2 / (n_x - 1) + v_y^2 / (n_y - 1)):
                Welch 1947, for independent samples. Networks of one number start alike in all arms; what that gains is left out
"""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import t as student_t

from realdata.bridge import ModuleProblem, RealImages, Tensors
from realdata.checkpoint import DAMAGE, read_parts, write_parts
from realdata.checks import at_least
from realdata.second_order import forward
from realdata.streaming import Labelled
from sims.lab.files import RunError, make_folder
from sims.lab.laws import COVERAGE, Interval, mean_interval
from sims.lab.progress import Bar
from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import norm
from theory.distill.problem import Diverged

JUDGE_CHUNK = 128  # images judged at a time


def train(
    problem: ModuleProblem,
    optimiser: InnerOptimiser,
    s: Tensors,
    rng: np.random.Generator,
    lengths: Sequence[int],
    drop: int | None = None,
) -> list[Tensors]:
    """One fresh network trained on S: its parameters after each of the increasing `lengths`, in steps.

    After `drop` steps the step size is a tenth, and the optimiser's slots begin anew.
    """
    theta, lr = problem.init(rng), optimiser.lr
    slots, kept = optimiser.init(theta), []
    for t in range(max(lengths)):
        if t == drop:
            optimiser = replace(cast(Any, optimiser), lr=0.1 * optimiser.lr)
            slots = optimiser.init(theta)
        theta, slots = optimiser.step(theta, slots, t, problem.gradient(theta, s, problem.draw(rng)))
        if t + 1 in lengths:
            kept.append(theta)
    if not norm(theta) < float("inf"):
        raise Diverged(f"training on the set diverged within {max(lengths)} steps at learning rate {lr:.6g}: take fewer or a lower one")
    return kept


def accuracy(problem: ModuleProblem | RealImages, theta: Tensors, real: Labelled) -> float:
    """Share of real images whose largest logit is that of their class."""
    (images, labels), hits = real, 0
    with torch.no_grad():
        for start in range(0, len(labels), JUDGE_CHUNK):
            part = slice(start, start + JUDGE_CHUNK)
            hits += int((forward(problem.module, theta, images[part]).argmax(1) == labels[part]).sum())
    return hits / len(labels)


def stored_floats(images: int, labels: torch.Tensor) -> int:
    """Numbers that a set stores whose images have `images` of them; the class numbers of a balanced set cost nothing."""
    return images + (labels.numel() if labels.ndim == 2 else 0)


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
    drop: int | None = None
    """Steps after which the step size is a tenth; never by default."""

    def __post_init__(self) -> None:
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise RunError(f"training lengths must be positive and increasing: lengths={self.lengths}")
        at_least(1, networks=self.networks, draws=self.draws, held_out_images=self.held_out_images)
        at_least(0, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Network:
    """One trained network: held-out accuracy at every length, parameters by length (those still needed), test accuracy once judged."""

    held_out: list[float]
    theta: dict[int, Tensors]
    test: float | None = None


@dataclass(frozen=True)
class Shelf:
    """A folder with one file a trained network, so that work that was cut off goes on; without a folder networks stay in memory."""

    folder: Path | None = None

    def part(self, name: str) -> "Shelf":
        """A shelf of its own inside this one."""
        if self.folder is None:
            return self
        make_folder(self.folder / name)
        return Shelf(self.folder / name)

    def get(self, key: str, device: torch.device) -> Network | None:
        """The network of that name, None where none lies there that is whole."""
        if self.folder is None:
            return None
        try:
            record, parts = read_parts(self.folder / f"{key}.safetensors", device)
            return Network(record["held_out"], {int(length): theta for length, theta in parts.items()}, record["test"])
        except DAMAGE:
            return None

    def put(self, key: str, network: Network) -> Network:
        """Stores the network; gives back what is to stay in memory: all of it, or all but the parameters that lie on disk."""
        if self.folder is None:
            return network
        record = {"held_out": network.held_out, "test": network.test}
        write_parts(self.folder / f"{key}.safetensors", record, {str(length): theta for length, theta in network.theta.items()})
        return replace(network, theta={})


IN_MEMORY = Shelf()


@dataclass(frozen=True, eq=False)
class Trained:
    """One kind of set after steps 1 and 2: the chosen length, and networks[draw][network]."""

    name: str
    problem: ModuleProblem
    length: int
    held_out: dict[int, float]
    networks: list[list[Network]]
    shelf: Shelf


class Draws(typing.Protocol):
    """The sets of one kind, which may be made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: int, /) -> Tensors: ...


def train_arm(
    name: str,
    problem: ModuleProblem,
    optimiser: InnerOptimiser,
    sets: Draws,
    held_out: Labelled,
    protocol: Protocol,
    bar: Bar,
    shelf: Shelf = IN_MEMORY,
) -> Trained:
    """Trains `protocol.networks` fresh networks on each of `sets` and chooses the length on the held-out images.

    Network k of draw j starts from the stream (seed, j, k) in every arm: arms are compared at equal initialisations. A set is asked for
    when a network is to be trained on it; networks on the shelf are not trained again.
    """
    networks: list[list[Network]] = []
    for j in range(len(sets)):
        s: Tensors | None = None
        networks.append([])
        for k in range(protocol.networks):
            network = shelf.get(_key(name, j, k), problem.device)
            if network is None:
                s = sets[j] if s is None else s
                kept = train(problem, optimiser, s, np.random.default_rng((protocol.seed, j, k)), protocol.lengths, protocol.drop)
                scores = [accuracy(problem, theta, held_out) for theta in kept]
                network = shelf.put(_key(name, j, k), Network(scores, dict(zip(protocol.lengths, kept, strict=True))))
                bar.advance(note=name)
            else:
                network = replace(network, theta={})
                bar.skip()
            networks[-1].append(network)
    scores = np.mean([network.held_out for row in networks for network in row], axis=0)
    held = dict(zip(protocol.lengths, map(float, scores), strict=True))
    return _chosen(Trained(name, problem, protocol.lengths[int(np.argmax(scores))], held, networks, shelf))


def _chosen(arm: Trained) -> Trained:
    """Without the parameters at other lengths, in memory and on the shelf."""

    def narrowed(j: int, k: int) -> Network:
        key = _key(arm.name, j, k)
        network = arm.shelf.get(key, arm.problem.device) or arm.networks[j][k]
        if network.theta.keys() <= {arm.length}:
            return replace(network, theta={}) if arm.shelf.folder else network
        return arm.shelf.put(key, replace(network, theta={arm.length: network.theta[arm.length]}))

    return replace(arm, networks=[[narrowed(j, k) for k in range(len(row))] for j, row in enumerate(arm.networks)])


def _key(name: str, draw: int, network: int) -> str:
    return f"{name}-{draw}-{network}"


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

    @property
    def sample(self) -> np.ndarray:
        """x_i."""
        a = np.asarray(self.accuracies)
        return a.mean(axis=1) if len(a) > 1 else a[0]

    @property
    def interval(self) -> Interval | None:
        """95 % of the mean; None with a single draw and network."""
        return mean_interval(self.sample)[1] if len(self.sample) > 1 else None

    def above(self, other: "Result") -> tuple[float, Interval | None]:
        """How far the mean lies above that of another set, with its 95 % interval; None where one of the two has none."""
        apart, sizes = self.mean - other.mean, [len(x.sample) for x in (self, other)]
        if min(sizes) < 2:
            return apart, None
        v = [float(np.var(x.sample, ddof=1)) / n for x, n in zip((self, other), sizes, strict=True)]
        if not sum(v):
            return apart, (apart, apart)
        freedom = sum(v) ** 2 / sum(part**2 / (n - 1) for part, n in zip(v, sizes, strict=True))
        half = float(student_t.ppf((1 + COVERAGE) / 2, freedom)) * math.sqrt(sum(v))
        return apart, (apart - half, apart + half)

    def record(self) -> dict[str, Any]:
        """Everything, JSON-ready; accuracies are shares."""
        return {
            "name": self.name,
            "length": self.length,
            "held_out": {str(length): value for length, value in self.held_out.items()},
            "mean": self.mean,
            "interval": self.interval,
            "std_networks": self.std_networks,
            "std_draws": self.std_draws,
            "draws": len(self.accuracies),
            "networks": len(self.accuracies[0]),
            "accuracies": self.accuracies,
        }


def judge(arm: Trained, test: Labelled, bar: Bar) -> Result:
    """Step 3, after every choice has been made."""

    def judged(j: int, k: int) -> float:
        key = _key(arm.name, j, k)
        network = arm.shelf.get(key, arm.problem.device) or arm.networks[j][k]
        if network.test is not None:
            bar.skip()
            return network.test
        if arm.length not in network.theta:
            raise RunError(f"network {key} has gone from {arm.shelf.folder} meanwhile: run the same command again")
        found = accuracy(arm.problem, network.theta[arm.length], test)
        arm.shelf.put(key, replace(network, theta={}, test=found))
        bar.advance(note=f"{arm.name} on the test split")
        return found

    table = [[judged(j, k) for k in range(len(row))] for j, row in enumerate(arm.networks)]
    return Result(arm.name, arm.length, arm.held_out, table)
