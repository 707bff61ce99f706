"""A distilled image set as others receive it: images, labels, the transform they live behind, and the card that says what they are."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from realdata import figures
from realdata.checkpoint import CurvePoint
from realdata.checks import positive
from realdata.config import DistillConfig, as_settings, stored_config
from realdata.data import source
from realdata.networks import convnet, parameter_count
from realdata.preprocess import PUBLISHED, Transform, check_transform, load_transform
from realdata.task import augmentation
from sims.lab.artefact import SUMS, read_artefact, write_artefact
from sims.lab.files import RunError
from sims.lab.store import package_version
from theory.distill.inner_optim import InnerOptimiser

FOLDER = "distilled"  # the artefact's place in a run folder
OPTIONAL = ("step_size", "images_ema", "step_size_ema")
TENSORS = ("images", "labels", *OPTIONAL)
ROUNDING = 1e-3  # of a sum of probabilities in half precision

CARD = """# {title}

A synthetic training set: a network trained on these {count} images alone classifies real {dataset} images.

| | |
|---|---|
| method | {method} |
| network | ConvNet depth {depth}, width {width}, {norm} norm, {pooling} pooling: {parameters} parameters |
| training on it | {inner}, learning rate {inner_lr}, warps: {augment} |
| storage | {floats} floats of images, {label_floats} of labels |
| held-out accuracy | {accuracy} |

{selection} `python -m realdata evaluate` measures it.

## Content

`data.safetensors`: `images` ({shape}, float32, transformed units, classes in order) and `labels` ({labels}){more}.
`transform.safetensors`: the {transform} transform, {fitted}; new images pass through it before a network sees them.
`grid.png`: the images turned back to intensities, each stretched to the full range. Classes: {classes}.

## Limits

