"""`python -m realdata nas`: how well a small training set ranks architectures, against training on all the real images.

    space      ConvNets, every combination of widths x depths x activations x poolings x norms; the full one has 4 x 4 x 3 x 3 x 5 = 720
    proxies    a distilled set (and the running average of its images), random real images at the same count
    score      real: test accuracy after `epochs` passes over the real training part; proxy: held-out accuracy after `steps` steps
    rank       Spearman's rho and Kendall's tau between real and proxy scores, over the whole space and over the top 5, 10, 20
               architectures by real score, with 95 % percentile intervals over 2000 resamples of architectures

The same optimiser and warps train all of them; scores are means over `seeds` networks. Each training is a stored trial, so the command goes
on after an interruption. A rho over 5 architectures moves in steps of 0.1: read it with its interval. Du et al. 2023 (arXiv:2211.11004,
section 4.4) state 720 ConvNets of varying depth, width, activation, norm and pooling; that these are the options is derived here, from the
networks of the field's common code.
"""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata

from realdata import data, figures
from realdata.artefact import DistilledSet, find_set, read_set
from realdata.baselines import random_rows
from realdata.bridge import ModuleProblem, RealImages, Tensors
from realdata.checks import at_least, positive
from realdata.experts import Recipe
from realdata.experts.training import Trainer
from realdata.machine import Runtime, set_up
from realdata.networks import ConvNetConfig, convnet
from realdata.protocol import accuracy, train
from realdata.streaming import Labelled, on_device
from realdata.task import Split, augmentation, hard_labels, stream, training_split
from sims.lab.artefact import SUMS
from sims.lab.files import RunError
from sims.lab.laws import percentile_interval
from sims.lab.progress import progress
from sims.lab.report import markdown_table, with_interval
from sims.lab.run import RunFolder
from theory.distill.inner_optim import Momentum
from theory.distill.problem import Diverged

KIND = "architecture"
TOPS = (5, 10, 20)
RESAMPLES = 2000


@dataclass(frozen=True)
class Space:
    """Which architectures are ranked, and how each is trained."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of every block."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Numbers of blocks."""
    activations: tuple[str, ...] = ("sigmoid", "relu", "leaky-relu")
    """Activations."""
    poolings: tuple[str, ...] = ("none", "max", "avg")
    """Poolings after each block."""
    norms: tuple[str, ...] = ("none", "batch", "layer", "instance", "group")
    """Norms."""
    seeds: int = 1
    """Networks of each architecture and training set."""
    epochs: int = 200
    """Passes over the real training images."""
    steps: int = 1000
    """Training steps on a small set."""
    batch: int = 256
    """Images of a step, of real images and of a small set (all of it, where it is smaller)."""
    lr: float = 0.01
    """Learning rate, with momentum 0.9 and weight decay 5e-4."""
    held_out_images: int = 2000
    """Held-out images that score a network trained on a small set."""
    test_images: int = 10_000
    """Test images that score a network trained on real images."""

    def __post_init__(self) -> None:
        at_least(1, seeds=self.seeds, epochs=self.epochs, steps=self.steps, batch=self.batch)
        at_least(1, held_out_images=self.held_out_images, test_images=self.test_images)
        positive(lr=self.lr)
        if len(self.networks()) < 3:
            raise RunError(f"a ranking needs at least 3 architectures: {len(self.networks())} in the space")

    def networks(self) -> list[ConvNetConfig]:
        """Every architecture, in a fixed order."""
        product = itertools.product(self.widths, self.depths, self.activations, self.poolings, self.norms)
        return [ConvNetConfig(d, w, norm=n, pooling=p, activation=a) for w, d, a, p, n in dict.fromkeys(product)]


