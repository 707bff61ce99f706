"""`python -m realdata evaluate`: a distilled set and its baselines under one printed protocol, as a table and as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from realdata import data
from realdata.artefact import DistilledSet, find_set, read_set
from realdata.baselines import Baseline, baselines
from realdata.bridge import Tensors
from realdata.config import as_settings
from realdata.distill import Runtime
from realdata.networks import parameter_count
from realdata.protocol import Protocol, Result, judge, train_arm
from realdata.task import augmentation, device_named, hard_labels, on_device, stream, training_problem, training_split
from sims.lab.environment import environment
from sims.lab.files import atomic_write
from sims.lab.progress import progress
from sims.lab.report import Cell, terminal_table

HEADERS = ("set", "test %", "std nets", "std draws", "runs", "steps", "held-out %", "- random")


@dataclass(frozen=True)
class Evaluation:
    """What is compared, and how."""

    baselines: str = "random,kmeans"
    """Comma-separated: random, kmeans (real images nearest to the centres), means (the centres); empty for none."""
    seeds: int = 5
    """Fresh networks a set, and draws of each baseline."""
    lengths: tuple[int, ...] = ()
    """Training lengths to choose from on held-out images, in steps; T, 2 T and 5 T of the distillation by default."""

    def __post_init__(self) -> None:
        self.protocol(horizon=1)

    def protocol(self, horizon: int) -> Protocol:
        """The rules these options stand for, for a set distilled with unrolls of `horizon` steps."""
        return Protocol(self.lengths or (horizon, 2 * horizon, 5 * horizon), networks=self.seeds, draws=self.seeds)


def run(place: Path, root: Path, evaluation: Evaluation, runtime: Runtime, target: Path | None = None) -> Path:
    """Evaluates the set in `place` (artefact or run folder), prints the table and gives the path of the JSON file back."""
    asked, distilled = baselines(evaluation.baselines), read_set(place)
    protocol = evaluation.protocol(distilled.config.horizon)
    device = device_named(runtime.device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    print(protocol_lines(distilled, protocol))
    results = measure(distilled, asked, protocol, str(root), device)
    random = next((r.mean for r in results if r.name == "random"), None)
    terminal_table(f"{distilled.config.dataset}, test split", HEADERS, [_row(result, random) for result in results])
    record = {
        "protocol": dataclasses.asdict(protocol),
        "config": as_settings(distilled.config),
        "results": [result.record() for result in results],
        "environment": environment(f"torch: {device}", protocol.seed),
    }
    target = target or find_set(place).parent / "evaluation.json"
    atomic_write(target, json.dumps(record, indent=1) + "\n")
    return target


def measure(distilled: DistilledSet, asked: dict[str, Baseline], protocol: Protocol, root: str, device: torch.device) -> list[Result]:
    """Trains every arm, chooses its length on the held-out images, then reads the test split once and judges all arms on it."""
    config = distilled.config
    split = training_split(config, root)
    images = distilled.transform.apply(split.fitted.images)
    rows = stream(protocol.seed, "held-out").permutation(len(split.held_out))[: protocol.held_out_images]
    held_out = on_device(distilled.transform, split.held_out.subset(rows), device)

    def tensors(x: Any) -> Tensors:
        return (torch.from_numpy(x).to(device),)

    draws = {
        name: [f(images, split.fitted.labels, config.ipc, stream(protocol.seed, name, j)) for j in range(protocol.draws)]
        for name, f in asked.items()
    }
    sets = {"distilled": [tensors(distilled.images)]} | {name: [tensors(x) for x in drawn] for name, drawn in draws.items()}
    hard = hard_labels(len(split.source.classes), config.ipc)
    labels = {"distilled": torch.from_numpy(distilled.labels)}
    with progress(2 * protocol.networks * sum(map(len, sets.values())), "evaluate") as bar:
        arms = [
            train_arm(
                name, training_problem(config, labels.get(name, hard), device), config.inner_optimiser(), drawn, held_out, protocol, bar
            )
            for name, drawn in sets.items()
        ]
        test = on_device(distilled.transform, data.load(config.dataset, root, "test"), device)
        return [judge(arm, test, bar) for arm in arms]


def protocol_lines(distilled: DistilledSet, protocol: Protocol) -> str:
    """The rules in words, before any result."""
    c = distilled.config
    size = parameter_count(training_problem(c, None, torch.device("cpu")).module)
    lines = (
        f"protocol: ConvNet depth {c.network.depth}, width {c.network.width}, {c.network.norm} norm ({size} parameters), {c.inner} with "
        f"learning rate {c.inner_lr}, warps {augmentation(c).name}",
        f"{len(distilled.images)} images ({c.ipc} per class), {protocol.networks} fresh networks a set, "
        f"{protocol.draws} draws of each baseline",
        f"training length out of {', '.join(map(str, protocol.lengths))} steps, chosen for each kind of set on at most "
        f"{protocol.held_out_images} held-out training images; test split read once, after that",
    )
    return "\n          ".join(lines)


def _row(result: Result, random: float | None) -> list[Cell]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    above = None if random is None or result.name == "random" else f"{100 * (result.mean - random):+.1f}"
    size = f"{len(result.accuracies)} x {len(result.accuracies[0])}"
    held = percent(result.held_out[result.length])
    return [result.name, percent(result.mean), percent(result.std_networks), percent(result.std_draws), size, result.length, held, above]
