"""`python -m realdata plan`: time, memory and disk of a distillation, from a trial of a few outer steps as the run itself takes them.

Decoding the pictures and fitting their transform comes first and is told apart: both stay in the cache, where trial and run find them.
The trial is a run of K0 = 3 outer steps in a temporary folder, one network a measurement, with everything that a run does: reading,
transform, whole unrolls with whole windows, measurements, checkpoint, figures, artefact. Its counts and times (realdata.steps) give rates:

    seconds of a step          J E[stop] t_plain + E[stop - start] t_product + t_real   (t_plain with optimiser; others for J starts)
    seconds of a measurement   networks * (T t_plain + t_judge)
    seconds                    start + K step + points measurement                      (start: what the trial took beyond both)
    memory                     the trial's peak + f (W_max - W)    W, W_max: longest window of the trial, of the run;  f: bytes of a state
    disk                       the trial's folder + a row of each table for every further step and measurement

The trial of at-bptt, and the expectation over windows drawn by the method's policy, are in its middle stage.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realdata import distill
from realdata.config import DistillConfig
from realdata.data import cache_folder
from realdata.machine import Runtime, set_up
from realdata.preprocess import ZCA, Transform, fit
from realdata.protocol import accuracy
from realdata.steps import read_steps
from realdata.streaming import on_device
from realdata.task import Split, check, hard_labels, training_problem, training_split
from sims.lab.files import atomic_write
from sims.lab.progress import duration
from sims.lab.report import terminal_table
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.stages import Stage

TRIAL = 3  # outer steps: the first meets everything for the first time, the others are timed
WINDOWS = 1000  # drawn for the expectation
POINT_BYTES = 250  # of a measurement in the checkpoint and in curve.csv
FLOAT = 4  # bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a run will take: seconds in all and of its parts, bytes of memory (host; GPU where it works on one) and of its folder.

    prepared_seconds, cache   what decoding and fitting took this plan and will not take the run, and the bytes that it finds of them
    """

    seconds: float
    prepared_seconds: float
    start_seconds: float
    step_seconds: float
    measurement_seconds: float
    steps: int
    measurements: int
    memory: int
    device_memory: int | None
    disk: int
    cache: int


@dataclass(frozen=True)
class Prepared:
    """What images and transform took to read or make, and they themselves."""

    seconds: float
    split: Split
    transform: Transform

    @classmethod
    def of(cls, config: DistillConfig, root: Path) -> "Prepared":
        """Those of a configuration: made where the cache has none."""
        began = time.monotonic()
        split = training_split(config, str(root))
        check(config, split)  # a refused setting is said before the long part
        transform = fit(config.transform, split.fitted.images, cache_folder())
        return cls(time.monotonic() - began, split, transform)

    @property
    def cache(self) -> int:
        """Bytes of them in the cache."""
        base = self.split.fitted.images.base
        decoded = base.nbytes if isinstance(base, np.memmap) and cache_folder().resolve() in Path(base.filename or "").parents else 0
        return decoded + (sum(x.nbytes for x in self.transform.tensors().values()) if isinstance(self.transform, ZCA) else 0)


@dataclass(frozen=True)
class Trial:
    """What the trial took: seconds in all, rows of its outer steps, peak memory, bytes of its folder and of a row of steps.csv."""

    seconds: float
    rows: list[Row]
    memory: int
    device_memory: int | None
    disk: int
    row_bytes: float


@dataclass(frozen=True)
class Rates:
    """Seconds of a plain inner step, of a differentiated one (its products alone) and of the loss on real images, an outer step's."""

    plain: float
    recorded: float
    real: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Rates":
        """From the rows of outer steps."""
        product, real, whole = (sum(row[f"seconds{part}"] for row in rows) for part in ("_product", "_real", ""))
        steps, recorded = sum(row["gradients"] for row in rows), sum(row["stop"] - row["start"] for row in rows)
        return cls((whole - product - real) / steps, product / recorded, real / len(rows))


