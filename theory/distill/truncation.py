"""Truncation: which steps of an unroll are differentiated.

A window [start, stop) of an unroll of at most `horizon` steps: `start` plain steps, then stop - start differentiated ones; the
objective is read at theta_stop and nothing runs after it. A policy draws one window an outer step.

    FullWindow     [0, T)                                   BPTT
    FixedWindow    [start, start + M)                       T-BPTT (start = T - M unless given)
    RandomWindow   [c, c + M), c uniform on {first..T - M}  RaT-BPTT (Feng, Vedantam, Kempe, arXiv:2311.07025, section 3)
                   with a spread d > 0, M is drawn first, uniform on {M - d..M + d}: a control of adaptive lengths, ours
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Window:
    """The differentiated steps [start, stop)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a window needs 0 <= start < stop: start={self.start}, stop={self.stop}")

    @property
    def length(self) -> int:
        """Number of differentiated steps."""
        return self.stop - self.start


@runtime_checkable
class WindowPolicy(Protocol):
    """Draws one window an outer step."""

    @property
    def horizon(self) -> int:
        """The longest unroll T in steps; every drawn window has stop <= T."""
        ...

    def draw(self, rng: np.random.Generator) -> Window:
        """The window of one outer step."""
        ...


def _check(horizon: int, length: int, start: int) -> None:
    if horizon < 1:
        raise ValueError(f"the unroll must have at least one step: horizon={horizon}")
    if not 1 <= length <= horizon:
        raise ValueError(f"the window must have between 1 and horizon={horizon} steps: length={length}")
    if not 0 <= start <= horizon - length:
        raise ValueError(f"the window start must lie in [0, {horizon - length}]: start={start}")


@dataclass(frozen=True)
class FullWindow:
    """Every step is differentiated."""

    horizon: int

    def __post_init__(self) -> None:
        _check(self.horizon, self.horizon, 0)

    def draw(self, rng: np.random.Generator) -> Window:
        return Window(0, self.horizon)


@dataclass(frozen=True)
class FixedWindow:
    """The same window every time; by default the last `length` steps."""

    horizon: int
    length: int
    start: int | None = None

    def __post_init__(self) -> None:
        _check(self.horizon, self.length, 0 if self.start is None else self.start)

    def draw(self, rng: np.random.Generator) -> Window:
        start = self.horizon - self.length if self.start is None else self.start
        return Window(start, start + self.length)


@dataclass(frozen=True)
class RandomWindow:
    """A window of a length within `spread` of `length`, its start uniform on {first, ..., horizon - its length}."""

    horizon: int
    length: int
    first: int = 0
    spread: int = 0

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise ValueError(f"the spread of window lengths must be >= 0: spread={self.spread}")
        for length in (self.length - self.spread, self.length + self.spread):
            _check(self.horizon, length, self.first)

    def draw(self, rng: np.random.Generator) -> Window:
        length = self.length
        if self.spread:
            length += int(rng.integers(-self.spread, self.spread + 1))
        start = int(rng.integers(self.first, self.horizon - length + 1))
        return Window(start, start + length)
