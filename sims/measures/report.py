"""What a run of measures leaves for its reader: a table, report.md, summary.json, one figure a measure, and every cell as CSV."""

import json
import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sims import figures
from sims.command import Facts
from sims.lab.report import Cell, markdown_table, number
from sims.measures.catalogue import CONTROLS, ELSEWHERE
from sims.measures.experiment import Measures
from sims.measures.measure import LIMIT, SHARE, Outcome, Result

HEADERS = ("measure", "what", "cells", "within", "worst cell, z", "largest s.e.", "verdict")
PANEL = 6  # curves a panel
AXES = {
    "per_d2": "N / d^2",
    "K_per_d": "K / d",
    "M2_per_L": "M2 / L",
    "multiple": "M1 / r^2",
    "kept": "|x0| / |D|",
    "at": "value that runs",
}
COLUMNS = ("predicted", "measured", "error", "allowance", "z", "draws", "failed")


def table(results: Sequence[Result]) -> list[list[Cell]]:
    """One row a measure."""
    return [
        [
            r.measure.name,
            r.measure.title,
            len(r.cells),
            r.within,
            number(r.worst.z, 2),
            _percent(max((cell.relative_error for cell in r.cells if cell.predicted), default=math.inf)),
            r.verdict,
        ]
        for r in results
    ]


def control_table(results: Sequence[Result]) -> list[list[Cell]]:
    """One row a measure of a negative control, as far as this run has it."""
    found = {r.measure.name: r for r in results}
    return [
        [
            words,
            name,
            found[name].measure.definition,
            found[name].measure.claim,
            f"{found[name].within} of {len(found[name].cells)}",
            found[name].verdict,
        ]
        for words, names in CONTROLS.items()
        for name in names
        if name in found
    ]


def _percent(value: float) -> str:
    return f"{100.0 * value:.1f} %" if math.isfinite(value) else "-"


def place(result: Result, cell: Outcome) -> str:
    """The entries of a cell that vary within its measure, as words."""
    return ", ".join(f"{name} = {cell.where[name]}" for name in varying(result) if name in cell.where) or "the only cell"


def varying(result: Result) -> list[str]:
    """Names of the entries that differ between cells (place holders of lists left out)."""
    hidden = {"place", "entry", "grid", "values", "m1", "m2", "shares"}
    names = dict.fromkeys(name for cell in result.cells for name in cell.where if name not in hidden)
    return [name for name in names if len({repr(cell.where.get(name)) for cell in result.cells}) > 1]


