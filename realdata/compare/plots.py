"""The figure of a comparison: accuracies with their intervals, where the time of an outer step goes, cosines to the full meta-gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from realdata.compare.probe import WHEN
from realdata.figures import BLUE, GREY
from realdata.steps import PHASES

COLOURS = {"steps": BLUE, "time": "#c8553d"}
PARTS = {"plain": BLUE, "product": "#c8553d", "real": "#3a7d44", "rest": GREY}


def _axis(axes: Axes, label: str, arms: Sequence[str]) -> None:
    axes.set_xticks(range(len(arms)), arms, rotation=35, ha="right", fontsize=7)
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="x-small")


def comparison(found: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """One panel each, arms side by side."""
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    arms = list(dict.fromkeys(x["arm"] for x in found))
    kinds = list(dict.fromkeys(x["equal"] for x in found))
    for k, equal in enumerate(kinds):
        rows = [x for x in found if x["equal"] == equal]
        places = np.array([arms.index(x["arm"]) for x in rows]) + 0.22 * (k - (len(kinds) - 1) / 2)
        means = np.array([x["test_mean"] for x in rows])
        ends = np.array([x["test_interval"] or (x["test_mean"],) * 2 for x in rows])
        left.errorbar(places, means, np.abs(ends.T - means), fmt="o", ms=4, capsize=2, color=COLOURS[equal], label=f"equal {equal}")
        dots = [(place, a) for place, x in zip(places, rows, strict=True) for a in np.mean(x["accuracies"], axis=1)]
        left.scatter(*zip(*dots, strict=True), s=5, color=COLOURS[equal], alpha=0.35)
    _axis(left, "test accuracy (%), 95 %; dots: seeds", arms)
    rows = [x for x in found if x["equal"] == "steps"]
    base = np.zeros(len(rows))
    for phase in (*PHASES, "rest"):
        height = np.array([x[f"seconds_{phase}"] for x in rows])
        middle.bar(range(len(rows)), height, 0.6, base, color=PARTS[phase], label=phase)
        base += height
    middle.margins(y=0.3)  # room for the legend
    _axis(middle, "seconds an outer step", arms)
    bars = [(f"cosine_{name}_{when}", f"{words}, {when}") for name, words in (("run", "same run"), ("full", "all T")) for when in WHEN]
    for k, (name, words) in enumerate(bars):
        right.bar(np.arange(len(rows)) + 0.2 * (k - 1.5), [x[name] for x in rows], 0.19, color=list(PARTS.values())[k], label=words)
    right.margins(y=0.3)
    _axis(right, "cosine to the exact meta-gradient", arms)
    figure.suptitle(title, fontsize=9)
    return figure
