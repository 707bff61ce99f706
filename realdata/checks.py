"""Conditions on settings, each broken one told in a line that names the value seen and the mend."""

import math
from collections.abc import Iterable

from sims.lab.files import RunError


def positive(**values: float) -> None:
    """Every value is positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise RunError(f"{name} must be positive and finite: {name}={value}")


def at_least(least: int, **values: int) -> None:
    """No value is below `least`."""
    for name, value in values.items():
        if value < least:
            raise RunError(f"{name} must be at least {least}: {name}={value}")


def one_of(known: Iterable[str], **values: str) -> None:
    """Every value is one of `known`."""
    known = tuple(known)
    for name, value in values.items():
        if value not in known:
            raise RunError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")


def share(**values: float) -> None:
    """Every value lies strictly between 0 and 1."""
    for name, value in values.items():
        if not 0.0 < value < 1.0:
            raise RunError(f"{name} must lie strictly between 0 and 1: {name}={value}")