@dataclass(frozen=True, eq=False)
class Bench:
    """What the trainings share: the images, and for each proxy its set and labels."""

    space: Space
    distilled: DistilledSet
    split: Split
    real: Labelled
    held_out: Labelled
    test: Labelled
    proxies: dict[str, tuple[Tensors, torch.Tensor]]
    chunk: int
    device: torch.device

    def score(self, arm: str, network: ConvNetConfig, seed: int) -> float:
        """Accuracy of one fresh network."""
        config, space = self.distilled.config, self.space
        if arm == "real":
            recipe = Recipe(config.dataset, seed, network, config.transform, config.augment, config.held_out, space.epochs, space.batch)
            recipe = replace(recipe, lr=space.lr, momentum=0.9, weight_decay=5e-4)
            trainer = Trainer(recipe, RealImages(recipe.module(), *self.real, space.batch, augmentation(config), self.chunk))
            at = trainer.start(0)
            while at.epoch < space.epochs:
                at = trainer.epoch(at)
            return accuracy(trainer.real, at.theta, self.test)
        (s, labels), known = self.proxies[arm], self.split.source
        size = len(labels)
        problem = ModuleProblem(
            convnet(network, known.shape, len(known.classes)),
            len(known.classes),
            config.ipc,
            labels,
            augmentation(config),
            device=self.device,
            batch=space.batch if space.batch < size else None,
        )
        optimiser = Momentum(space.lr, 0.9, 5e-4)
        (theta,) = train(problem, optimiser, s, stream(seed, "nas"), (space.steps,))
        return accuracy(problem, theta, self.held_out)


def run(place: Path, space: Space, root: Path, out: Path, runtime: Runtime) -> Path:
    """Trains what is missing, ranks, and writes the report; gives its path back."""
    distilled, device = read_set(place), set_up(runtime)
    split = training_split(distilled.config, str(root))
    for network in space.networks():
        convnet(network, split.source.shape, len(split.source.classes))  # one that the images are too small for is refused here
    sums = (find_set(place) / SUMS).read_text()
    with RunFolder.open(out, asdict(space) | {"set": sums}, backend=f"torch: {device}", seed=0) as folder:
        bench = prepared(distilled, split, space, root, runtime.chunk, device)
        arms = ("real", *bench.proxies)
        trainings = [(arm, network, seed) for arm in arms for network in space.networks() for seed in range(space.seeds)]
        rows = []
        with progress(len(trainings), "nas") as bar:
            for arm, network, seed in trainings:
                asked = {"arm": arm, "seed": seed} | asdict(network)
                row = folder.store.get(KIND, asked)
                if row is None:
                    rows.append(folder.store.put(KIND, asked, *trained(bench, arm, network, seed)))
                    bar.advance(note=arm)
                else:
                    rows.append(row)
                    bar.skip()
        return report(folder, space, arms, rows)


def prepared(distilled: DistilledSet, split: Split, space: Space, root: Path, chunk: int, device: torch.device) -> Bench:
    """The images of all trainings."""
    config, transform = distilled.config, distilled.transform
    held_out, test = split.held_out, data.load(config.dataset, root, "test")
    parts = [x.subset(np.sort(stream(0, name).permutation(len(x))[:n])) for name, x, n in (
        ("nas held-out", held_out, space.held_out_images), ("nas test", test, space.test_images)
    )]  # fmt: skip
    real = on_device(transform, split.fitted, device)
    rows = torch.from_numpy(random_rows(split.fitted.labels, config.ipc, stream(0, "nas random")))
    labels = torch.from_numpy(distilled.labels).to(device)
    sets = {"distilled": distilled.images} | ({} if distilled.images_ema is None else {"ema": distilled.images_ema})
    proxies = {name: ((torch.from_numpy(images).to(device),), labels) for name, images in sets.items()}
    proxies["random"] = (real[0][rows],), hard_labels(len(split.source.classes), config.ipc).to(device)
    judged = [on_device(transform, part, device) for part in parts]
    return Bench(space, distilled, split, real, judged[0], judged[1], proxies, chunk, device)


