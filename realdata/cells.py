"""Presets, a row a cell: published settings (for a GPU), and small ones of trajectory matching for a processor.

    rat-DATASET-ipcN   RaT-BPTT: Feng, Vedantam, Kempe (arXiv:2311.07025), scripts of the released code
    at-DATASET-ipcN    AT-BPTT: Li et al. (arXiv:2510.04838), T, M, d of the released code; all else as in RaT-BPTT's cell: they compare
    t-DATASET-ipcN     a window with a fixed end: the scripts that RaT-BPTT's authors added later for stable runs
    mtt-DATASET-ipcN   Cazenavette et al. 2022 (arXiv:2203.11932); values as handed on by DC-Bench, since the authors' table is a picture
    ftd-DATASET-ipcN   Du et al. 2023 (arXiv:2211.11004), Table 7; for ImageNet subsets an answer of the authors (their tracker, number 3)
    mtt-cpu, ftd-cpu   ours: a narrow network on a tenth of CIFAR-10; they differ in their experts alone

A cell of trajectory matching gives two groups of settings, one for `distill` and one for the `experts` that it asks for, so that one name
serves both commands. The subsets of ImageNet share a cell: imagenette unless --dataset names another.

Truncated backpropagation, where sources are silent: T and M of RaT-BPTT are known for ten images a class, and taken for 1 and 50; so are
the batch of CIFAR-10 and CIFAR-100 with 50, and the rate of Tiny ImageNet with 1. The released runs have no fixed end (6000 outer steps are
ours), and AT-BPTT's takes real batches of 1000 on CIFAR-100. ImageNet at 64 pixels: T and M of the stabilised script for all three methods,
d from AT-BPTT++. AT-BPTT's temperature and the accuracy behind its stages were not found: temperature 1 of standardised scores and stages
by the learning curve are ours.

Trajectory matching, where sources conflict or are silent: MTT at CIFAR-10 with 10 images also goes by (1e4 or 1e5, 1e-4, 1e-2) for the
three rates, the subsets of ImageNet also by 1e3 for the images; FTD's ZCA is known for 10 images alone and MTT's elsewhere; FTD's step size
for the subsets is given as 0.01 and 0.001, and 0.01 taken. Ours, not theirs: a tenth of the training images held out, partial batches drawn
anew at every step (theirs pass through the set), a step size that stays positive and at most doubles or halves in an update. FTD's flat
experts are those of its released code (GSAM with the adaptive ball); its equations have the Euclidean one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sims.lab.files import RunError
from sims.lab.options import chosen_preset, options, with_preset


class Unrolled(NamedTuple):
    """T; M of RaT-BPTT; M and d of AT-BPTT; images of a class and classes of a step (None: all); learned labels; real batch; outer rate."""

    horizon: int
    window: int
    base: int
    spread: int
    per_class: int | None
    classes: int | None
    labels: bool
    real_batch: int
    outer_lr: float


UNROLLED = {
    ("cifar10", 1): Unrolled(200, 60, 40, 10, None, None, False, 5000, 1e-3),
    ("cifar10", 10): Unrolled(200, 60, 40, 10, None, None, False, 5000, 1e-3),
    ("cifar10", 50): Unrolled(200, 60, 40, 10, 10, None, False, 5000, 1e-3),
    ("cifar100", 1): Unrolled(300, 100, 100, 20, None, None, True, 5000, 3e-4),
    ("cifar100", 10): Unrolled(300, 100, 100, 20, 1, None, True, 5000, 1e-3),
    ("cifar100", 50): Unrolled(300, 100, 100, 20, 1, None, True, 5000, 1e-3),
    ("tiny-imagenet", 1): Unrolled(300, 100, 100, 30, None, 50, True, 1000, 3e-4),
    ("tiny-imagenet", 10): Unrolled(300, 100, 100, 30, 1, 50, True, 1000, 3e-4),
    ("imagenet1k-64", 1): Unrolled(280, 80, 80, 40, None, 50, True, 1500, 3e-4),
}
FIXED_END = {  # T, M, real batch
    ("cifar100", 1): (130, 90, 5000),
    ("tiny-imagenet", 10): (270, 90, 2000),
    ("imagenet1k-64", 1): (280, 80, 1500),
}


class Cell(NamedTuple):
    """T steps on the set for M epochs of an expert; start epochs below T+; images a step; learning rates; FTD's alpha and decay."""

    horizon: int
    length: int
    high: int
    batch: int | None
    zca: bool
    image_lr: float
    step_lr: float
    inner_lr: float
    alpha: float | None = None
    ema: float | None = None


