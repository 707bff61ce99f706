"""The run of `python -m realdata bridge`: reads images and sets, measures the task once and each set beside random images, writes a report.

DIR/config.toml, env.json   the run (sims.lab)      DIR/summary.json, report.md      DIR/figures/bridge.{png,pdf} with the numbers as csv
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from realdata import data
from realdata.artefact import DistilledSet, read_set
from realdata.baselines import random_images
from realdata.config import DistillConfig
from realdata.evaluate import seal
from realdata.machine import Runtime, set_up
from realdata.preprocess import Transform, fit
from realdata.subspace import report
from realdata.subspace.coordinates import refuse_large
from realdata.subspace.measure import BridgeConfig, Candidate, Scene, TaskSubspace, make_scene, measure, task_subspaces
from realdata.task import hard_labels, stream, training_problem, training_split
from sims.lab.files import RunError
from sims.lab.progress import progress
from sims.lab.run import RunFolder


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run works on: sets by name, the configuration that trains networks, transformed images, held-out tensors (with sets)."""

    sets: dict[str, DistilledSet]
    config: DistillConfig
    images: np.ndarray
    labels: np.ndarray
    held_out: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def classes(self) -> int:
        """C."""
        return len(data.source(self.config.dataset).classes)


def run(config: BridgeConfig, places: Sequence[Path], dataset: str | None, root: Path | None, out: Path | None, runtime: Runtime) -> Path:
    """Measures and writes into `out`; gives the path of the report."""
    device = set_up(runtime)
    sets = read_sets(places)
    name = dataset or next((s.config.dataset for s in sets.values()), None)
    if name is None:
        raise RunError("there is nothing to measure: name distilled sets, or give --dataset")
    others = [place for place, s in sets.items() if s.config.dataset != name]
    if others:
        raise RunError(f"{others[0]} is a set of {sets[others[0]].config.dataset}, not of {name}: compare sets of one data set")
    refuse_large(name, data.source(name).shape)
    root = root or data.default_root(name)
    inputs = gather(config, sets, name, root, device)
    settings: dict[str, Any] = dataclasses.asdict(config) | {"dataset": name, "sets": list(sets)}
    settings["seals"] = [seal(place) for place in places]
    with RunFolder.open(out or Path("results") / f"{name}-bridge", settings, backend=f"torch: {device}", seed=config.seed) as folder:
        scene = make_scene(config, inputs.images, inputs.labels, inputs.classes)
        task = task_subspaces(config, scene)
        asked = candidates(config, inputs)
        with progress(sum(config.networks if len(c.draws) == 1 else len(c.draws) for c in asked), "bridge") as bar:
            rows = [measure(config, scene, task, candidate, inputs.held_out, bar) for candidate in asked]
        return report.write(folder, config, reference(inputs, scene, task), task, rows)


def read_sets(places: Sequence[Path]) -> dict[str, DistilledSet]:
    """The sets by the name of their folder; RunError where two share one, or their pictures passed through different transforms."""
    sets: dict[str, DistilledSet] = {}
    for place in places:
        name = place.resolve().name if place.resolve().name != "distilled" else place.resolve().parent.name
        if name in sets:
            raise RunError(f"two sets are called {name!r}: rename one of their folders")
        sets[name] = read_set(place)
    first = next(iter(sets.values()), None)
    for name, s in sets.items():
        if first is not None and not same_transform(first.transform, s.transform):
            raise RunError(f"{name} lives behind another transform than {next(iter(sets))}: measure them in separate runs")
    return sets


def same_transform(a: Transform, b: Transform) -> bool:
    """Whether two fitted transforms are one."""
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)


def gather(config: BridgeConfig, sets: dict[str, DistilledSet], dataset: str, root: Path, device: torch.device) -> Inputs:
    """Images below `root`, through the transform of the sets."""
    first = next(iter(sets.values()), None)
    training = DistillConfig(dataset, transform=config.transform) if first is None else first.config
    split = training_split(training, str(root))
    rows = np.sort(stream(config.seed, "images").permutation(len(split.fitted))[: config.images])
    fitted, held_out = split.fitted.subset(rows), None
    transform = fit(training.transform, split.fitted.images, data.cache_folder()) if first is None else first.transform
    if sets:
        rows = np.sort(stream(config.seed, "held-out").permutation(len(split.held_out))[: config.held_out_images])
        judge = split.held_out.subset(rows)
        held_out = torch.from_numpy(transform.apply(judge.images)).to(device), torch.from_numpy(judge.labels).to(device)
    return Inputs(sets, training, transform.apply(fitted.images), fitted.labels, held_out)


def reference(inputs: Inputs, scene: Scene, task: dict[str, TaskSubspace]) -> report.Reference:
    """The line r_eff^2 d + L: d numbers in an image, L inputs of the network's last layer, r_eff of the centred labels."""
    module = training_problem(inputs.config, None, torch.device("cpu")).module
    width = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1].in_features
    d = int(np.prod(inputs.images.shape[1:]))
    floats = task["centred"].found.effective_rank ** 2 * d + width
    return report.Reference(inputs.config.dataset, len(scene.z), scene.whitening.share, d, width, floats)


def candidates(config: BridgeConfig, inputs: Inputs) -> list[Candidate]:
    """The distilled sets, then random images at the same and at the asked sizes."""
    labels = inputs.labels
    found = [Candidate(name, s.config, s.optimiser().lr, torch.from_numpy(s.labels), (s.images,), True) for name, s in inputs.sets.items()]
    lr = found[0].lr if found else inputs.config.inner_lr
    whole = replace(inputs.config, batch_per_class=None, classes_per_step=None, trajectory=replace(inputs.config.trajectory, batch=None))
    smallest = int(np.bincount(labels).min())
    for ipc in sorted({s.config.ipc for s in inputs.sets.values()} | {ipc for ipc in config.ipc if ipc <= smallest}):
        draws = [random_images(inputs.images, labels, ipc, stream(config.seed, "subset", ipc, j)) for j in range(config.subsets)]
        there, classes = replace(whole, ipc=ipc), hard_labels(inputs.classes, ipc)
        found.append(Candidate(f"random, {ipc} per class", there, lr, classes, tuple(draws), False))
    return found
