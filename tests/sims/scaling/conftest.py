"""The planted experiment and its laws, measured once a module."""

import pytest

from sims.scaling import laws as scaling_laws
from tests.sims.scaling.planted import SMALL, planted


@pytest.fixture(scope="module")
def true_rows():
    return planted()


@pytest.fixture(scope="module")
def laws(true_rows):
    return scaling_laws.measure(SMALL, true_rows, resamples=120)
