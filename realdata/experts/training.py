"""Trains experts of one recipe into its folder, and goes on where an earlier start stopped.

    theta_0 fresh;  each epoch all training images in a new order, `batch` at a time, one warp a batch;
    theta <- optimiser step with g, or with the flat direction of `theory.distill.flatness` from two gradients of the same batch;
    after each epoch a shard, then the record of the expert under way

An epoch is `pace` passes (one, as a rule). Flat training is slower to fit, and an expert that is behind is an easier one to follow; so flat
experts that are to differ from plain ones in flatness alone take a pace at which the training losses agree; the report of
`realdata.trajectories` estimates it. One pace for all epochs keeps segments of one length in steps: to end each epoch where a flat expert
first meets its plain twin's loss, as `sims.unroll.experts` does for the two-layer student, made segments from 0.2 to 1.2 of the twin's in
length here (CIFAR-10, `ftd-cpu`), for the loss of such experts goes up and down from pass to pass.

An expert whose shards are all there is left alone; the one under way goes on from its record, bit for bit. Experts come one after another:
with torch.func.vmap over 2 or 4 of them a gradient took 1.4 to 4.4 times as long on a processor (ConvNet-3, widths 4 to 128, batches of 32
to 256, one thread; tests/benchmarks/test_experts.py measures it, also on a GPU, where it is not known).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from realdata.bridge import Batch, RealImages, Tensors, fresh_parameters
from realdata.data import cache_folder
from realdata.experts.quality import HELD_OUT, Quality, report, rows_of
from realdata.experts.recipe import Recipe, as_settings, data_digest, folder, key
from realdata.experts.shards import (
    RESUME,
    SHARDS,
    UnderWay,
    complete,
    open_experts,
    read_under_way,
    shard_path,
    write_snapshot,
    write_under_way,
)
from realdata.machine import Runtime, set_up
from realdata.preprocess import fit
from realdata.streaming import on_device
from realdata.task import augmentation, stream, training_split
from sims.lab.files import RunError, clean_leftovers
from sims.lab.progress import Meter, progress
from sims.lab.run import RunFolder
from theory.distill.inner_optim import Slots
from theory.distill.leaves import norm
from theory.distill.problem import Diverged


@dataclass(frozen=True, eq=False)
class Trainer:
    """One recipe on its real images."""

    recipe: Recipe
    real: RealImages
    dtype: torch.dtype = torch.float32

    def start(self, expert: int) -> UnderWay:
        """An expert before its first step."""
        rng = stream(self.recipe.seed, "expert start", expert)
        theta = fresh_parameters(self.real.module, rng, self.dtype, self.real.labels.device)
        return UnderWay(expert, 0, theta, self.recipe.optimiser().init(theta))

    def epoch(self, at: UnderWay) -> UnderWay:
        """The expert one epoch on; Diverged, naming expert and epoch, on NaN or Inf."""
        steps = max(1, round(self.recipe.pace * self._pass))
        theta, slots = next(itertools.islice(self._path(at, at.epoch * steps), steps - 1, None))
        if not norm(theta) < float("inf"):
            raise Diverged(f"expert {at.expert}, epoch {at.epoch + 1}: parameters of norm {norm(theta)}; lower --lr (now {self.recipe.lr})")
        return UnderWay(at.expert, at.epoch + 1, theta, slots)

    @property
    def _pass(self) -> int:
        """Steps of one pass over the images."""
        return -(-len(self.real.images) // self.recipe.batch)

    def _path(self, at: UnderWay, t: int) -> Iterator[tuple[Tensors, Slots]]:
        """Parameters and slots after every step from there, step t of the run being the first, pass after pass."""
        optimiser, flat, size = self.recipe.optimiser(), self.recipe.flat.direction(), self.recipe.batch
        theta, slots = at.theta, at.slots
        for turn in itertools.count():
            rng = stream(self.recipe.seed, "expert epoch", at.expert, at.epoch, *([turn] if turn else []))
            order = rng.permutation(len(self.real.images))
            for i in range(self._pass):
                rows = order[i * size : (i + 1) * size]
                xi = Batch(rows, self.real.augment.draw(rng, len(rows)))

                def gradient(theta: Tensors, xi: Batch = xi) -> Tensors:
                    return self.real.loss_and_gradient(theta, xi)[1]

                direction = gradient(theta) if flat is None else flat(gradient, theta)
                theta, slots = optimiser.step(theta, slots, t + turn * self._pass + i, direction)
                yield theta, slots


def run(recipe: Recipe, count: int, root: Path, store: Path, runtime: Runtime, quality: Quality) -> Path:
    """Trains experts 0 .. count - 1 of the recipe below `store`, measures them, and gives the recipe's folder back."""
    device = set_up(runtime)
    split = training_split(recipe, str(root))
    if recipe.batch > len(split.fitted):
        raise RunError(f"a batch must lie in [1, {len(split.fitted)}]: batch={recipe.batch}")
    module, data = recipe.module(), data_digest(split.fitted)
    place = folder(store, recipe, data)
    with RunFolder.open(place, as_settings(recipe, data), backend=f"torch: {device}", seed=recipe.seed) as place:
        clean_leftovers(place.path / SHARDS)
        transform = fit(recipe.transform, split.fitted.images, cache_folder())
        images, labels = on_device(transform, split.fitted, device)
        trainer = Trainer(recipe, RealImages(module, images, labels, recipe.batch, augmentation(recipe), runtime.chunk))
        with progress(count * recipe.epochs, f"experts {place.path.name}") as bar:
            train(trainer, place.path, key(recipe, data), count, bar)
        if quality.measured:
            held_out = split.held_out.subset(np.sort(stream(0, "expert held-out").permutation(len(split.held_out))[:HELD_OUT]))
            measured = open_experts(place.path, min(count, quality.measured), device)
            rows = rows_of(place, measured, trainer.real, on_device(transform, held_out, device), quality)
            print(report(place, measured, rows))
        return place.path


def train(trainer: Trainer, place: Path, name: str, count: int, bar: Meter) -> None:
    """Trains what is missing of experts 0 .. count - 1."""
    epochs = trainer.recipe.epochs
    done = complete(place, epochs)
    for expert in range(count):
        if expert in done:
            bar.skip(epochs)
            continue
        at = taken_up(place, expert, trainer.real.labels.device)
        if at is None:
            at = trainer.start(expert)
            write_snapshot(place, name, expert, 0, at.theta)
        bar.skip(at.epoch)
        while at.epoch < epochs:
            at = trainer.epoch(at)
            write_snapshot(place, name, expert, at.epoch, at.theta)
            write_under_way(place, at)
            bar.advance(note=f"expert {expert}")
        (place / RESUME).unlink(missing_ok=True)


def taken_up(place: Path, expert: int, device: torch.device) -> UnderWay | None:
    """The expert as its record has it, None where the record is of another one or earlier shards are gone."""
    at = read_under_way(place, device)
    whole = at is not None and at.expert == expert and all(shard_path(place, expert, e).exists() for e in range(at.epoch + 1))
    return at if whole else None
