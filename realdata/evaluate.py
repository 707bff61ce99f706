"""`python -m realdata evaluate`: a distilled set and its baselines under one printed protocol, as a table and as JSON.

    distilled        the set with its own labels;  distilled-hard: the same images with class numbers, where its labels are probabilities
    ema, ema-hard    the running average of its images, where the artefact has one
    baselines        real images at the same count (realdata.baselines), with class numbers

An arm with a network that diverges is said to, in the table and under "diverged" in the JSON file; the others go on. All have as many
images, hence as many floats unless labels are probabilities; intervals are those of realdata.protocol.

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
from typing import Any

import numpy as np
import torch

from realdata import data
from realdata.artefact import DistilledSet, find_set, read_set
from realdata.baselines import DETERMINISTIC, Baseline, baselines
from realdata.bridge import ModuleProblem, Tensors
from realdata.config import as_settings
from realdata.machine import Runtime, set_up
from realdata.networks import NETWORKS, network, parameter_count
from realdata.protocol import Protocol, Result, Shelf, Trained, judge, stored_floats, train_arm
from realdata.streaming import Labelled, on_device, on_host
from realdata.task import Split, augmentation, hard_labels, stream, training_problem, training_split
from sims.lab.artefact import SUMS
from sims.lab.environment import environment
from sims.lab.files import RunError, atomic_write, toml_text
from sims.lab.laws import Interval
from sims.lab.progress import Meter, progress
from sims.lab.report import Cell, terminal_table, with_interval
from sims.lab.run import RunFolder
from theory.distill.inner_optim import InnerOptimiser, Momentum
from theory.distill.problem import Diverged

HEADERS = ("network", "set", "floats", "test % [95 %]", "std nets", "std draws", "runs", "steps", "held-out %", "- random [95 %]")
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


@dataclass(frozen=True, eq=False)
class Found:
    """One arm, a kind of set on a network: the floats of one set, and what it reached, or in words how it diverged."""

    network: str
    name: str
    floats: int
    result: Result | str

    def record(self, random: Result | None) -> dict[str, Any]:
        """JSON-ready, beside random images on the same network; accuracies are shares."""
        head = {"network": self.network, "name": self.name, "floats": self.floats}
        if isinstance(self.result, str):
            return head | {"why": self.result}
        apart, interval = self._above(random)
        return head | self.result.record() | {"above_random": apart, "above_random_interval": interval}

    def row(self, random: Result | None) -> list[Cell]:
        """Under HEADERS."""
        head: list[Cell] = [self.network, self.name, self.floats]
        if isinstance(self.result, str):
            return [*head, "diverged", *[None] * (len(HEADERS) - len(head) - 1)]
        r = self.result
        spreads = (_percent(r.std_networks), _percent(r.std_draws))
        size = f"{len(r.accuracies)} x {len(r.accuracies[0])}"
        held = _percent(r.held_out[r.length])
        return [*head, _percent(r.mean, r.interval), *spreads, size, r.length, held, _percent(*self._above(random))]

    def _above(self, random: Result | None) -> tuple[float | None, Interval | None]:
        return (None, None) if random is None or isinstance(self.result, str) or self.name == "random" else self.result.above(random)


def _percent(share: float | None, interval: Interval | None = None) -> str:
    ends = None if interval is None else (100 * interval[0], 100 * interval[1])
    return with_interval(None if share is None else 100 * share, ends, 1)


def seal(place: Path) -> str:
    """Digest of the set in `place`."""
    return hashlib.sha256((find_set(place) / SUMS).read_bytes()).hexdigest()


def run(place: Path, root: Path, evaluation: Evaluation, runtime: Runtime, target: Path | None = None) -> Path:
    """Evaluates the set in `place` (artefact or run folder), prints the table and gives the path of the JSON file back."""
    distilled = read_set(place)
    if evaluation.published and distilled.step_size is None:
        raise RunError(f"the published protocol trains with the set's own step size, and {find_set(place)} has none: leave out --published")
    protocol = evaluation.protocol(distilled.config.judging(distilled.optimiser().lr)[1], len(distilled.images))
    device = set_up(runtime)
    print(protocol_lines(distilled, evaluation, protocol))
    target = target or find_set(place).parent / "evaluation.json"
    settings = {"set": seal(place), "evaluation": dataclasses.asdict(evaluation), "protocol": dataclasses.asdict(protocol)}
    key = hashlib.sha256(toml_text(settings).encode()).hexdigest()[:8]
    parts = target.with_name(f"{target.stem}-{key}.parts")
    with RunFolder.open(parts, settings, backend=f"torch: {device}", seed=protocol.seed) as folder:
        found = measure(distilled, evaluation, protocol, str(root), device, Shelf(folder.path))
        random = {arm.network: arm.result for arm in found if arm.name == "random" and isinstance(arm.result, Result)}
        record = {
            "protocol": dataclasses.asdict(protocol),
            "config": as_settings(distilled.config),
            "evaluation": dataclasses.asdict(evaluation),
            "results": [arm.record(random.get(arm.network)) for arm in found if isinstance(arm.result, Result)],
            "diverged": [arm.record(None) for arm in found if isinstance(arm.result, str)],
            "environment": environment(f"torch: {device}", protocol.seed),
        }
        atomic_write(target, json.dumps(record, indent=1) + "\n")
        shutil.rmtree(parts)
    terminal_table(f"{distilled.config.dataset}, test split", HEADERS, [arm.row(random.get(arm.network)) for arm in found])
    for lost in record["diverged"]:
        print(f"{lost['network']}, {lost['name']}: {lost['why']}")
    return target


def measure(
    distilled: DistilledSet, evaluation: Evaluation, protocol: Protocol, root: str, device: torch.device, shelf: Shelf
) -> list[Found]:
    """Every arm: all are trained and their lengths chosen on held-out images, then the test split is read, once."""
    split = training_split(distilled.config, root)
    rows = stream(protocol.seed, "held-out").permutation(len(split.held_out))[: protocol.held_out_images]
    held_out = on_device(distilled.transform, split.held_out.subset(rows), device)
    kinds = dict(_own_sets(distilled, device)) | dict(_baseline_sets(distilled, split, baselines(evaluation.baselines), protocol, device))
    names = evaluation.network_names()
    with progress(2 * len(names) * protocol.networks * sum(map(len, kinds.values())), "evaluate") as bar:
        arms: dict[tuple[str, str], Trained | str] = {}
        for name in names:
            for kind, sets in kinds.items():
                problem = _problem(distilled, name, sets.labels, evaluation, device)
                optimiser = _optimiser(distilled, evaluation, average=kind.startswith("ema"))
                arms[name, kind] = _trained(kind, problem, optimiser, sets, held_out, protocol, bar, shelf.part(name))
        test = on_device(distilled.transform, data.load(distilled.config.dataset, root, "test"), device)
        floats = {kind: stored_floats(distilled.images.size, sets.labels) for kind, sets in kinds.items()}
        return [
            Found(name, kind, floats[kind], arm if isinstance(arm, str) else judge(arm, test, bar)) for (name, kind), arm in arms.items()
        ]


def _trained(
    kind: str,
    problem: ModuleProblem,
    optimiser: InnerOptimiser,
    sets: Sets,
    held_out: Labelled,
    protocol: Protocol,
    bar: Meter,
    shelf: Shelf,
) -> Trained | str:
    """The arm before it is judged, or how it diverged."""
    end = bar.done + 2 * protocol.networks * len(sets)
    try:
        return train_arm(kind, problem, optimiser, sets, held_out, protocol, bar, shelf)
    except Diverged as error:
        bar.skip(end - bar.done)
        return str(error)


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
        "equal for all sets: the number of images and this training; not the floats where labels are probabilities: images x classes more",
        "[95 %]: Student's over the draws, over networks where there is one set; for - random Welch's",
    )
    return "\n          ".join(lines)