Made for the network and the training above; other networks and lengths do worse. The images carry traces of real training images, whose
terms of use go on applying. Written by distillation-laws {version}; `config.toml` holds every setting.
"""


MEASURED = "{mean:.1f} % (std {std:.1f} over {networks} networks, {steps} steps), at outer step {best}"
SELECTED = (
    "The held-out images are part of the training split. They chose among {points} outer steps, so the figure above leans upwards; the\n"
    "test split was not read."
)


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """What a network is trained on.

    images     (n, channels, height, width) float32 in transformed units, class-major
    labels     (n,) int64, ascending, or (n, classes) probabilities
    classes    their names; those of the data set by default
    step_size  learned learning rate of training on the set, None: the configuration's
    images_ema the running average (EMA) of the images, shaped as they are, None where the run kept none; chosen by itself
    step_size_ema  the learned learning rate of training on that
    """

    images: np.ndarray
    labels: np.ndarray
    transform: Transform
    config: DistillConfig
    classes: tuple[str, ...] = ()
    step_size: float | None = None
    images_ema: np.ndarray | None = None
    step_size_ema: float | None = None

    def __post_init__(self) -> None:
        known = source(self.config.dataset)
        object.__setattr__(self, "classes", self.classes or known.classes)
        n, classes = self.config.ipc * len(known.classes), len(known.classes)
        if self.images.shape != (n, *known.shape) or self.labels.shape not in ((n,), (n, classes)):
            raise RunError(
                f"images {self.images.shape} and labels {self.labels.shape} do not fit {self.config.dataset} at {self.config.ipc} per class"
            )
        if len(self.classes) != classes:
            raise RunError(f"{self.config.dataset} has {classes} classes, the distilled set names {len(self.classes)}")
        if self.images_ema is not None and self.images_ema.shape != self.images.shape:
            raise RunError(f"images_ema {self.images_ema.shape} must be shaped as the images {self.images.shape}")
        for name, x in (("images", self.images), ("images_ema", self.images if self.images_ema is None else self.images_ema)):
            if x.dtype != np.float32 or not np.isfinite(x).all():
                raise RunError(f"{name} must be finite float32 numbers, found {x.dtype}: make the set again")
        _check_labels(self.labels, classes, self.config.ipc)
        check_transform(self.transform, known.shape)
        for name in ("step_size", "step_size_ema"):
            if (value := getattr(self, name)) is not None:
                positive(**{name: value})

    def optimiser(self, average: bool = False) -> InnerOptimiser:
        """The optimiser of training on the set, or on the running average, as in the measurements of its distillation."""
        own = self.config.inner_lr if self.step_size is None else self.step_size
        rate = self.step_size_ema if average and self.step_size_ema is not None else own
        return replace(cast(Any, self.config.judging(rate)[0]), lr=rate)

    def data(self) -> dict[str, np.ndarray]:
        """The tensors of data.safetensors."""
        optional = {name: getattr(self, name) for name in OPTIONAL}
        return {"images": self.images, "labels": self.labels} | {name: np.asarray(x) for name, x in optional.items() if x is not None}


def _check_labels(labels: np.ndarray, classes: int, ipc: int) -> None:
    if labels.ndim == 1:
        if labels.dtype != np.int64 or not np.array_equal(labels, np.repeat(np.arange(classes), ipc)):
            raise RunError(f"labels must be the class numbers 0 .. {classes - 1}, {ipc} of each, ascending, as int64: make the set again")
    elif labels.dtype.kind != "f" or not (labels >= 0.0).all() or not (abs(labels.sum(axis=1, dtype=np.float64) - 1.0) < ROUNDING).all():
        raise RunError("labels must be rows of probabilities, >= 0 with sum 1: make the set again")


def write_set(place: Path, distilled: DistilledSet, best: CurvePoint | None, points: int = 0, note: str = "") -> Path:
    """Writes the artefact folder; an older one there is replaced when the new one is complete.

    best, points  the measurement that chose the set, and how many there were; without one the set was not distilled here, and `note` says
                  where it comes from
    """
    config, known = distilled.config, source(distilled.config.dataset)
    grid = figures.image_grid(distilled.transform.invert(distilled.images), distilled.classes)
    soft = distilled.labels.ndim == 2
    title = f"{config.dataset}, {config.ipc} image{'s' if config.ipc > 1 else ''} per class"
    method, accuracy, selection = "unknown", "not measured", f"{note} The test split was not read."
    if best is not None:
        title = f"{title}, {config.method}"
        method = f"{config.method}, T = {config.horizon}, {_reach(config)}, {config.outer_steps} outer steps, seed {config.seed}"
        networks, (_, steps) = config.curve_networks, config.judging(config.inner_lr)
        accuracy = MEASURED.format(mean=100 * best.mean, std=100 * best.std, networks=networks, steps=steps, best=best.step)
        selection = SELECTED.format(points=points)
    card = CARD.format(
        title=title,
        count=len(distilled.images),
        dataset=config.dataset,
        method=method,
        depth=config.network.depth,
        width=config.network.width,
        norm=config.network.norm,
        pooling=config.network.pooling,
        parameters=parameter_count(convnet(config.network, known.shape, len(known.classes))),
        inner=type(distilled.optimiser()).__name__,
        inner_lr=f"{distilled.optimiser().lr:.6g}" + (" (learned)" if distilled.step_size is not None else ""),
        augment=augmentation(config).name,
        floats=distilled.images.size,
        label_floats=distilled.labels.size if soft else 0,
        accuracy=accuracy,
        selection=selection,
        shape="x".join(map(str, distilled.images.shape)),
        labels="probabilities of each class" if soft else "class numbers",
        transform=config.transform,
        fitted="with printed figures" if config.transform in PUBLISHED else "fitted on real training images",
        more="" if distilled.images_ema is None else "; `images_ema`, their running average, is another set with the same labels",
        classes=", ".join(distilled.classes),
        version=package_version(),
    )
    tensors = {"data.safetensors": distilled.data(), "transform.safetensors": distilled.transform.tensors()}
    settings = as_settings(config) | {"classes": list(distilled.classes)}
    return write_artefact(place, tensors, card, settings, {"grid.png": figures.render(grid, "png")}, replace=True)


def _reach(config: DistillConfig) -> str:
    """What of its T steps a method differentiates or matches, for the card."""
    t = config.trajectory
    if config.trajectories:
        return f"{t.experts} experts, M = {t.length} of their epochs from starts below {t.high}"
    return f"M = {config.horizon if config.method == 'bptt' else config.window}"


def find_set(place: Path) -> Path:
    """The artefact folder: `place` itself, or the one in the run folder `place`."""
    return next((folder for folder in (place, place / FOLDER) if (folder / SUMS).is_file()), place)


def read_set(place: Path) -> DistilledSet:
    """The distilled set in an artefact folder or in a run folder, checksums and shapes verified."""
    folder = find_set(place)
    artefact = read_artefact(folder)
    settings = dict(artefact.config)
    classes = settings.pop("classes", [])
    config = stored_config(settings, str(folder / "config.toml"))
    data = dict(artefact.data)
    if not {"images", "labels"} <= data.keys() <= set(TENSORS) or "transform.safetensors" not in artefact.tensors:
        raise RunError(f"{folder} must hold images, labels and a transform: this is no distilled image set")
    step = data.get("step_size")
    transform = load_transform(artefact.tensors["transform.safetensors"])
    try:
        return DistilledSet(
            data["images"],
            data["labels"],
            transform,
            config,
            tuple(map(str, classes)),
            None if step is None else float(step),
            data.get("images_ema"),
            None if (average_step := data.get("step_size_ema")) is None else float(average_step),
        )
    except (RunError, TypeError) as error:
        raise RunError(f"{folder}: {error}") from error
