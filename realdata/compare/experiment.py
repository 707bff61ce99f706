"""A comparison of arms: which runs it takes, what is measured on each, and where both are kept.

    DIR/runs/steps/ARM-SEED/    runs of `realdata.distill`, all with the same number K of outer steps
    DIR/runs/time/ARM-SEED/     the same at equal time: K_arm = K t_ref / t_arm outer steps, t the median over seeds of the seconds of all
                                outer steps of a run at equal steps, ref the first arm; an arm with K_arm = K is not run again. As many
                                measurements of the learning curve as at equal steps, their time not counted; nor is compiling.
    DIR/equal-time.json         K_arm, kept when seeds are added
    DIR/trials/                 set: test accuracies of networks trained on a finished set;  probe: meta-gradients of a run and their memory

Everything is chosen on held-out training images: the outer step within a run, then the training length of each set. The test split is read
when the last distillation is complete. Arms share seeds, that is first sets, held-out images and the networks that judge them. An arm that
diverges with any seed, or whose K_arm steps do not hold its stages, is left out with its reason, and the others go on.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from realdata import data, distill
from realdata.artefact import FOLDER, read_set
from realdata.checks import at_least, one_of
from realdata.compare.arms import ARMS, arm_config
from realdata.compare.probe import probe
from realdata.config import DistillConfig
from realdata.machine import Runtime
from realdata.protocol import Protocol, judge, train_arm
from realdata.steps import read_steps
from realdata.task import Split, hard_labels, on_device, stream, training_problem
from sims.lab.artefact import SUMS
from sims.lab.files import RunError, atomic_write
from sims.lab.progress import Bar, duration
from sims.lab.store import Row, TrialStore
from theory.distill.problem import Diverged

EQUAL = ("steps", "time")
EQUAL_TIME = "equal-time.json"
DIVERGED = "diverged.txt"
LENGTHS = (1, 2, 5)  # training lengths to choose from, in units of T


@dataclass(frozen=True)
class Comparison:
    """Which arms are compared, how often, and how their sets are judged."""

    arms: tuple[str, ...] = ("rat-bptt", "t-bptt", "at-bptt")
    """The first is what the others are held against: bptt, t-bptt, rat-bptt, rat-lengths, at-bptt, position, window, low-rank,
    low-rank-fresh, rank-0, at-bptt-low-rank; at-sharp, at-even, at-norms, at-range, at-sigmoid, at-start, at-current."""
    seeds: int = 5
    """Runs an arm, from the seeds seed, seed + 1, .."""
    equal: tuple[str, ...] = EQUAL
    """Compared at equal outer steps, at equal time of the outer steps, or at both."""
    rank: int = 32
    """Rank of the low-rank Hessian where an arm has one."""
    networks: int = 5
    """Fresh networks a finished set."""
    probes: int = 2
    """Inner runs a state whose meta-gradients are compared with the full one."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            one_of(ARMS, arms=arm)
        for equal in self.equal:
            one_of(EQUAL, equal=equal)
        if "steps" not in self.equal or len(set(self.arms)) < max(1, len(self.arms)) or len(set(self.equal)) < len(self.equal):
            raise RunError(f"each arm once, and at equal steps at least: arms={' '.join(self.arms)}, equal={' '.join(self.equal)}")
        at_least(1, seeds=self.seeds, rank=self.rank, networks=self.networks, probes=self.probes)


@dataclass(frozen=True, eq=False)
class Entry:
    """One run of the comparison."""

    arm: str
    equal: str
    seed: int
    config: DistillConfig
    place: Path

    @property
    def finished(self) -> bool:
        """Whether its set lies there."""
        return (self.place / FOLDER / SUMS).is_file()

    @property
    def fault(self) -> str | None:
        """What it diverged with, None if it did not."""
        path = self.place / DIVERGED
        return path.read_text().strip() if path.is_file() else None


@dataclass(frozen=True, eq=False)
class Done:
    """The sound runs, a reused one under both names, and why (equal, arm) are left out."""

    entries: list[Entry]
    left_out: dict[tuple[str, str], str]


def entries(shared: DistillConfig, comparison: Comparison, out: Path, equal: str, steps: dict[str, int]) -> Iterator[Entry]:
    """The runs of `steps` outer steps an arm, seed by seed, so that what disturbs the clock meets all arms."""
    for seed in range(shared.seed, shared.seed + comparison.seeds):
        for arm in steps:
            config = arm_config(arm, shared, seed, comparison.rank)
            every = max(1, round(config.curve_every * steps[arm] / config.outer_steps))
            config = replace(config, outer_steps=steps[arm], curve_every=every)
            yield Entry(arm, equal, seed, config, out / "runs" / equal / f"{arm}-{seed}")


def steps_in_equal_time(shared: DistillConfig, arms: tuple[str, ...], seconds: dict[str, list[float]]) -> dict[str, int]:
    """K_arm, from the seconds of each arm's runs of K steps."""
    typical = {arm: float(np.median(values)) for arm, values in seconds.items()}
    return {arm: max(1, round(shared.outer_steps * typical[arms[0]] / typical[arm])) for arm in arms}


def seconds_of(place: Path) -> float:
    """Time of all outer steps of a run."""
    return float(sum(row["seconds"] for row in read_steps(place)))