def summary(results: Sequence[Result], facts: Facts) -> str:
    """summary.json."""
    content = {
        "measures": {
            r.measure.name: {
                "title": r.measure.title,
                "source": r.measure.source,
                "cells": len(r.cells),
                "within": r.within,
                "coarse": r.coarse,
                "worst_z": r.worst.z if math.isfinite(r.worst.z) else None,
                "worst_cell": place(r, r.worst),
                "verdict": r.verdict,
            }
            for r in results
        },
        "controls": {words: list(names) for words, names in CONTROLS.items()},
        "elsewhere": ELSEWHERE,
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def report(config: Measures, results: Sequence[Result], facts: Facts) -> str:
    """report.md."""
    lines = [
        "# Measurements against the theory\n",
        "The paper (Kinoshita et al., arXiv:2603.14830, abstract) states memory of order r^2 d + L up to logarithms. Every closed form "
        "below is derived here unless its source says otherwise. Standard errors are bootstrap over draws. A cell is within when it "
        f"misses by at most {LIMIT:g} of them beyond its stated correction; a measure passes when {SHARE:.0%} of its cells are, and is "
        "COARSE when more than 5 % of the standard errors exceed what is promised. "
        f"Grid {config.grid}, seed {config.seed}, effort {config.effort:g}; {facts.trials} trials, {facts.failed} failed, "
        f"{facts.seconds} s, {facts.backend}.\n",
        markdown_table(HEADERS, table(results)),
        *(f"- {name}: {text}\n" for name, text in ELSEWHERE.items()),
        *_controls(results),
    ]
    for result in results:
        lines += _section(result)
    return "\n".join(lines)


def _controls(results: Sequence[Result]) -> list[str]:
    rows = control_table(results)
    if not rows:
        return []
    return [
        "\n## Negative controls\n",
        "Each takes one assumption away; PASS means that it fails by the amount the theory gives.\n",
        markdown_table(("taken away", "measure", "measured", "predicted", "within", "verdict"), rows),
    ]


def _section(result: Result) -> list[str]:
    m = result.measure
    promise = f"; s.e. promised: {m.precision:.0%}" if m.precision else ""
    stated = f"; stated correction: {m.correction}" if m.correction else ""
    misses = [
        f"- {place(result, cell)}: measured {number(cell.measured)} +- {number(cell.error, 2)}, predicted {number(cell.predicted)}, "
        f"z = {number(cell.z, 2)}\n"
        for cell in result.cells
        if not cell.within
    ]
    return [
        f"\n## {m.name}: {m.title}\n",
        f"Measured: {m.definition}.\n",
        f"Predicted ({m.relation}): {m.claim}. Source: {m.source}{stated}{promise}.\n",
        f"{result.within} of {len(result.cells)} cells within; verdict {result.verdict}.\n",
        *(["Cells outside:\n", *misses] if misses else []),
        f"![{m.name}](figures/{m.name}.png)\n",
    ]


def cells_csv(results: Sequence[Result]) -> str:
    """Every cell of every measure: measure, place, numbers."""
    rows = [(r.measure.name, f'"{place(r, cell)}"', *(getattr(cell, name) for name in COLUMNS)) for r in results for cell in r.cells]
    return figures.csv(dict(zip(("measure", "cell", *COLUMNS), zip(*rows, strict=True), strict=True)))


def figure_files(results: Sequence[Result]) -> dict[str, bytes | str]:
    """One figure a measure, and all the cells."""
    out: dict[str, bytes | str] = {"cells.csv": cells_csv(results)}
    for result in results:
        out |= figures.files(draw(result), result.measure.name)
    return out


def curves(result: Result) -> dict[str, list[Outcome]]:
    """Cells by everything that varies but the axis, in the order of the axis."""
    others = [name for name in varying(result) if name != result.measure.axis]
    for name in ("J", "M1", "M2"):  # where other entries set them
        rest = [other for other in others if other != name]
        if len({repr([cell.where.get(n) for n in (result.measure.axis, *rest)]) for cell in result.cells}) == len(result.cells):
            others = rest
    groups: dict[str, list[Outcome]] = {}
    for cell in result.cells:
        label = ", ".join(f"{name}={cell.where.get(name)}" for name in others if name in cell.where)
        groups.setdefault(label, []).append(cell)
    return {label: sorted(cells, key=lambda c: c.where[result.measure.axis]) for label, cells in groups.items()}


@figures.styled
def draw(result: Result) -> Figure:
    """Points with three standard errors, the prediction as a line (a dotted one for a bound)."""
    found = list(curves(result).items())
    panels = [found[k : k + PANEL] for k in range(0, len(found), PANEL)]
    figure, axes = figures.new_figure(len(panels), height=4.8)
    figure.suptitle(fill(f"{result.measure.name}: {result.measure.title}", 48 * len(panels)), fontsize=9)
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel, result)
    axes[0].set_ylabel("measured +- 3 s.e., predicted (line)")
    return figure


def _panel(axis: Any, panel: list[tuple[str, list[Outcome]]], result: Result) -> None:
    """Curves with what they share over them and what tells them apart under them; side by side where all stand at one place."""
    name, cells = result.measure.axis, [cell for _, curve in panel for cell in curve]
    settings = [label.split(", ") for label, _ in panel]
    shared = [part for part in settings[0] if all(part in other for other in settings)] if len(panel) > 1 else settings[0]
    places = {cell.where[name] for cell in cells}
    apart = len(places) == 1 and len(panel) > 1
    labels = [", ".join(part for part in parts if part not in shared) for parts in settings]
    for k, ((_, curve), label) in enumerate(zip(panel, labels, strict=True)):
        _curve(axis, [float(k) if apart else cell.where[name] for cell in curve], curve, label, k, result)
    _scales(axis, cells, [] if apart else sorted(map(float, places)))
    axis.set_xlabel(f"{AXES.get(name, name)} = {places.pop():g}" if apart else AXES.get(name, name))
    axis.set_title(fill(", ".join(shared), 52), fontsize=6.5)
    if len(panel) > 1:
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1 if max(map(len, labels)) > 24 else 2)


def _curve(axis: Any, x: list[float], cells: list[Outcome], label: str, k: int, result: Result) -> None:
    measured, error = np.array([c.measured for c in cells]), np.array([c.error for c in cells])
    style = "-" if result.measure.relation == "equal" else ":"
    axis.errorbar(x, measured, yerr=LIMIT * error, fmt="o", ms=3.5, capsize=2, lw=1, color=figures.colour(k), label=label or None)
    axis.plot(x, [c.predicted for c in cells], style, marker="_", ms=9, lw=1.1, color=figures.colour(k))


def _scales(axis: Any, cells: list[Outcome], x: list[float]) -> None:
    if not x:
        axis.set_xticks([])
    elif len(x) > 1 and x[0] > 0:
        axis.set_xscale("log", base=2)
        ticks = [v for k, v in enumerate(x) if k == 0 or v > 1.3 * x[k - 1]]
        axis.set_xticks(ticks, [f"{round(v, 3):g}" for v in ticks])
        axis.minorticks_off()
    low = min(min(cell.measured - LIMIT * cell.error, cell.predicted) for cell in cells)
    high = max(max(cell.measured, cell.predicted) for cell in cells)
    if low > 0 and high > 5 * low:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
