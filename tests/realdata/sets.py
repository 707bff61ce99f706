"""A small data set in .npy files and a distilled set of it, made up, for tests that need one and no distillation."""

from pathlib import Path

import numpy as np

from realdata import preprocess
from realdata.artefact import DistilledSet, write_set
from realdata.config import DistillConfig
from realdata.networks import ConvNetConfig

NAME = "arrays:1x8x8:4"
CLASSES = 4


def write_arrays(folder: Path, rng: np.random.Generator, train: int = 200, test: int = 80) -> None:
    """Images in four classes of different brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        labels = np.arange(n) % CLASSES
        images = 50 * labels[:, None, None, None] + rng.integers(0, 100, (n, 1, 8, 8))
        np.save(folder / f"{split}-images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}-labels.npy", labels)


def distilled_set(rng: np.random.Generator, *, ipc: int = 2, soft: bool = False, ema: bool = False, transform: str = "standardise"):
    """A distilled set of such data with random images."""
    config = DistillConfig(NAME, ipc=ipc, network=ConvNetConfig(1, 4), transform=transform, horizon=4, window=2, inner_lr=0.01)
    images = rng.standard_normal((CLASSES * ipc, 1, 8, 8)).astype(np.float32)
    labels = np.repeat(np.arange(CLASSES), ipc)
    if soft:
        logits = 3.0 * np.eye(CLASSES)[labels] + rng.standard_normal((len(labels), CLASSES))
        labels = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    fitted = preprocess.fit(transform, rng.integers(0, 256, (100, 1, 8, 8), dtype=np.uint8))
    return DistilledSet(images, labels, fitted, config, tuple("wxyz"), images_ema=images + np.float32(0.5) if ema else None)


def write_run(folder: Path, distilled: DistilledSet) -> Path:
    """The set as a run leaves it, in FOLDER/distilled."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_set(folder / "distilled", distilled, None, note="Made up.")