def predict(config: DistillConfig, root: Path, runtime: Runtime, experts: Path | None = None) -> Plan:
    """Runs the trial and extrapolates it; `experts` is the folder that a method with experts needs."""
    device = set_up(runtime, tested=True)
    print(f"reading {config.dataset}: what is decoded and fitted stays in {cache_folder()}", file=sys.stderr)
    cold = Prepared.of(config, root).seconds
    trial = try_out(config, root, runtime, device, experts)
    warm = Prepared.of(config, root)
    rates, (stop, length, longest) = Rates.of(trial.rows[1:]), expected_window(config)
    one = config.judging(config.inner_lr)[1] * rates.plain + _judging_seconds(config, warm, device)
    step = config.inner_runs * stop * rates.plain + length * rates.recorded + rates.real
    points, trial_points = 1 + -(-config.outer_steps // config.curve_every), 1 + TRIAL
    start = max(0.0, trial.seconds - sum(row["seconds"] for row in trial.rows[1:]) - step - trial_points * one)
    lengths = [row["stop"] - row["start"] for row in trial.rows]
    state = max(row["stored_floats"] / width for row, width in zip(trial.rows, lengths, strict=True))
    more = int(FLOAT * state * max(0, longest - max(lengths)))
    return Plan(
        seconds=start + config.outer_steps * step + points * config.curve_networks * one,
        prepared_seconds=max(0.0, cold - warm.seconds),
        start_seconds=start,
        step_seconds=step,
        measurement_seconds=config.curve_networks * one,
        steps=config.outer_steps,
        measurements=points,
        memory=trial.memory + (more if trial.device_memory is None else 0),
        device_memory=None if trial.device_memory is None else trial.device_memory + more,
        disk=round(trial.disk + (config.outer_steps - TRIAL) * trial.row_bytes + (points - trial_points) * POINT_BYTES),
        cache=warm.cache,
    )


def try_out(config: DistillConfig, root: Path, runtime: Runtime, device: torch.device, experts: Path | None) -> Trial:
    """The trial; its folder is gone afterwards."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory(prefix="plan-") as place:
        out, began = Path(place) / "trial", time.monotonic()
        short = replace(config, outer_steps=TRIAL, curve_every=1, curve_networks=1, adaptive=replace(config.adaptive, stage="middle"))
        distill.run(short, root, out, runtime, experts=experts)
        return Trial(
            seconds=time.monotonic() - began,
            rows=read_steps(out),
            memory=peak_memory(),
            device_memory=torch.cuda.max_memory_allocated(device) if on_gpu else None,
            disk=folder_bytes(out),
            row_bytes=(out / "steps.csv").stat().st_size / (1 + TRIAL),
        )


def expected_window(config: DistillConfig) -> tuple[float, float, int]:
    """(mean number of inner steps, mean number of recorded ones, the most that are recorded) of an outer step."""
    policy, rng = config.windows(), np.random.default_rng(0)
    adaptive = isinstance(policy, AdaptiveWindow)
    law = policy.at(Stage.MIDDLE, None) if adaptive else policy
    windows = [law.draw(rng) for _ in range(WINDOWS)]
    stop, length = float(np.mean([w.stop for w in windows])), float(np.mean([w.length for w in windows]))
    if not adaptive:
        return stop, length, max(w.length for w in windows)
    whole = policy.profile == "current"  # then all T steps run, and keep their states until the window is known
    return (policy.horizon if whole else stop), length, (policy.horizon if whole else policy.base + policy.spread)


def _judging_seconds(config: DistillConfig, prepared: Prepared, device: torch.device) -> float:
    """Of one network on the held-out images of a measurement, once warm."""
    split = prepared.split
    held_out = on_device(prepared.transform, split.held_out.subset(np.arange(min(config.curve_images, len(split.held_out)))), device)
    problem = training_problem(config, hard_labels(len(split.source.classes), config.ipc), device)
    theta = problem.init(np.random.default_rng(0))
    accuracy(problem, theta, held_out)
    began = time.monotonic()
    accuracy(problem, theta, held_out)
    return time.monotonic() - began


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # another system than Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(plan: Plan, target: Path | None = None) -> None:
    """Prints the plan, and writes it as JSON where a place is given."""
    sizes = {"memory": plan.memory, "memory of the GPU": plan.device_memory, "disk": plan.disk, "in the cache, already": plan.cache}
    rows = [
        ("time", duration(plan.seconds)),
        ("of it to start and to finish", duration(plan.start_seconds)),
        (f"of it {plan.steps} outer steps", f"{duration(plan.steps * plan.step_seconds)}, {plan.step_seconds:.3g} s each"),
        (f"of it {plan.measurements} measurements", duration(plan.measurements * plan.measurement_seconds)),
        ("decoding and fitting, done already", duration(plan.prepared_seconds)),
        *((name, f"{count / 1e6:.4g} MB") for name, count in sizes.items() if count is not None),
    ]
    terminal_table(f"the run, foreseen from {TRIAL} of its outer steps", ("what", "how much"), rows)
    if target is not None:
        atomic_write(target, json.dumps(dataclasses.asdict(plan), indent=1) + "\n")
