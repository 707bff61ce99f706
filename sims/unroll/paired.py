"""Ratios of two methods on the same tasks, with intervals.

ratio       exp of the mean over tasks of log(one / other), with Student's 95 % interval: below 1, the one has the smaller number
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sims.lab.laws import Interval, mean_interval


@dataclass(frozen=True)
class Ratio:
    """one / other of a number, at one size or step or over all (None), from n tasks."""

    name: str
    at: int | None
    ratio: float
    interval: Interval
    n: int

    @property
    def verdict(self) -> str:
        """In words, whether the interval holds 1."""
        low, high = self.interval
        return "lower" if high < 1.0 else "higher" if low > 1.0 else "no difference resolved"


def log_ratios(name: str, one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """log(one / other), pair by pair; FloatingPointError where a number is not positive and finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(one) - np.log(other)
    if not np.all(np.isfinite(logs)):
        raise FloatingPointError(f"a ratio of {name} needs positive finite numbers: {one} / {other}")
    return logs


def ratio_of(name: str, at: int | None, logs: Float[np.ndarray, " n"]) -> Ratio:
    """From log(one / other) of two tasks or more."""
    mean, (low, high) = mean_interval(logs)
    return Ratio(name, at, math.exp(mean), (math.exp(low), math.exp(high)), len(logs))
