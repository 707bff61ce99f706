"""A sweep: the rows of a list of configurations, computed where the store does not hold them yet.

An executor carries the pending trials out, here one after the other; any function of the same form (say, one that hands them to
workers) can take its place. It yields outcomes as they end, in any order; storing them stays with the caller, who holds the lock.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sims.lab.files import RunError
from sims.lab.progress import Bar, Silent
from sims.lab.store import Row, TrialStore, trial_key

Config = Mapping[str, Any]
Trial = Callable[[Config], Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What one trial came to: its result, or the message of its numerical failure."""

    result: Mapping[str, Any] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class Cost:
    """What one trial takes, counted from its configuration; the rates are a machine's and are measured on it.

    products  operations in matrix products of 32-bit numbers (one of 64-bit numbers counts twice)
    normals   Gaussian numbers drawn          elements  elementwise operations, in units of a compare-and-multiply
    cubes     sum of n^3 over symmetric eigenproblems of size n          bytes  arrays held at the peak
    """

    products: float = 0.0
    normals: float = 0.0
    elements: float = 0.0
    cubes: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: counts add, the larger peak stays."""
        return Cost(
            self.products + other.products,
            self.normals + other.normals,
            self.elements + other.elements,
            self.cubes + other.cubes,
            max(self.bytes, other.bytes),
        )

    def __rmul__(self, times: float) -> "Cost":
        return Cost(times * self.products, times * self.normals, times * self.elements, times * self.cubes, self.bytes)


@dataclass(frozen=True)
class Sweep:
    """One kind of trial with all its configurations; `fn` is a module-level function, so that workers can import it.

    `cost`, where it is given, lets `plan` tell the time and memory of a trial before it is run.
    """

    kind: str
    fn: Trial
    configs: tuple[dict[str, Any], ...]
    cost: Callable[[Config], Cost] | None = None


Task = tuple[Trial, Config]
Executor = Callable[[Sequence[Task]], Iterator[tuple[int, Outcome]]]


def attempt(fn: Trial, config: Config) -> Outcome:
    """fn(config); a FloatingPointError (numerical failure with its name) is an outcome, any other exception is the caller's."""
    try:
        return Outcome(fn(config))
    except FloatingPointError as error:
        return Outcome(failed=str(error) or "numerical failure")


def serial(tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
    """The executor that runs the trials here, in order."""
    for i, (fn, config) in enumerate(tasks):
        yield i, attempt(fn, config)


def run_sweeps(
    store: TrialStore, sweeps: Sequence[Sweep], progress: Bar | None = None, executor: Executor = serial
) -> dict[str, list[Row]]:
    """By kind, one row a configuration, in their order. Stored trials are not run again; each new one is stored as soon as it ends.

    The executor is given what is missing of all sweeps at once, so that no worker waits for the last trial of a kind. A trial that
    fails numerically is stored with its message in `failed` and is not tried again; `failures(rows)` counts them.
    """
    bar = Silent() if progress is None else progress
    keys = {sweep.kind: [trial_key(sweep.kind, config) for config in sweep.configs] for sweep in sweeps}
    rows: dict[str, Row] = {}
    pending: dict[str, tuple[str, Task]] = {}
    for sweep in sweeps:
        for key, config in zip(keys[sweep.kind], sweep.configs, strict=True):
            row = rows.get(key) or store.get(sweep.kind, config)
            if row is not None or key in pending:
                bar.skip()
            if row is not None:
                rows[key] = row
            else:
                pending[key] = sweep.kind, (sweep.fn, config)
    failed = len(failures(list(rows.values())))
    names = list(pending)
    for i, outcome in executor([task for _, task in pending.values()]):
        kind, (_, config) = pending[names[i]]
        rows[names[i]] = row = _stored(store, kind, config, outcome)
        failed += row["failed"] is not None
        bar.advance(note=f"{failed} failed" if failed else "")
    return {kind: [rows[key] for key in group] for kind, group in keys.items()}


def failures(rows: Sequence[Row]) -> list[Row]:
    """The rows of trials that failed numerically."""
    return [row for row in rows if row["failed"] is not None]


def rows_at(rows: Sequence[Row], **where: object) -> list[Row]:
    """The rows whose configuration has these values."""
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def sound(rows: Sequence[Row], what: str = "trials", least: int = 0) -> list[Row]:
    """The rows of trials that did not fail; RunError with the first failure where fewer than `least` are left."""
    found = [row for row in rows if row["failed"] is None]
    if len(found) < least:
        first = next((row["failed"] for row in rows if row["failed"] is not None), "none was run")
        few = f"{len(found)} of {len(rows)} {what} are sound" if found else f"all {len(rows)} {what} failed"
        raise RunError(f"{few}, first: {first}")
    return found


def _stored(store: TrialStore, kind: str, config: Config, outcome: Outcome) -> Row:
    try:
        return store.put(kind, config, outcome.result, outcome.failed)
    except FloatingPointError as error:  # the trial gave NaN or infinity back without noticing
        return store.put(kind, config, {}, str(error))
