"""Every test leaves the number of threads as it was; a small data set in MNIST's layout, for modules that set COUNTS and ask for `root`
and `small_mnist`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from realdata import data
from tests.realdata.files import write_mnist


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The program sets the number of threads; it is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, with the module's COUNTS of training and test images."""
    folder = tmp_path_factory.mktemp("mnist")
    counts = request.module.COUNTS
    write_mnist(folder, np.random.default_rng(0), counts=(counts["train"], counts["test"]))
    return folder


@pytest.fixture
def small_mnist(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST is expected to hold COUNTS images."""
    monkeypatch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], counts=request.module.COUNTS))
