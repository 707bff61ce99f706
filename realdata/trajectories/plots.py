"""The figures of a comparison: accuracies of every set with their intervals over seeds, and errors along the experts by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from realdata.evaluate import OWN
from realdata.figures import BLUE, GREY, STYLE

COLOURS = (BLUE, "#c8553d", "#3a7d44", GREY)
PANELS = {
    "accumulated": "accumulated error, weights",
    "matching": "matching error, weights",
    "initialisation": "initialisation error, weights",
    "excess": "excess held-out loss, nats",
}


def accuracies(found: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a size, the sets side by side; dots are seeds, bars Student's intervals over them."""
    sizes, methods = (list(dict.fromkeys(x[name] for x in found)) for name in ("ipc", "method"))
    places = {ipc: list(dict.fromkeys((x["network"], x["set"]) for x in found if x["ipc"] == ipc)) for ipc in sizes}
    figure = Figure(figsize=(2.0 + sum(0.9 + 0.35 * len(places[ipc]) for ipc in sizes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, width_ratios=[2.0 + len(places[ipc]) for ipc in sizes]).ravel()
    for axes, ipc in zip(panels, sizes, strict=True):
        for j, method in enumerate(methods):
            rows = [x for x in found if (x["ipc"], x["method"]) == (ipc, method)]
            x = np.array([places[ipc].index((row["network"], row["set"])) for row in rows]) + 0.25 * (j - 0.5 * (len(methods) - 1))
            mean = np.array([row["mean"] for row in rows])
            ends = np.array([row["interval"] or (row["mean"],) * 2 for row in rows])
            colour = COLOURS[j % len(COLOURS)]
            axes.errorbar(x, mean, np.abs(ends.T - mean), fmt="o", ms=4, capsize=2, color=colour, label=method)
            dots = [(place, a) for place, row in zip(x, rows, strict=True) for a in row["accuracies"]]
            axes.scatter(*zip(*dots, strict=True), s=5, color=colour, alpha=0.4)
        names = [kind if network == OWN else f"{network}: {kind}" for network, kind in places[ipc]]
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)
        axes.set_title(f"{ipc} image{'s' if ipc > 1 else ''} a class", fontsize="medium")
        axes.grid(alpha=0.25, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def errors(found: Sequence[Mapping[str, Any]], reach: Mapping[int, int]) -> Figure:
    """A row a size, a panel a quantity, every method on the same axes: means with Student's 95 % over experts; the line is the reach."""
    sizes = list(dict.fromkeys(x["ipc"] for x in found))
    figure = Figure(figsize=(2.9 * len(PANELS), 2.5 * len(sizes)), layout="constrained")
    grid = figure.subplots(len(sizes), len(PANELS), squeeze=False, sharex=True)
    for line, ipc in zip(grid, sizes, strict=True):
        for axes, name in zip(line, PANELS, strict=True):
            rows = [x for x in found if (x["ipc"], x["quantity"]) == (ipc, name)]
            for j, method in enumerate(dict.fromkeys(method for x in rows for method in x["methods"])):
                own = [(x["epoch"], x["methods"][method]) for x in rows if method in x["methods"]]
                epochs, mean = [epoch for epoch, _ in own], [one["mean"] for _, one in own]
                ends = np.array([one["interval"] or (one["mean"],) * 2 for _, one in own])
                colour = COLOURS[j % len(COLOURS)]
                axes.fill_between(epochs, ends[:, 0], ends[:, 1], color=colour, alpha=0.2, linewidth=0)
                axes.plot(epochs, mean, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=method)
            axes.axvline(reach[ipc], linestyle="--", label="last epoch drawn", **STYLE)
            axes.set_title(f"{PANELS[name]}, {ipc} a class", fontsize="small")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("epoch of the expert")
    grid[0][0].legend(frameon=False, fontsize="small")
    return figure
