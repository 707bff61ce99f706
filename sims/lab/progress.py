"""Progress of a known number of steps: a live bar on a terminal, elsewhere one plain line every 30 seconds; never both.

rate = steps done here / time since the start,   time left = steps to go / rate      (steps found done already do not count)
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast, runtime_checkable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

EVERY = 30.0  # seconds between plain lines

Clock = Callable[[], float]


@runtime_checkable
class Stream(Protocol):
    """Any text stream: a terminal, a file, a StringIO, or whatever stands in for stderr."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


@runtime_checkable
class Bar(Protocol):
    """What a piece of work reports to."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """n more steps are done; `note` replaces the remark shown behind them."""
        ...

    def skip(self, n: int = 1) -> None:
        """n steps were done before this run: they count as done, not as speed."""
        ...


class Silent:
    """A Bar that shows nothing."""

    def advance(self, n: int = 1, note: str = "") -> None:
        pass

    def skip(self, n: int = 1) -> None:
        pass


class Meter:
    """The arithmetic of a Bar, and the place it hands each new state to."""

    def __init__(self, total: int, clock: Clock, show: Callable[["Meter"], None]) -> None:
        self.total, self.clock, self.show = total, clock, show
        self.done = self.skipped = 0
        self.note = ""
        self.start = clock()

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        self.show(self)

    def skip(self, n: int = 1) -> None:
        self.done += n
        self.skipped += n
        self.show(self)

    def elapsed(self) -> float:
        return self.clock() - self.start

    def rate(self) -> float | None:
        """Steps a second, None before there is anything to tell."""
        worked, elapsed = self.done - self.skipped, self.elapsed()
        return worked / elapsed if worked > 0 and elapsed > 0 else None

    def status(self) -> str:
        rate = self.rate()
        speed = "" if rate is None else f", {_speed(rate)}, {duration((self.total - self.done) / rate)} left"
        return f"{self.done}/{self.total}{speed}{', ' + self.note if self.note else ''}"


@contextmanager
def progress(total: int, label: str, *, stream: Stream | None = None, clock: Clock = time.monotonic) -> Iterator[Meter]:
    """A Bar over `total` steps named `label`, on `stream` (stderr). A last plain line says how many were done in what time."""
    out: Stream = sys.stderr if stream is None else stream
    if out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        with _live(total, label, out, clock) as meter:
            yield meter
    else:
        meter = Meter(total, clock, _Lines(label, out, clock))
        try:
            yield meter
        finally:
            # No time left to tell at the end: say what was done and how long it took.
            out.write(f"{label}: {meter.done}/{total} in {duration(meter.elapsed())}{', ' + meter.note if meter.note else ''}\n")
            out.flush()


class _Lines:
    def __init__(self, label: str, stream: Stream, clock: Clock) -> None:
        self.label, self.stream, self.clock = label, stream, clock
        self.last = clock()

    def __call__(self, meter: Meter) -> None:
        if self.clock() - self.last >= EVERY and meter.done < meter.total:
            self.last = self.clock()
            self.stream.write(f"{self.label}: {meter.status()}\n")
            self.stream.flush()


@contextmanager
def _live(total: int, label: str, stream: Stream, clock: Clock) -> Iterator[Meter]:
    console = Console(file=cast(IO[str], stream), force_terminal=True)
    columns = TextColumn(escape(label)), BarColumn(), TextColumn("{task.fields[status]}", markup=False)
    with RichProgress(*columns, console=console, get_time=clock, refresh_per_second=4) as bar:
        task = bar.add_task("", total=total, status="")

        def show(meter: Meter) -> None:
            bar.update(task, completed=meter.done, status=meter.status())

        meter = Meter(total, clock, show)
        show(meter)
        yield meter


def duration(seconds: float) -> str:
    """1.2 s, 48 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _speed(rate: float) -> str:
    return f"{rate:.3g}/s" if rate >= 1 else f"{60 * rate:.3g}/min"
