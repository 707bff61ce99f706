"""`python -m realdata compare`: arms of truncated backpropagation side by side, at equal outer steps and at equal time."""

from realdata.compare.command import run
from realdata.compare.experiment import Comparison

__all__ = ["Comparison", "run"]