def trained(bench: Bench, arm: str, network: ConvNetConfig, seed: int) -> tuple[dict[str, Any], str | None]:
    """(result, None), or ({}, why) for a network that diverged."""
    began = time.perf_counter()
    try:
        score = bench.score(arm, network, seed)
    except Diverged as error:
        return {}, str(error)
    return {"accuracy": score, "seconds": time.perf_counter() - began}, None


def correlations(real: np.ndarray, proxy: np.ndarray, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rank correlations over the space and its tops, one record each."""
    order = np.argsort(-real, kind="stable")
    for top in (len(real), *(k for k in TOPS if k < len(real))):
        x, y = real[order[:top]], proxy[order[:top]]
        rows = rng.integers(0, top, (RESAMPLES, top))
        interval, lost = percentile_interval(spearman(x[rows], y[rows]))
        rho = float(spearman(x, y))
        known = not np.isnan(rho)
        tau = float(np.asarray(kendalltau(x, y))[0]) if known else None
        yield {"top": top, "spearman": rho if known else None, "interval": interval, "lost": lost, "kendall": tau}


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho along the last axis, NaN where one side is constant."""
    u, v = (rank - rank.mean(axis=-1, keepdims=True) for rank in (rankdata(z, axis=-1) for z in (x, y)))
    size = np.sqrt(np.sum(u * u, axis=-1) * np.sum(v * v, axis=-1))
    return np.where(size > 0, np.sum(u * v, axis=-1) / np.where(size > 0, size, 1.0), np.nan)


def report(folder: RunFolder, space: Space, arms: tuple[str, ...], rows: list[dict[str, Any]]) -> Path:
    """The table of correlations and times, its summary, and the figure."""
    networks = space.networks()
    place = {network: i for i, network in enumerate(networks)}
    scores = {arm: np.full((len(networks), space.seeds), np.nan) for arm in arms}
    for row in rows:
        network = ConvNetConfig(**{field.name: row[field.name] for field in fields(ConvNetConfig)})
        if row["failed"] is None:
            scores[row["arm"]][place[network], row["seed"]] = row["accuracy"]
    whole = np.all([np.isfinite(score).all(axis=1) for score in scores.values()], axis=0)
    if whole.sum() < 3:
        raise RunError(f"only {whole.sum()} of {len(networks)} architectures trained without diverging on every set: lower --space.lr")
    mean = {arm: score[whole].mean(axis=1) for arm, score in scores.items()}
    seconds = {arm: sum(row["seconds"] for row in rows if row["arm"] == arm and row["failed"] is None) for arm in arms}
    found = {arm: list(correlations(mean["real"], mean[arm], stream(0, "nas resamples"))) for arm in arms if arm != "real"}
    cells = [
        (arm, one["top"], with_interval(one["spearman"], one["interval"]), one["kendall"], f"{seconds[arm]:.0f}")
        for arm, records in found.items()
        for one in records
    ]
    table = markdown_table(("proxy", "architectures", "Spearman [95 %]", "Kendall", "seconds"), cells)
    counts = f"{whole.sum()} of {len(networks)} architectures (the others diverged somewhere), {space.seeds} networks each"
    summary = {"architectures": int(whole.sum()), "space": len(networks), "seconds": seconds, "correlations": found}
    folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    shown = figures.against({arm: mean[arm] for arm in found}, mean["real"], "accuracy after real training", "accuracy after the small set")
    for kind in ("png", "pdf"):
        folder.write(f"figures/nas.{kind}", figures.render(shown, kind))
    kept = [network for network, known in zip(networks, whole, strict=True) if known]
    lines = [",".join(map(str, (*asdict(network).values(), *(mean[arm][i] for arm in arms)))) for i, network in enumerate(kept)]
    folder.write("figures/nas.csv", "\n".join([",".join((*asdict(kept[0]), *arms)), *lines]) + "\n")
    head = f"# Ranking of architectures\n\n{counts}; training on real images took {seconds['real']:.0f} s.\n\n"
    return folder.write("report.md", f"{head}{table}\n![Scores](figures/nas.png)\n")
