"""What `bridge` writes: report.md in words, summary.json, and one figure of three parts with the numbers behind it.

spectrum   eigenvalues of G^ over their sum, with the cut                    captured   share of the gradient energy against floats
accuracy   of fresh networks on held-out images against floats, with r_eff^2 d + L as a reference line, which claims nothing
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from realdata.figures import BLUE, STYLE, render
from realdata.subspace.measure import BridgeConfig, Measured, Row, TaskSubspace
from sims.lab.report import Cell, markdown_table, terminal_table, with_interval
from sims.lab.run import RunFolder

COLOURS = {"centred": BLUE, "residual": "#b5541c"}
SHIFT = {"centred": 0.96, "residual": 1.04}  # of points at the same number of floats, so that both are seen
TASK_HEADERS = ("labels", "directions r [95 %]", "r_eff [95 %]", "largest / cut")
SET_HEADERS = (
    "set",
    "images",
    "floats",
    "captured, centred [95 %]",
    "at best",
    "captured, residual [95 %]",
    "at best",
    "angles, centred",
    "held-out % [95 %]",
)

TEXT = """# What sets of {dataset} images hold of the task's gradient subspace

{samples} training images in {p} whitened principal coordinates ({share:.1f} % of the images' variance after preprocessing; N / d^2 =
{per_d2:.1f}), {neurons} neurons of fresh initialisations, noise from {blocks} blocks of images, {draws} draws behind each interval,
seed {seed}.

## The task

{task}
`centred`: labels minus the shares of the classes. `residual`: what least squares on the coordinates leaves of them, the theory's
preprocessing. r counts eigenvalues above the noise of this many images (at most all coordinates), r_eff weighs them; directions below
the cut are invisible here, not absent. For inputs that are no Gaussians nothing makes the labels depend on these directions alone: this
is a measurement of what the first gradient step sees.

## The sets

{sets}
`captured`: share of the task's gradient energy inside the leading ceil(r_eff) directions of a set's own gradient (fewer where the set has
fewer); `at best`: inside as many of the task's own. Principal angles between the two in degrees: smallest, median, largest.
Intervals: for a distilled set over fresh samples of the task, for random images over draws; accuracies over networks (distilled) or draws
(random), after the training the set was distilled for, on held-out training images. A distilled set was itself chosen on held-out
images, so its accuracy leans upwards; `python -m realdata evaluate` reads the test split.

r_eff^2 d + L with d = {d} numbers an image and L = {width} inputs of the last layer: {line:.3g} floats.

![spectrum, captured share, accuracy](figures/bridge.png)
"""


@dataclass(frozen=True)
class Reference:
    """The data set, N, the variance share of the coordinates, and the line r_eff^2 d + L."""

    dataset: str
    samples: int
    share: float
    d: int
    width: int
    floats: float


def write(folder: RunFolder, config: BridgeConfig, reference: Reference, task: dict[str, TaskSubspace], rows: Sequence[Row]) -> Path:
    """Writes figure, numbers and report; prints the tables; gives the report's path."""
    task_rows = [_task_row(kind, subspace) for kind, subspace in task.items()]
    set_rows = [_set_row(row) for row in rows]
    terminal_table(f"{reference.dataset}: the task's gradient subspace", TASK_HEADERS, task_rows)
    terminal_table("what sets hold of it", SET_HEADERS, set_rows)
    figure = picture(reference, task, rows)
    for kind in ("png", "pdf"):
        folder.write(f"figures/bridge.{kind}", render(figure, kind))
    folder.write("figures/spectrum.csv", _csv(("labels", "rank", "eigenvalue", "cut"), _spectrum(task)))
    folder.write("figures/sets.csv", _csv(("set", "floats", "labels", "captured", "low", "high", "accuracy", "low", "high"), _points(rows)))
    folder.write("summary.json", json.dumps(summary(reference, task, rows), indent=1) + "\n")
    text = TEXT.format(
        dataset=reference.dataset,
        samples=reference.samples,
        p=config.directions,
        share=100 * reference.share,
        per_d2=reference.samples / config.directions**2,
        neurons=config.neurons,
        blocks=config.blocks,
        draws=config.draws,
        seed=config.seed,
        task=markdown_table(TASK_HEADERS, task_rows),
        sets=markdown_table(SET_HEADERS, set_rows),
        d=reference.d,
        width=reference.width,
        line=reference.floats,
    )
    return folder.write("report.md", text)


