"""A distilled image set as others receive it: images, labels, the transform they live behind, and the card that says what they are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realdata import figures
from realdata.checkpoint import CurvePoint
from realdata.config import DistillConfig, as_settings, stored_config
from realdata.data import source
from realdata.networks import convnet, parameter_count
from realdata.preprocess import Transform, load_transform
from realdata.task import augmentation
from sims.lab.artefact import SUMS, read_artefact, write_artefact
from sims.lab.files import RunError
from sims.lab.store import package_version

FOLDER = "distilled"  # the artefact's place in a run folder

CARD = """# {title}

A synthetic training set: a network trained on these {count} images alone classifies real {dataset} images.

| | |
|---|---|
| method | {method}, T = {horizon}, M = {window}, {steps} outer steps, seed {seed} |
| network | ConvNet depth {depth}, width {width}, {norm} norm, {pooling} pooling: {parameters} parameters |
| training on it | {inner}, learning rate {inner_lr}, warps: {augment} |
| storage | {floats} floats of images, {label_floats} of labels |
| held-out accuracy | {mean:.1f} % (std {std:.1f} over {networks} networks, {horizon} steps), at outer step {best} |

The held-out images are part of the training split. They chose among {points} outer steps, so the figure above leans upwards; the test
split was not read. `python -m realdata evaluate` measures it.

## Content

`data.safetensors`: `images` ({shape}, float32, transformed units, classes in order) and `labels` ({labels}).
`transform.safetensors`: the {transform} transform fitted on real training images; new images pass through it before a network sees them.
`grid.png`: the images turned back to intensities, each stretched to the full range. Classes: {classes}.

## Limits

Made for the network and the training above; other networks and lengths do worse. The images carry traces of real training images, whose
terms of use go on applying. Made by distillation-laws {version}; `config.toml` holds every setting.
"""


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """images (n, channels, height, width) float32 in transformed units, class-major; labels (n,) int64 or (n, classes) probabilities."""

    images: np.ndarray
    labels: np.ndarray
    transform: Transform
    config: DistillConfig


def write_set(place: Path, distilled: DistilledSet, best: CurvePoint, points: int) -> Path:
    """Writes the artefact folder; an older one there is replaced when the new one is complete."""
    config, known = distilled.config, source(distilled.config.dataset)
    grid = figures.image_grid(distilled.transform.invert(distilled.images), known.classes)
    soft = distilled.labels.ndim == 2
    card = CARD.format(
        title=f"{config.dataset}, {config.ipc} image{'s' if config.ipc > 1 else ''} per class, {config.method}",
        count=len(distilled.images),
        dataset=config.dataset,
        method=config.method,
        horizon=config.horizon,
        window=config.horizon if config.method == "bptt" else config.window,
        steps=config.outer_steps,
        seed=config.seed,
        depth=config.network.depth,
        width=config.network.width,
        norm=config.network.norm,
        pooling=config.network.pooling,
        parameters=parameter_count(convnet(config.network, known.shape, len(known.classes))),
        inner=config.inner,
        inner_lr=config.inner_lr,
        augment=augmentation(config).name,
        floats=distilled.images.size,
        label_floats=distilled.labels.size if soft else 0,
        mean=100 * best.mean,
        std=100 * best.std,
        networks=config.curve_networks,
        best=best.step,
        points=points,
        shape="x".join(map(str, distilled.images.shape)),
        labels="probabilities of each class" if soft else "class numbers",
        transform=config.transform,
        classes=", ".join(known.classes),
        version=package_version(),
    )
    tensors = {
        "data.safetensors": {"images": distilled.images, "labels": distilled.labels},
        "transform.safetensors": distilled.transform.tensors(),
    }
    return write_artefact(place, tensors, card, as_settings(config), {"grid.png": figures.render(grid, "png")}, replace=True)


def find_set(place: Path) -> Path:
    """The artefact folder: `place` itself, or the one in the run folder `place`."""
    return next((folder for folder in (place, place / FOLDER) if (folder / SUMS).is_file()), place)


def read_set(place: Path) -> DistilledSet:
    """The distilled set in an artefact folder or in a run folder, checksums and shapes verified."""
    folder = find_set(place)
    artefact = read_artefact(folder)
    config = stored_config(artefact.config, str(folder / "config.toml"))
    known = source(config.dataset)
    if set(artefact.data) != {"images", "labels"} or "transform.safetensors" not in artefact.tensors:
        raise RunError(f"{folder} must hold images, labels and a transform: this is no distilled image set")
    images, labels, count = artefact.data["images"], artefact.data["labels"], config.ipc * len(known.classes)
    if images.shape != (count, *known.shape) or labels.shape not in ((count,), (count, len(known.classes))):
        raise RunError(f"{folder}: images {images.shape} and labels {labels.shape} do not fit {config.dataset} at {config.ipc} per class")
    return DistilledSet(images, labels, load_transform(artefact.tensors["transform.safetensors"]), config)
