"""The command itself: reads finished runs, retraces their experts where they are given, and writes one report of both.

DIR/config.toml, env.json, trials/ (realdata.trajectories.errors)   DIR/report.md, summary.json
DIR/figures/accuracy.{png,pdf,csv}                                  DIR/figures/errors.{png,pdf,csv}   with experts

The same command goes on after an interruption; with further runs it measures those alone and writes the report anew.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from realdata import data, figures
from realdata.machine import Runtime, set_up
from realdata.trajectories import plots
from realdata.trajectories import report as words
from realdata.trajectories.errors import Retraced, Retracing, reach, retraced
from realdata.trajectories.runs import Finished, accuracies, differences, read_runs
from sims.lab.files import RunError
from sims.lab.report import terminal_table
from sims.lab.run import RunFolder


def run(places: Sequence[Path], experts: Path | None, retracing: Retracing, root: Path | None, out: Path, runtime: Runtime) -> Path:
    """Compares the runs in `places`, retraces them along `experts` (a store or a recipe's folder), and gives the report's path back."""
    device = set_up(runtime)
    runs = read_runs(places)
    first = runs[0].distilled.config
    if experts is not None and (foreign := [one for one in runs if not one.distilled.config.trajectories]):
        raise RunError(f"{foreign[0].place} was made by {foreign[0].method}, along no experts: leave it out, or --experts")
    with RunFolder.open(out, dataclasses.asdict(retracing), backend=f"torch: {device}", seed=first.seed) as folder:
        found = None
        if experts is not None:
            found = retraced(folder, runs, experts, retracing, str(root or data.default_root(first.dataset)), device)
        return _written(folder, runs, found)


def _written(folder: RunFolder, runs: Sequence[Finished], found: Retraced | None) -> Path:
    config = runs[0].distilled.config
    summary = {
        "methods": list(dict.fromkeys(run.method for run in runs)),
        "dataset": config.dataset,
        "network": f"ConvNet-{config.network.depth} of width {config.network.width}",
        "runs": {run.place.name: run.seal for run in runs},
        "accuracies": list(accuracies(runs)),
        "differences": list(differences(runs)),
        "errors": [] if found is None else list(words.by_epoch(found, runs)),
        "experts": [] if found is None else list(words.of_experts(found)),
        "paces": {} if found is None else words.paces(found),
        "retraced": 0 if found is None else len(found.rows),
        "diverged": 0 if found is None else len(found.failed),
    }
    limits = {ipc: reach(runs, ipc) for ipc in sorted({run.ipc for run in runs})}
    drawn = {"accuracy": (plots.accuracies(summary["accuracies"]), words.accuracy_csv(summary["accuracies"]))}
    if found is not None and summary["errors"]:
        drawn["errors"] = plots.errors(summary["errors"], limits), words.errors_csv(found)
    for name, (figure, table) in drawn.items():
        for kind in ("png", "pdf"):
            folder.write(f"figures/{name}.{kind}", figures.render(figure, kind))
        folder.write(f"figures/{name}.csv", table)
    folder.write("summary.json", words.summary_json(summary))
    terminal_table("test accuracy", words.ACCURACY_HEADERS, words.accuracy_rows(summary["accuracies"]))
    terminal_table("differences of methods", words.DIFFERENCE_HEADERS, words.difference_rows(summary["differences"]))
    return folder.write("report.md", words.report(summary, limits))
