"""Sweeps: nothing finished is done twice, failures are recorded, the order of completion does not matter."""

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.lab.progress import Bar
from sims.lab.store import Row, TrialStore
from sims.lab.sweep import Config, Executor, Outcome, Sweep, Task, Trial, attempt, failures, run_sweeps, serial


class Recorder:
    """A Bar that remembers."""

    def __init__(self) -> None:
        self.done = self.skipped = 0
        self.note = ""

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, note or self.note

    def skip(self, n: int = 1) -> None:
        self.skipped += n


def square(config: Config) -> Mapping[str, Any]:
    return {"v": config["i"] ** 2 / 10, "at": None}


def shuffled(tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
    order = list(range(len(tasks)))
    random.Random(0).shuffle(order)
    yield from ((i, attempt(*tasks[i])) for i in order)


def run_trials(
    store: TrialStore, kind: str, configs: Sequence[dict[str, Any]], fn: Trial, bar: Bar | None = None, executor: Executor = serial
) -> list[Row]:
    return run_sweeps(store, [Sweep(kind, fn, tuple(configs))], bar, executor)[kind]


@given(
    asked=st.lists(st.integers(0, 9), max_size=6),
    there=st.sets(st.integers(0, 9), max_size=5),
    executor=st.sampled_from([serial, shuffled]),
)
def test_rows_are_in_order_and_only_missing_trials_run(asked: list[int], there: set[int], executor: Any) -> None:
    calls: list[int] = []

    def counted(config: Config) -> Mapping[str, Any]:
        calls.append(config["i"])
        return square(config)

    with tempfile.TemporaryDirectory() as folder:
        store = TrialStore(folder)
        for i in there:
            store.put("sq", {"i": i}, square({"i": i}))
        bar = Recorder()
        rows = run_trials(store, "sq", [{"i": i} for i in asked], counted, bar, executor)
        assert [(row["i"], row["v"]) for row in rows] == [(i, i**2 / 10) for i in asked]
        assert sorted(calls) == sorted(set(asked) - there)
        assert bar.done == len(calls)
        assert bar.done + bar.skipped == len(asked)
        assert {row["i"] for row in store.rows("sq")} == there | set(asked)


def test_numerical_failures_are_recorded_and_not_tried_again(tmp_path: Path) -> None:
    def trial(config: Config) -> Mapping[str, Any]:
        if config["i"] == 1:
            raise FloatingPointError("inner step 3: the loss is NaN")
        return {"v": float("inf") if config["i"] == 2 else 1.0}

    store, bar = TrialStore(tmp_path), Recorder()
    configs = [{"i": i} for i in range(4)]
    rows = run_trials(store, "t", configs, trial, bar)
    assert [row["failed"] for row in rows[:2]] == [None, "inner step 3: the loss is NaN"]
    assert rows[2]["failed"].startswith("t: result v is inf")
    assert [row["i"] for row in failures(rows)] == [1, 2]
    assert bar.note == "2 failed"
    again = Recorder()
    assert run_trials(store, "t", configs, trial, again) == rows
    assert (again.done, again.skipped) == (0, 4)


def test_any_other_exception_stops_the_sweep_and_keeps_what_was_done(tmp_path: Path) -> None:
    def trial(config: Config) -> Mapping[str, Any]:
        if config["i"] == 2:
            raise ZeroDivisionError
        return {"v": 1.0}

    with pytest.raises(ZeroDivisionError):
        run_trials(TrialStore(tmp_path), "t", [{"i": i} for i in range(4)], trial)
    assert sorted(row["i"] for row in TrialStore(tmp_path).rows("t")) == [0, 1]


def test_the_kinds_of_a_run_are_handed_out_together(tmp_path: Path) -> None:
    handed: list[int] = []

    def counted(tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        handed.append(len(tasks))
        return shuffled(tasks)

    two = [Sweep("sq", square, tuple({"i": i} for i in range(3))), Sweep("also", square, tuple({"i": i} for i in range(5)))]
    rows = run_sweeps(TrialStore(tmp_path), two, executor=counted)
    assert handed == [8]
    assert {kind: [row["i"] for row in group] for kind, group in rows.items()} == {"sq": [0, 1, 2], "also": [0, 1, 2, 3, 4]}
    assert all(row["kind"] == kind for kind, group in rows.items() for row in group)
