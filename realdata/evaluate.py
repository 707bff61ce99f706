"""`python -m realdata evaluate`: a distilled set and its baselines under one printed protocol, as a table and as JSON.

    distilled        the set with its own labels;  distilled-hard: the same images with class numbers, where its labels are probabilities
    ema, ema-hard    the running average of its images, where the artefact has one
    baselines        real images at the same count (realdata.baselines), with class numbers

Every network that has been trained or judged is kept in a folder beside the JSON file until that is written (evaluation-KEY.parts, KEY from
what determines the results), so that the same command goes on after an interruption. Lengths of all kinds of sets and of all networks are
chosen before the test split is read.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from realdata import data
from realdata.artefact import DistilledSet, find_set, read_set
from realdata.baselines import DETERMINISTIC, Baseline, baselines
from realdata.bridge import ModuleProblem, Tensors
from realdata.config import Runtime, as_settings
from realdata.networks import NETWORKS, network, parameter_count
from realdata.protocol import Protocol, Result, Shelf, judge, train_arm
from realdata.streaming import on_device, on_host
from realdata.task import Split, augmentation, device_named, hard_labels, stream, training_problem, training_split
from sims.lab.artefact import SUMS
from sims.lab.environment import environment
from sims.lab.files import RunError, atomic_write, toml_text
from sims.lab.progress import progress
from sims.lab.report import Cell, terminal_table
from sims.lab.run import RunFolder
from theory.distill.inner_optim import InnerOptimiser, Momentum

HEADERS = ("network", "set", "test %", "std nets", "std draws", "runs", "steps", "held-out %", "- random")
OWN = "own"
# MTT's released code, which FTD's keeps: epochs 0 to 1000, the step size falls after epoch 501.
EPOCHS, FULL_EPOCHS, BATCH = 1001, 502, 256


@dataclass(frozen=True)
class Evaluation:
    """What is compared, and how."""

    baselines: str = "random,herding,kmeans"
    """Comma-separated: random, herding, kmeans (real images nearest to the centres), means (the centres), all on transformed pixels; empty
    for none."""
    networks: str = OWN
    """Comma-separated: own (that of the distillation), convnet3, convnet4, convnet5, mlp, lenet, alexnet, vgg11, resnet18, or
    those but lenet and mlp with -narrow (width 16)."""
    seeds: int = 5
    """Fresh networks a set, and draws of each baseline."""
    lengths: tuple[int, ...] = ()
    """Training lengths to choose from on held-out images, in steps; 1, 2 and 5 times that of the distillation's measurements by default."""
    shared: bool = False
    """One draw of a warp for a whole batch (Siamese), not one an image."""
    published: bool = False
    """For sets with a step size of their own: the protocol of MTT and FTD, momentum 0.9, weight decay 5e-4, 1001 epochs in batches of 256
    (drawn anew for each step, here), a tenth of the step size and new momentum after 502."""

    def __post_init__(self) -> None:
        if self.published and self.lengths:
            raise RunError(f"the published protocol has one length: leave out --lengths {' '.join(map(str, self.lengths))}")
        self.protocol(horizon=1, images=1)
        baselines(self.baselines)
        self.network_names()

    def protocol(self, horizon: int, images: int) -> Protocol:
        """The rules these options stand for, for a set of so many images whose distillation judged networks trained `horizon` steps."""
        if self.published:
            epoch = -(-images // BATCH)
            return Protocol((EPOCHS * epoch,), networks=self.seeds, draws=self.seeds, drop=FULL_EPOCHS * epoch)
        return Protocol(self.lengths or (horizon, 2 * horizon, 5 * horizon), networks=self.seeds, draws=self.seeds)

    def network_names(self) -> tuple[str, ...]:
        """The networks, each once."""
        names = tuple(dict.fromkeys(name.strip() for name in self.networks.split(",") if name.strip()))
        unknown = [name for name in names if name not in (OWN, *NETWORKS)]
        if unknown or not names:
            raise RunError(f"unknown network {(unknown or [''])[0]!r}: choose from {', '.join((OWN, *NETWORKS))}")
        return names


@dataclass(frozen=True, eq=False)
class Sets:
    """The sets of one kind, made when they are asked for: sets[j], j < count; and the labels they share."""

    count: int
    labels: torch.Tensor
    make: Callable[[int], Tensors]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, j: int) -> Tensors:
        return self.make(j)