def carry_out(shared: DistillConfig, comparison: Comparison, root: Path, out: Path, runtime: Runtime) -> Done:
    """Every run that is not finished yet."""
    arms = comparison.arms
    done = _distilled(entries(shared, comparison, out, "steps", dict.fromkeys(arms, shared.outer_steps)), root, runtime)
    if ("steps", arms[0]) in done.left_out:
        raise Diverged(
            f"{arms[0]}, which the others are held against, {done.left_out['steps', arms[0]]}: choose another --out with a lower rate"
        )
    if "time" not in comparison.equal:
        return done
    wanted = _in_equal_time(shared, done, out)
    steps, refused = _admitted(shared, comparison, {arm: count for arm, count in wanted.items() if count != shared.outer_steps})
    again = _distilled(entries(shared, comparison, out, "time", steps), root, runtime)
    same = [replace(e, equal="time") for e in done.entries if wanted[e.arm] == shared.outer_steps]
    return Done([*done.entries, *again.entries, *same], done.left_out | again.left_out | refused)


def _in_equal_time(shared: DistillConfig, done: Done, out: Path) -> dict[str, int]:
    """K_arm of every sound arm: as stored, else from the runs at equal steps."""
    place, arms = out / EQUAL_TIME, tuple(dict.fromkeys(e.arm for e in done.entries))
    stored: dict[str, int] = json.loads(place.read_text()) if place.exists() else {}
    if set(arms) - set(stored):
        seconds = {arm: [seconds_of(e.place) for e in done.entries if e.arm == arm] for arm in arms}
        stored = steps_in_equal_time(shared, arms, seconds) | stored
        atomic_write(place, json.dumps(stored, indent=1) + "\n")
    return {arm: stored[arm] for arm in arms}


def _admitted(shared: DistillConfig, comparison: Comparison, steps: dict[str, int]) -> tuple[dict[str, int], dict[tuple[str, str], str]]:
    """The arms whose settings allow for so many steps, and why the others do not."""
    good, refused = dict(steps), {}
    for arm, count in steps.items():
        try:
            list(entries(shared, comparison, Path(), "time", {arm: count}))
        except (RunError, ValueError) as error:
            del good[arm]
            refused["time", arm] = f"would make {count} outer steps in that time: {error}"
    return good, refused


def _distilled(planned: Iterable[Entry], root: Path, runtime: Runtime) -> Done:
    planned = list(planned)
    began, waiting = time.monotonic(), [entry for entry in planned if not entry.finished and entry.fault is None]
    for k, entry in enumerate(waiting):
        if any(e.fault for e in planned if e.arm == entry.arm):
            continue
        left = "" if k == 0 else f", {duration((time.monotonic() - began) / k * (len(waiting) - k))} left for those at equal {entry.equal}"
        print(f"run {k + 1} of {len(waiting)}: {entry.arm}, seed {entry.seed}, {entry.config.outer_steps} steps{left}", file=sys.stderr)
        try:
            distill.run(entry.config, root, entry.place, runtime)
        except Diverged as error:
            atomic_write(entry.place / DIVERGED, f"{error}\n")
            print(f"{entry.arm} is left out, it diverged with seed {entry.seed}: {error}", file=sys.stderr)
            if entry.equal == "steps" and entry.arm == planned[0].arm:
                break  # nothing is left to hold the others against
    lost = {(e.equal, e.arm): f"diverged with seed {e.seed}: {e.fault}" for e in reversed(planned) if e.fault is not None}
    return Done([e for e in planned if (e.equal, e.arm) not in lost], lost)


@dataclass(frozen=True, eq=False)
class Bench:
    """What finished runs are measured with; what the store knows is not measured again."""

    comparison: Comparison
    split: Split
    store: TrialStore
    runtime: Runtime
    device: torch.device

    def probed(self, entry: Entry) -> Row:
        """What the run's meta-gradients leave out, and hold."""
        key = {"arm": entry.arm, "seed": entry.seed, "probes": self.comparison.probes}
        known = self.store.get("probe", key)
        if known is None:
            numbers = probe(entry.config, entry.place, self.split, self.runtime, self.comparison.probes, self.device)
            known = self.store.put("probe", key, numbers)
        return known

    def judged(self, entry: Entry, test: data.ImageSet, bar: Bar) -> Row:
        """The set's test accuracies, with the training length chosen on held-out images."""
        networks, config = self.comparison.networks, entry.config
        key = {"arm": entry.arm, "seed": entry.seed, "steps": config.outer_steps, "networks": networks}
        known = self.store.get("set", key)
        if known is not None:
            bar.skip(2 * networks)
            return known
        distilled = read_set(entry.place)
        protocol = Protocol(tuple(k * config.horizon for k in LENGTHS), networks, draws=1, seed=entry.seed)
        hard = hard_labels(len(self.split.source.classes), config.ipc)
        problem = training_problem(config, hard if distilled.labels.ndim == 1 else torch.from_numpy(distilled.labels), self.device)
        rows = stream(protocol.seed, "held-out").permutation(len(self.split.held_out))[: protocol.held_out_images]
        held_out = on_device(distilled.transform, self.split.held_out.subset(rows), self.device)
        s = (torch.from_numpy(distilled.images).to(self.device),)
        trained = train_arm(entry.arm, problem, config.inner_optimiser(), [s], held_out, protocol, bar)
        result = judge(trained, on_device(distilled.transform, test, self.device), bar)
        numbers = {"accuracies": result.accuracies[0], "length": result.length, "held_out": result.held_out[result.length]}
        return self.store.put("set", key, numbers)