def summary(reference: Reference, task: dict[str, TaskSubspace], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything measured, JSON-ready; intervals are [low, high]."""
    return {
        "images": reference.samples,
        "variance_share": reference.share,
        "task": {
            kind: {
                "rank": subspace.rank,
                "effective_rank": subspace.effective_rank,
                "eigenvalues": subspace.found.values.tolist(),
                "cut": subspace.found.cut,
            }
            for kind, subspace in task.items()
        },
        "sets": [vars(row) for row in rows],
        "reference": {"d": reference.d, "L": reference.width, "floats": reference.floats},
    }


def picture(reference: Reference, task: dict[str, TaskSubspace], rows: Sequence[Row]) -> Figure:
    """The three parts side by side."""
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    spectrum, shares, accuracy = figure.subplots(1, 3)
    for kind, subspace in task.items():
        positive = subspace.found.values[subspace.found.values > 0]
        total = float(np.sum(positive))
        positive = positive / total
        label = f"{kind}: r = {subspace.found.rank}, r_eff = {subspace.found.effective_rank:.1f}"
        spectrum.plot(np.arange(1, len(positive) + 1), positive, marker="o", markersize=2.5, linewidth=1, color=COLOURS[kind], label=label)
        spectrum.axhline(subspace.found.cut / total, color=COLOURS[kind], linestyle="--", linewidth=0.8)
        _points_on(shares, rows, lambda row, kind=kind: row.captured[kind], COLOURS[kind], kind, SHIFT[kind])
    spectrum.set(xlabel="direction", ylabel="share of the energy", yscale="log", title=f"{reference.dataset}: gradient subspace")
    shares.set(xlabel="stored floats", ylabel="captured share", xscale="log", ylim=(0, 1.02), title="inside a set's directions")
    _points_on(accuracy, rows, lambda row: _percent(row.accuracy), BLUE)
    accuracy.axvline(reference.floats, linestyle="--", label="r_eff² d + L", **STYLE)
    accuracy.set(xlabel="stored floats", ylabel="held-out accuracy (%)", xscale="log", title="fresh networks")
    for axes in (shares, accuracy):
        axes.set_xticks(sorted({row.floats for row in rows}))
        axes.xaxis.set(major_formatter=StrMethodFormatter("{x:,.0f}"), minor_locator=NullLocator())
        axes.margins(x=0.15)
    for axes in (spectrum, shares, accuracy):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="x-small")
    return figure


def _points_on(axes: Axes, rows: Sequence[Row], value: Any, colour: str, label: str = "", shift: float = 1.0) -> None:
    """Distilled sets as filled points, random images as open ones, both with their intervals."""
    for distilled, name, face in ((True, "distilled", colour), (False, "random images", "white")):
        found = [(row.floats, measured) for row in rows if row.distilled == distilled and (measured := value(row)) is not None]
        if found:
            x, y = [shift * floats for floats, _ in found], np.array([v for _, (v, _) in found])
            ends = np.array([interval for _, (_, interval) in found])
            error = np.abs(ends.T - y)
            axes.errorbar(
                x,
                y,
                error,
                fmt="o",
                markersize=5,
                color=colour,
                markerfacecolor=face,
                capsize=2,
                label=f"{name}, {label}" if label else name,
            )


def _percent(measured: Measured | None) -> Measured | None:
    if measured is None:
        return None
    value, (low, high) = measured
    return 100 * value, (100 * low, 100 * high)


def _shown(measured: Measured | None, decimals: int = 2) -> str:
    return "-" if measured is None else with_interval(*measured, decimals)


def _task_row(kind: str, subspace: TaskSubspace) -> list[Cell]:
    return [kind, _shown(subspace.rank, 0), _shown(subspace.effective_rank, 1), float(subspace.found.values[0] / subspace.found.cut)]


def _set_row(row: Row) -> list[Cell]:
    cells: list[Cell] = [row.name, row.images, row.floats]
    for kind in row.captured:
        best = row.best[kind]
        cells += [_shown(row.captured[kind]), "-" if best is None else f"{best:.2f}"]
    angles = row.angles["centred"]
    told = f"{angles[0]:.0f}, {np.median(angles):.0f}, {angles[-1]:.0f}" if angles else "-"
    return [*cells, told, _shown(_percent(row.accuracy), 1)]


def _spectrum(task: dict[str, TaskSubspace]) -> Iterable[Sequence[Cell]]:
    for kind, subspace in task.items():
        yield from ((kind, k + 1, float(value), subspace.found.cut) for k, value in enumerate(subspace.found.values))


def _points(rows: Sequence[Row]) -> Iterable[Sequence[Cell]]:
    for row in rows:
        for kind, measured in row.captured.items():
            yield (row.name, row.floats, kind, *_cells(measured), *_cells(row.accuracy))


def _cells(measured: Measured | None) -> tuple[Cell, ...]:
    return (None, None, None) if measured is None else (measured[0], *measured[1])


def _csv(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(headers)
    table.writerows(rows)
    return stream.getvalue()