MTT = {
    ("cifar10", 1): Cell(50, 2, 2, None, True, 1e2, 1e-7, 1e-2),
    ("cifar10", 10): Cell(30, 2, 20, None, True, 1e2, 1e-5, 1e-3),
    ("cifar10", 50): Cell(30, 2, 40, None, False, 1e3, 1e-5, 1e-3),
    ("cifar100", 1): Cell(20, 3, 20, None, True, 1e3, 1e-5, 1e-2),
    ("cifar100", 10): Cell(20, 2, 20, None, False, 1e3, 1e-5, 1e-2),
    ("cifar100", 50): Cell(80, 2, 40, 125, True, 1e3, 1e-5, 1e-2),
    ("tiny-imagenet", 1): Cell(10, 2, 10, None, False, 1e4, 1e-4, 1e-2),
    ("tiny-imagenet", 10): Cell(20, 2, 40, 200, False, 1e4, 1e-4, 1e-2),
    ("tiny-imagenet", 50): Cell(20, 2, 40, 300, False, 1e4, 1e-4, 1e-2),
    ("imagenette", 1): Cell(20, 2, 10, None, False, 1e5, 1e-6, 1e-2),
    ("imagenette", 10): Cell(20, 2, 10, 20, False, 1e5, 1e-6, 1e-2),
}
FTD = {
    ("cifar10", 1): Cell(50, 2, 2, None, True, 1e2, 1e-7, 1e-2, 0.3, 0.9999),
    ("cifar10", 10): Cell(30, 2, 20, None, True, 1e2, 1e-5, 1e-3, 0.3, 0.9995),
    ("cifar10", 50): Cell(30, 2, 40, None, False, 1e3, 1e-5, 1e-2, 1.0, 0.999),
    ("cifar100", 1): Cell(40, 3, 20, None, True, 1e3, 1e-5, 1e-2, 1.0, 0.9995),
    ("cifar100", 10): Cell(20, 2, 40, None, True, 1e3, 1e-5, 1e-2, 1.0, 0.9995),
    ("cifar100", 50): Cell(80, 2, 40, 1000, True, 1e3, 1e-5, 1e-2, 1.0, 0.999),
    ("tiny-imagenet", 1): Cell(30, 2, 10, None, False, 1e4, 1e-4, 1e-2, 1.0, 0.999),
    ("tiny-imagenet", 10): Cell(20, 2, 40, 500, False, 1e4, 1e-4, 1e-2, 1.0, 0.999),
    ("imagenette", 1): Cell(20, 2, 10, None, False, 1e4, 1e-4, 1e-2, 1.0, 0.999),
    ("imagenette", 10): Cell(20, 2, 10, 64, False, 1e4, 1e-4, 1e-2, 1.0, 0.999),
}
DEPTH = {"cifar10": 3, "cifar100": 3, "tiny-imagenet": 4, "imagenet1k-64": 4, "imagenette": 5}
RHO = 0.01  # FTD's radius, everywhere
PRINTED = {name: f"published-{name}" for name in ("cifar10", "cifar100", "tiny-imagenet")}

Settings = Mapping[str, Any]


def _unrolled(dataset: str, ipc: int, cell: Unrolled, method: str, **windows: Any) -> Settings:
    """A cell under one of its methods; `windows` says what the method changes."""
    steps = {"batch_per_class": cell.per_class, "classes_per_step": cell.classes}
    judges = {"curve_every": 100, "curve_networks": 8 if dataset == "cifar10" else 4, "curve_images": 5000}
    return {
        "dataset": dataset,
        "method": method,
        "ipc": ipc,
        "network": {"depth": DEPTH[dataset], "width": 128},
        "transform": "standardise" if dataset.startswith("imagenet") else "zca",
        "learn_labels": cell.labels,
        "horizon": cell.horizon,
        "window": cell.window,
        "inner_lr": 1e-3,
        "outer_lr": cell.outer_lr,
        "outer_steps": 6000,
        "real_batch": cell.real_batch,
        "chunk": 500,
        "compiled": True,
        **{name: value for name, value in steps.items() if value is not None},
        **judges,
        **windows,
    }


