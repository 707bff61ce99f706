"""The command itself: runs, measurements, report, in a folder that can be left and taken up at any moment.

DIR/config.toml, env.json, runs/, trials/, equal-time.json (see realdata.compare.experiment), report.md, summary.json,
figures/compare.{png,pdf,csv}
"""

import dataclasses
from pathlib import Path

import numpy as np

from realdata import data, figures
from realdata.compare import plots
from realdata.compare import report as words
from realdata.compare.arms import arm_config, refuse_what_arms_set
from realdata.compare.experiment import Bench, Comparison, Entry, carry_out
from realdata.compare.report import ArmResult
from realdata.config import DistillConfig, as_settings
from realdata.machine import Runtime, set_up
from realdata.steps import read_steps
from realdata.task import check, training_split
from sims.lab.files import RunError
from sims.lab.progress import progress
from sims.lab.report import terminal_table
from sims.lab.run import RunFolder

FREE = ("comparison.equal", "comparison.networks", "comparison.probes", "comparison.seeds")  # what may be asked anew of the same runs


def run(shared: DistillConfig, comparison: Comparison, root: Path, out: Path, runtime: Runtime, *, resume: bool = True) -> Path:
    """Compares the arms in `out`, or goes on where it stopped, and gives the path of the report."""
    refuse_what_arms_set(shared)
    device = set_up(runtime, tested=True)
    split = training_split(shared, str(root))
    made: dict[DistillConfig, str] = {}
    for arm in comparison.arms:  # a refused setting must not leave a folder behind
        config = arm_config(arm, shared, shared.seed, comparison.rank)
        check(config, split)
        if config in made:
            raise RunError(f"under these settings {made[config]} and {arm} are the same: leave one out, or change what they share")
        made[config] = arm
    settings = {"shared": as_settings(shared), "comparison": dataclasses.asdict(comparison)}
    with RunFolder.open(out, settings, resume=resume, free=FREE, backend=f"torch: {device}", seed=shared.seed) as folder:
        done = carry_out(shared, comparison, root, out, runtime)
        bench, steps = Bench(comparison, split, folder.store, runtime, device), [e for e in done.entries if e.equal == "steps"]
        probes = {}
        with progress(len(steps), "meta-gradients") as bar:
            for entry in steps:
                probes[entry.arm, entry.seed] = bench.probed(entry)
                bar.advance(note=f"{entry.arm}, seed {entry.seed}")
        test = data.load(shared.dataset, root, "test")
        with progress(2 * comparison.networks * len(done.entries), "judge") as bar:
            sets = {entry: bench.judged(entry, test, bar) for entry in done.entries}
        told = [(equal, arm) for equal in comparison.equal for arm in comparison.arms]
        results = [
            _result(done.entries, sets, probes, arm, equal)
            for equal, arm in told
            if any((e.equal, e.arm) == (equal, arm) for e in done.entries)
        ]
        left_out = {f"{arm}, equal {equal}": done.left_out[equal, arm] for equal, arm in told if (equal, arm) in done.left_out}
        return _written(folder, shared, comparison, results, left_out)


def _result(entries: list[Entry], sets: dict, probes: dict, arm: str, equal: str) -> ArmResult:
    own = [entry for entry in entries if (entry.arm, entry.equal) == (arm, equal)]
    return ArmResult(
        arm,
        equal,
        np.array([sets[entry]["accuracies"] for entry in own]),
        [sets[entry]["held_out"] for entry in own],
        [read_steps(entry.place) for entry in own],
        [probes[arm, entry.seed] for entry in own] if equal == "steps" else [],
    )


def _written(folder: RunFolder, shared: DistillConfig, comparison: Comparison, results: list[ArmResult], left_out: dict[str, str]) -> Path:
    found = words.numbers(results)
    title = (
        f"{shared.dataset}, {shared.ipc} per class, ConvNet-{shared.network.depth} of width {shared.network.width}, T = {shared.horizon}, "
        f"M = {shared.window}, d = {shared.adaptive.spread}, {comparison.seeds} seeds, {comparison.networks} networks each"
    )
    selection = (
        f"Of {shared.outer_steps} outer steps (at equal steps) the set with best held-out accuracy of {shared.curve_networks} networks, "
        "its training length out of T, 2 T, 5 T by held-out accuracy. The test split was read after every distillation."
    )
    figure = plots.comparison(found, title)
    for kind in ("png", "pdf"):
        folder.write(f"figures/compare.{kind}", figures.render(figure, kind))
    folder.write("figures/compare.csv", words.table_csv(found))
    folder.write(
        "summary.json",
        words.summary(found, seeds=comparison.seeds, networks=comparison.networks, reference=comparison.arms[0], left_out=left_out),
    )
    terminal_table(title, words.ACCURACY_HEADERS, words.accuracy_rows(found))
    terminal_table("an outer step", words.COST_HEADERS, words.cost_rows(found))
    terminal_table("meta-gradients", words.PROBE_HEADERS, words.probe_rows(found))
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    return folder.write("report.md", words.report(title, found, selection, left_out))
