"""A distilled set holds what its description says: numbers, labels and transform of the data set, or it is refused, whoever made it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realdata.artefact import read_set
from realdata.preprocess import Standardise
from sims.lab.artefact import read_artefact, write_artefact
from sims.lab.files import RunError
from tests.realdata.sets import CLASSES, distilled_set, write_run

NUMBERS = np.repeat(np.arange(CLASSES), 2)
ROWS = np.full((8, CLASSES), 0.25, dtype=np.float32)
IMAGES = np.zeros((8, 1, 8, 8), dtype=np.float32)


def changed(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


LABELS = {
    "a number beyond the classes": changed(NUMBERS, 7, 77),
    "a negative number": changed(NUMBERS, 0, -1),
    "another order": NUMBERS[::-1].copy(),
    "one class too often": changed(NUMBERS, 2, 0),
    "floating-point numbers": NUMBERS.astype(np.float32),
    "bytes": NUMBERS.astype(np.uint8),
    "rows of numbers": ROWS.astype(np.int64),
    "a negative probability": changed(changed(ROWS, (1, 0), -0.25), (1, 1), 0.75),
    "another sum": changed(ROWS, (1, 0), 0.5),
    "zeros": np.zeros_like(ROWS),
}
IMAGE_FAULTS = {"NaN": changed(IMAGES, (3, 0, 1, 1), np.nan), "infinite": changed(IMAGES, 0, np.inf), "double": IMAGES.astype(np.float64)}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_none_are_refused(kind: str):
    with pytest.raises(RunError, match="labels must be"):
        replace(distilled_set(np.random.default_rng(0)), labels=LABELS[kind])


def test_labels_are_refused_when_they_are_read(tmp_path: Path):
    """The files are those of a sound set but for one number, and sealed again."""
    write_run(tmp_path / "run", distilled_set(np.random.default_rng(0)))
    sound = read_artefact(tmp_path / "run" / "distilled")
    labels = changed(sound.data["labels"], 7, 77)
    tensors = {**sound.tensors, "data.safetensors": {**sound.data, "labels": labels}}
    write_artefact(tmp_path / "other", tensors, sound.card, sound.config)
    with pytest.raises(RunError, match=r"other: labels must be the class numbers 0 \.\. 3, 2 of each"):
        read_set(tmp_path / "other")


def test_probabilities_may_be_rounded():
    rows = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 8)
    for kind in (np.float64, np.float32, np.float16):
        replace(distilled_set(np.random.default_rng(0)), labels=rows.astype(kind))


@pytest.mark.parametrize("kind", IMAGE_FAULTS)
@pytest.mark.parametrize("name", ["images", "images_ema"])
def test_images_must_be_finite_numbers(kind: str, name: str):
    with pytest.raises(RunError, match=f"{name} must be finite float32"):
        replace(distilled_set(np.random.default_rng(0), ema=True), **{name: IMAGE_FAULTS[kind]})


def test_the_transform_must_be_one_of_its_images():
    three = np.ones(3, dtype=np.float32)
    with pytest.raises(RunError, match="the transform's mean"):
        replace(distilled_set(np.random.default_rng(0)), transform=Standardise(three, three))