def _unrolled_presets() -> dict[str, dict[str, Settings]]:
    found = {}
    for (dataset, ipc), cell in UNROLLED.items():
        name = f"{dataset}-ipc{ipc}"
        found[f"rat-{name}"] = _unrolled(dataset, ipc, cell, "rat-bptt")
        found[f"at-{name}"] = _unrolled(dataset, ipc, cell, "at-bptt", window=cell.base, adaptive={"spread": cell.spread})
        if (dataset, ipc) in FIXED_END:
            horizon, window, real_batch = FIXED_END[dataset, ipc]
            changed = {"horizon": horizon, "window": window, "real_batch": real_batch}
            found[f"t-{name}"] = _unrolled(dataset, ipc, cell, "t-bptt", **changed)
    return {name: {"distill": settings} for name, settings in found.items()}


def _both(dataset: str, cell: Cell) -> dict[str, Any]:
    """What experts and distillation share."""
    network = {"depth": DEPTH[dataset], "width": 128}
    transform = "zca-mtt" if cell.zca else PRINTED.get(dataset, "published-imagenet")
    return {"dataset": dataset, "transform": transform, "network": network, "chunk": 512}


def _experts(dataset: str, cell: Cell) -> Settings:
    flat = {} if cell.alpha is None else {"flat": {"rho": RHO, "alpha": cell.alpha, "ball": "adaptive"}}
    return _both(dataset, cell) | {"count": 100, "epochs": 50, "batch": 256, "lr": 0.01} | flat


def _distil(dataset: str, ipc: int, method: str, cell: Cell) -> Settings:
    segments = {"experts": 100, "length": cell.length, "high": cell.high, "curve_steps": 1000}
    rates = {"image_lr": cell.image_lr, "step_lr": cell.step_lr}
    optional = {name: value for name, value in (("batch", cell.batch), ("ema", cell.ema)) if value is not None}
    loop = {"method": method, "ipc": ipc, "init": "real", "inner": "sgd", "inner_lr": cell.inner_lr, "horizon": cell.horizon}
    length = {"outer_steps": 5000, "curve_every": 500, "curve_images": 5000}
    return _both(dataset, cell) | loop | length | {"trajectory": segments | rates | optional}


_SMALL = {"dataset": "cifar10", "transform": "standardise", "held_out": 0.9, "network": {"depth": 3, "width": 16}}
_SMALL_EXPERTS = _SMALL | {"count": 6, "epochs": 8, "batch": 64, "lr": 0.05}
_SMALL_SEGMENTS = {"experts": 6, "length": 1, "high": 4, "image_lr": 1000.0, "step_lr": 1e-5, "ema": 0.98, "curve_steps": 200}
_SMALL_DISTIL = _SMALL | {"init": "real", "inner": "sgd", "inner_lr": 0.02, "horizon": 20, "outer_steps": 300, "curve_every": 75}
_SMALL_FLAT: dict[str, Any] = {"flat": {"rho": 0.05, "alpha": 0.3}}

PRESETS: dict[str, dict[str, Settings]] = (
    {
        f"{method}-{dataset}-ipc{ipc}": {"experts": _experts(dataset, cell), "distill": _distil(dataset, ipc, method, cell)}
        for method, cells in (("mtt", MTT), ("ftd", FTD))
        for (dataset, ipc), cell in cells.items()
    }
    | {
        f"{method}-cpu": {"experts": _SMALL_EXPERTS | flat, "distill": _SMALL_DISTIL | {"method": method, "trajectory": _SMALL_SEGMENTS}}
        for method, flat in (("mtt", {}), ("ftd", _SMALL_FLAT))
    }
    | _unrolled_presets()
)


def with_cell(words: Sequence[str], folders: Mapping[str, Path]) -> list[str]:
    """The words with the options of their --preset put in behind the command: of a cell, or of a file in the command's folder."""
    name = chosen_preset(words) or ""
    if name in PRESETS and words[0] in PRESETS[name]:
        return [words[0], *options(PRESETS[name][words[0]]), *words[1:]]
    cells, folder = known(words[0] if words else ""), folders.get(words[0] if words else "")
    files = [] if folder is None else sorted(path.stem for path in folder.glob("*.toml"))
    if name and cells and not name.endswith(".toml") and name not in files:
        raise RunError(f"unknown preset {name!r}: choose one of {', '.join([*files, *cells])}")
    return with_preset(words, folders)


def known(command: str) -> list[str]:
    """The cells of a command."""
    return [name for name, groups in PRESETS.items() if command in groups]
