"""What a run will take, before it is begun: trials, time and memory by kind, from counted operations and the rates of this machine.

    seconds of a trial = products / P + normals / G + elements / E + cubes / C + overhead     (P, G, E, C timed here, best of a few)
Kinds that count nothing are told as unknown, or timed on a few of their trials where --sample asks for it.
"""

import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tyro.conf import Positional

from sims.arrays import GaussianStream, backend_name, draws_on_device, is_cupy, namespace
from sims.command import PRESETS, Program, parse
from sims.lab.environment import cores
from sims.lab.files import RunError
from sims.lab.progress import duration
from sims.lab.report import Cell, terminal_table
from sims.lab.sweep import Cost, Sweep, attempt

PROCESS_BYTES = 150e6  # the interpreter with NumPy, SciPy and Arrow loaded
TRIAL_SECONDS = 0.005  # to hand a trial out and to store it
FILE_BYTES = 8192  # of a stored trial on disk: 3 to 8 kB in blocks of 4 kB
HEADERS = ("trials of kind", "trials", "longest trial", "on one core", "peak memory")


@dataclass(frozen=True)
class Plan:
    """Trials, memory and time of a run, estimated before it is begun."""

    config: Positional[str]
    """PROGRAM, PROGRAM/PRESET such as scaling/demo, or a .toml file with `program` and a table of its settings (as a run's config.toml)."""
    backend: str = "auto"
    """Arrays: auto (CuPy where a device answers), numpy, cupy, or cupy-native (CuPy with samples drawn on the device)."""
    workers: int = 1
    """Processes that share the work; 0 is one a processor core."""
    sample: int = 0
    """Trials to time, of every kind whose cost is not counted; nothing of them is kept."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.sample < 0:
            raise ValueError(f"counts must be >= 0: workers={self.workers}, sample={self.sample}")
        backend_name(self.backend)


@dataclass(frozen=True)
class Rates:
    """Of one thread, or of the device: operations, normals, elements and cubes a second."""

    products: float
    normals: float
    elements: float
    cubes: float

    def seconds(self, cost: Cost) -> float:
        """Time of what `cost` counts."""
        counted = (cost.products, self.products), (cost.normals, self.normals), (cost.elements, self.elements), (cost.cubes, self.cubes)
        return sum(amount / rate for amount, rate in counted) + TRIAL_SECONDS


@dataclass(frozen=True)
class Estimate:
    """Of all trials of one kind. `seconds` is None where nothing is counted or timed, `bytes` where nothing is counted."""

    kind: str
    trials: int
    longest: float | None
    seconds: float | None
    bytes: float | None


def measure_rates(backend: str) -> Rates:
    """Four short timings on one thread, of its processor time: what a machine with nothing else to do gives.

    Normals count with their way to where they are used; a device is timed by the clock.
    """
    xp, rng = namespace(backend), np.random.default_rng(0)
    stream = GaussianStream(np.random.SeedSequence(0), 2**12, 2**8, xp, "float32", native=draws_on_device(backend))
    clock = time.perf_counter if is_cupy(xp) else time.thread_time
    a = xp.asarray(rng.standard_normal((2048, 256), dtype=np.float32))
    b = xp.asarray(rng.standard_normal((512, 256), dtype=np.float32))
    z, square = a @ b.T, xp.asarray(rng.standard_normal((256, 256)))
    symmetric = square + square.T

    def rate(amount: float, work: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            began = clock()
            float(xp.reshape(xp.asarray(work()), (-1,))[0])  # waits for a device
            times.append(clock() - began)
        return amount / min(times)

    with threadpool_limits(1):
        return Rates(
            rate(2.0 * 2048 * 512 * 256, lambda: a @ b.T),
            rate(2.0**20, lambda: next(iter(stream))[0]),
            rate(2048.0 * 512, lambda: (z >= 0) * z),
            rate(256.0**3, lambda: xp.linalg.eigh(symmetric)[0]),
        )


def planned(programs: Mapping[str, Program], name: str) -> tuple[Program, Any]:
    """The program and its configuration: PROGRAM, PROGRAM/PRESET, or a .toml file with `program` and a table of its settings."""
    if name.endswith(".toml"):
        try:
            content = tomllib.loads(Path(name).read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{name} cannot be read ({error}): give PROGRAM/PRESET or a .toml file with `program` and its settings"
            ) from error
        word = str(content.get("program"))
        settings = content.get(word, {})
    else:
        word, _, preset = name.partition("/")
        settings = _preset(programs[word], preset) if word in programs else {}
    if word not in programs:
        raise RunError(f"{name} names no program (program={word!r}): known are {', '.join(programs)}")
    return programs[word], parse(
        programs[word], settings, f"{name} holds settings that {word} does not take: see python -m sims {word} --help"
    )


def _preset(program: Program, name: str) -> dict[str, Any]:
    folder = PRESETS / program.name
    try:
        return tomllib.loads((folder / f"{name or program.preset}.toml").read_text())
    except OSError as error:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.toml")))
        raise RunError(f"unknown preset {name!r} of {program.name}: choose one of {known}") from error


def estimate(sweep: Sweep, rates: Rates, sample: int = 0) -> Estimate:
    """From the counted cost of every trial, else from the times of `sample` trials spread over the sweep (their results are dropped)."""
    count = len(sweep.configs)
    if sweep.cost is not None:
        costs = [sweep.cost(config) for config in sweep.configs]
        times = [rates.seconds(cost) for cost in costs]
        return Estimate(sweep.kind, count, max(times, default=0.0), sum(times), PROCESS_BYTES + max((c.bytes for c in costs), default=0.0))
    if not sample or not count:
        return Estimate(sweep.kind, count, None, None, None)
    times = [_timed(sweep, round(place)) for place in np.linspace(0, count - 1, min(sample, count))]
    return Estimate(sweep.kind, count, max(times), float(np.mean(times)) * count, None)


def _timed(sweep: Sweep, index: int) -> float:
    began = time.perf_counter()
    with threadpool_limits(1):
        attempt(sweep.fn, sweep.configs[index])
    return time.perf_counter() - began


def show(programs: Mapping[str, Program], asked: Plan) -> None:
    """Prints the plan."""
    program, config = planned(programs, asked.config)
    on = program.arrays(asked.backend)
    backend, rates = backend_name(on), measure_rates(on)
    estimates = [estimate(sweep, rates, asked.sample) for sweep in program.sweeps(config, backend)]
    terminal_table(f"plan of {asked.config}", HEADERS, [_row(found) for found in estimates])
    print("\n".join(summary(estimates, rates, backend, asked.workers or cores())))


def _row(found: Estimate) -> list[Cell]:
    times = ["unknown" if value is None else duration(value) for value in (found.longest, found.seconds)]
    return [found.kind, found.trials, *times, "unknown" if found.bytes is None else _size(found.bytes)]


def summary(estimates: Sequence[Estimate], rates: Rates, backend: str, workers: int) -> list[str]:
    """The totals, in lines."""
    known = sum(found.seconds or 0.0 for found in estimates)
    missing = [found.kind for found in estimates if found.seconds is None]
    peak = max((found.bytes or PROCESS_BYTES for found in estimates), default=PROCESS_BYTES)
    trials, least = sum(found.trials for found in estimates), "at least " if any(found.bytes is None for found in estimates) else ""
    more = f", and the unknown time of {', '.join(missing)} (--sample 2 times a few of them)" if missing else ""
    shared, in_all = "", ""
    if workers > 1:
        shared, in_all = f", {duration(known / workers)} on {workers} workers", f", {least}{_size(workers * peak)} in all"
    return [
        f"time: {duration(known)} on one core{shared}{more}",
        f"memory: {least}{_size(peak)} a worker{in_all}",
        f"disk: {_size(trials * FILE_BYTES)} for {trials} trials",
        f"rates of this machine, {backend}, one thread: {rates.products / 1e9:.3g} Gflop/s (32-bit products), "
        f"{rates.normals / 1e6:.3g} M normals/s, {rates.elements / 1e6:.3g} M elements/s, {rates.cubes / 1e9:.3g} G cubes/s",
    ]


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