def run(place: Path, root: Path, evaluation: Evaluation, runtime: Runtime, target: Path | None = None) -> Path:
    """Evaluates the set in `place` (artefact or run folder), prints the table and gives the path of the JSON file back."""
    distilled = read_set(place)
    if evaluation.published and distilled.step_size is None:
        raise RunError(f"the published protocol trains with the set's own step size, and {find_set(place)} has none: leave out --published")
    protocol = evaluation.protocol(distilled.config.judging(distilled.optimiser().lr)[1], len(distilled.images))
    device = device_named(runtime.device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    print(protocol_lines(distilled, evaluation, protocol))
    target = target or find_set(place).parent / "evaluation.json"
    seal = hashlib.sha256((find_set(place) / SUMS).read_bytes()).hexdigest()
    settings = {"set": seal, "evaluation": dataclasses.asdict(evaluation), "protocol": dataclasses.asdict(protocol)}
    key = hashlib.sha256(toml_text(settings).encode()).hexdigest()[:8]
    parts = target.with_name(f"{target.stem}-{key}.parts")
    with RunFolder.open(parts, settings, backend=f"torch: {device}", seed=protocol.seed) as folder:
        results = measure(distilled, evaluation, protocol, str(root), device, Shelf(folder.path))
        record = {
            "protocol": dataclasses.asdict(protocol),
            "config": as_settings(distilled.config),
            "evaluation": dataclasses.asdict(evaluation),
            "results": [{"network": name} | result.record() for name, result in results],
            "environment": environment(f"torch: {device}", protocol.seed),
        }
        atomic_write(target, json.dumps(record, indent=1) + "\n")
        shutil.rmtree(parts)
    random = {name: result.mean for name, result in results if result.name == "random"}
    terminal_table(f"{distilled.config.dataset}, test split", HEADERS, [_row(name, result, random.get(name)) for name, result in results])
    return target


def measure(
    distilled: DistilledSet, evaluation: Evaluation, protocol: Protocol, root: str, device: torch.device, shelf: Shelf
) -> list[tuple[str, Result]]:
    """(network, result) of every arm: all are trained and their lengths chosen on held-out images, then the test split is read, once."""
    split = training_split(distilled.config, root)
    rows = stream(protocol.seed, "held-out").permutation(len(split.held_out))[: protocol.held_out_images]
    held_out = on_device(distilled.transform, split.held_out.subset(rows), device)
    kinds = dict(_own_sets(distilled, device)) | dict(_baseline_sets(distilled, split, baselines(evaluation.baselines), protocol, device))
    names = evaluation.network_names()
    with progress(2 * len(names) * protocol.networks * sum(map(len, kinds.values())), "evaluate") as bar:
        arms = []
        for name in names:
            for kind, sets in kinds.items():
                problem = _problem(distilled, name, sets.labels, evaluation, device)
                part = shelf.part(name)
                optimiser = _optimiser(distilled, evaluation, average=kind.startswith("ema"))
                arms.append((name, train_arm(kind, problem, optimiser, sets, held_out, protocol, bar, part)))
        test = on_device(distilled.transform, data.load(distilled.config.dataset, root, "test"), device)
        return [(name, judge(arm, test, bar)) for name, arm in arms]


def _problem(
    distilled: DistilledSet, name: str, labels: torch.Tensor | None, evaluation: Evaluation, device: torch.device
) -> ModuleProblem:
    """Training the network called `name` on the set."""
    problem = training_problem(distilled.config, labels, device)
    if name != OWN:
        shape = data.source(distilled.config.dataset).shape
        problem = replace(problem, module=network(name, shape, len(distilled.classes)))
    if evaluation.published:
        count = len(distilled.images)
        problem = replace(problem, batch_per_class=None, classes_per_step=None, batch=BATCH if count > BATCH else None)
    return replace(problem, augment=replace(problem.augment, shared=evaluation.shared))


def _optimiser(distilled: DistilledSet, evaluation: Evaluation, average: bool = False) -> InnerOptimiser:
    own = distilled.optimiser(average)
    return Momentum(own.lr, 0.9, 5e-4) if evaluation.published else own


def _own_sets(distilled: DistilledSet, device: torch.device) -> Iterator[tuple[str, Sets]]:
    own = torch.from_numpy(distilled.labels)
    labels = {"": own} if own.ndim == 1 else {"": own, "-hard": hard_labels(len(distilled.classes), distilled.config.ipc)}
    for name, images in (("distilled", distilled.images), ("ema", distilled.images_ema)):
        if images is not None:
            for suffix, y in labels.items():
                yield name + suffix, _sets(1, y, lambda _, images=images: images, device)


def _baseline_sets(
    distilled: DistilledSet, split: Split, asked: dict[str, Baseline], protocol: Protocol, device: torch.device
) -> Iterator[tuple[str, Sets]]:
    images = on_host(distilled.transform, split.fitted.images) if asked else np.empty(0)
    hard, ipc = hard_labels(len(distilled.classes), distilled.config.ipc), distilled.config.ipc

    def drawn(name: str, baseline: Baseline) -> Callable[[int], np.ndarray]:
        return lambda j: baseline(images, split.fitted.labels, ipc, stream(protocol.seed, name, j))

    for name, baseline in asked.items():
        yield name, _sets(1 if name in DETERMINISTIC else protocol.draws, hard, drawn(name, baseline), device)


def _sets(count: int, labels: torch.Tensor, images: Callable[[int], np.ndarray], device: torch.device) -> Sets:
    return Sets(count, labels, lambda j: (torch.from_numpy(images(j)).to(device),))


def protocol_lines(distilled: DistilledSet, evaluation: Evaluation, protocol: Protocol) -> str:
    """The rules in words, before any result."""
    c, cpu, optimiser = distilled.config, torch.device("cpu"), _optimiser(distilled, evaluation)
    own = f"own = ConvNet depth {c.network.depth}, width {c.network.width}, {c.network.norm} norm"
    sizes = {name: parameter_count(_problem(distilled, name, None, evaluation, cpu).module) for name in evaluation.network_names()}
    warps = f"warps {augmentation(c).name}{', one draw a batch' if evaluation.shared else ''}"
    drop = "" if protocol.drop is None else f" (published, a tenth of the learning rate after {protocol.drop})"
    lines = (
        f"protocol: networks {', '.join(f'{name} ({size} parameters)' for name, size in sizes.items())}; {own}",
        f"{type(optimiser).__name__} with learning rate {optimiser.lr:.6g}, {warps}; {len(distilled.images)} images ({c.ipc} per class), "
        f"{protocol.networks} fresh networks a set, {protocol.draws} draws of each baseline (herding draws nothing: one)",
        f"training length out of {', '.join(map(str, protocol.lengths))} steps{drop}, chosen for each network and kind of set on at most "
        f"{protocol.held_out_images} held-out training images; test split read once, after that",
    )
    return "\n          ".join(lines)


def _row(network: str, result: Result, random: float | None) -> list[Cell]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    above = None if random is None or result.name == "random" else f"{100 * (result.mean - random):+.1f}"
    size = f"{len(result.accuracies)} x {len(result.accuracies[0])}"
    held, spread = percent(result.held_out[result.length]), (percent(result.std_networks), percent(result.std_draws))
    return [network, result.name, percent(result.mean), *spread, size, result.length, held, above]
