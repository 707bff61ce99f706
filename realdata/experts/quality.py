"""How good and how flat stored experts are, snapshot by snapshot.

    train_loss   cross-entropy on `images` training images as they are, the same ones for every snapshot of every recipe of a data set
    accuracy     share of held-out images classified rightly
    sharpness    the largest rise of that loss within distance rho, by 3 ascents (theory.distill.flatness.sharpness: a lower bound)
    lambda_max   largest eigenvalue of that loss's Hessian, by power iterations to one per cent; `residual` bounds its distance to some
                 eigenvalue

Each measurement is a stored trial, so that an interrupted report goes on. Recipes compare at equal train_loss, not at equal epochs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from realdata import figures
from realdata.bridge import Batch, RealImages, Tensors
from realdata.checks import at_least, positive
from realdata.data import source
from realdata.experts.shards import StoredExperts
from realdata.protocol import JUDGE_CHUNK, accuracy
from realdata.second_order import derivatives, forward
from realdata.streaming import Labelled
from realdata.task import stream
from sims.lab.progress import progress
from sims.lab.report import markdown_table
from sims.lab.run import RunFolder
from sims.lab.store import Row
from theory.distill.flatness import lambda_max, sharpness
from theory.distill.leaves import axpy, zeros_like

KIND = "expert quality"
HELD_OUT = 2000  # images of the accuracy
ASCENTS = 3
MEASURES = {
    "train_loss": "loss on training images",
    "accuracy": "held-out accuracy",
    "sharpness": "sharpness",
    "lambda_max": "largest eigenvalue of the Hessian",
}


@dataclass(frozen=True)
class Quality:
    """What is measured of finished experts."""

    measured: int = 5
    """Experts measured, the first ones; 0 for none."""
    snapshots: int = 6
    """Snapshots measured of each, spread evenly from the first to the last."""
    images: int = 512
    """Training images of loss, sharpness and largest eigenvalue."""
    radius: float = 0.1
    """Radius of the sharpness, in units of the weights."""

    def __post_init__(self) -> None:
        at_least(0, measured=self.measured)
        at_least(2, snapshots=self.snapshots)
        at_least(1, images=self.images)
        positive(radius=self.radius)

    def epochs(self, last: int) -> list[int]:
        """The epochs measured of experts of length `last`."""
        return sorted({round(float(e)) for e in np.linspace(0, last, self.snapshots)})


def mean_loss(module: nn.Module, theta: Tensors, judged: Labelled) -> float:
    """Cross-entropy of labelled images as they are."""
    (images, labels), total = judged, 0.0
    with torch.no_grad():
        for part in torch.arange(len(labels)).split(JUDGE_CHUNK):
            total += float(F.cross_entropy(forward(module, theta, images[part]), labels[part], reduction="sum"))
    return total / len(labels)


def measure(real: RealImages, classes: int, held_out: Labelled, theta: Tensors, quality: Quality) -> dict[str, float]:
    """The measures of one snapshot."""
    rng = stream(0, "expert quality")
    rows = np.sort(rng.permutation(len(real.images))[: quality.images])
    picked = torch.from_numpy(rows)
    judged, xi, step = (real.images[picked], real.labels[picked]), Batch(rows, None), derivatives(real.module)

    def loss(at: Tensors) -> float:
        return mean_loss(real.module, at, judged)

    def gradient(at: Tensors) -> Tensors:
        return real.loss_and_gradient(at, xi)[1]

    def product(c: Tensors) -> Tensors:
        total = zeros_like(c)
        for part in torch.arange(len(rows)).split(real.chunk):
            p = F.one_hot(judged[1][part], classes).to(theta[0].dtype)
            total = axpy(len(part) / len(rows), step.products(theta, (judged[0][part],), p, c)[0], total)
        return total

    largest = lambda_max(product, theta, rng, tolerance=1e-2, steps=100)
    return {
        "train_loss": loss(theta),
        "accuracy": accuracy(real, theta, held_out),
        "sharpness": sharpness(loss, gradient, theta, quality.radius, steps=ASCENTS),
        "lambda_max": largest.value,
        "residual": largest.residual,
    }


def rows_of(folder: RunFolder, experts: StoredExperts, real: RealImages, held_out: Labelled, quality: Quality) -> list[Row]:
    """One row a snapshot measured, those stored already taken from the store."""
    classes, epochs, rows = len(source(experts.recipe.dataset).classes), quality.epochs(experts.epochs), []
    with progress(experts.count * len(epochs), "quality") as bar:
        for k, expert in enumerate(experts.numbers):
            for epoch in epochs:
                asked = {"expert": expert, "epoch": epoch, "images": quality.images, "radius": quality.radius}
                row = folder.store.get(KIND, asked)
                if row is None:
                    row = folder.store.put(KIND, asked, measure(real, classes, held_out, experts.snapshot(k, epoch), quality))
                    bar.advance()
                else:
                    bar.skip()
                rows.append(row)
    return rows


def report(folder: RunFolder, experts: StoredExperts, rows: list[Row]) -> str:
    """Writes report.md, summary.json and the figure; gives the table back. Means and standard deviations are over experts."""
    epochs = sorted({row["epoch"] for row in rows})
    mean, std = ({name: [_over(rows, name, epoch, f) for epoch in epochs] for name in MEASURES} for f in (np.mean, _std))
    cells = [[epoch, *(f"{mean[name][i]:.4g} ± {std[name][i]:.2g}" for name in MEASURES)] for i, epoch in enumerate(epochs)]
    table = markdown_table(("epoch", *MEASURES), cells)
    summary = {"experts": experts.count, "recipe": experts.key, "epochs": epochs, "mean": mean, "std": std}
    folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    head = f"# Experts {folder.path.name}\n\n{experts.count} of them, mean ± standard deviation; the recipe is in config.toml.\n\n"
    folder.write("report.md", f"{head}{table}\n![Quality by epoch](figures/quality.png)\n")
    drawn = figures.by_epoch(epochs, {MEASURES[name]: (mean[name], std[name]) for name in MEASURES}, experts.count)
    for kind in ("png", "pdf"):
        folder.write(f"figures/quality.{kind}", figures.render(drawn, kind))
    lines = [",".join(("epoch", "expert", *MEASURES, "residual"))]
    lines += [",".join(str(row[name]) for name in ("epoch", "expert", *MEASURES, "residual")) for row in rows]
    folder.write("figures/quality.csv", "\n".join(lines) + "\n")
    return table


def _over(rows: list[Row], name: str, epoch: int, statistic: Callable[[list[float]], Any]) -> float:
    return float(statistic([row[name] for row in rows if row["epoch"] == epoch]))


def _std(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
