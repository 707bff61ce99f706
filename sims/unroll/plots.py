"""Figures of the practical algorithms: what is encoded over outer steps, the unroll itself, risk over floats, floats over d and r."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sims import figures
from sims.lab.store import Row
from sims.unroll import windows
from sims.unroll.experiment import Unroll
from sims.unroll.experts import QUALITIES
from sims.unroll.flatness import MEASURES
from sims.unroll.laws import CRITERIA, Law, curves, level, point_floats
from sims.unroll.names import NAMES
from sims.unroll.paired import Ratio

MARKS = "os^vD*PhX<"
DASHES = ("-", "--", ":")

Files = dict[str, bytes | str]


def _style(k: int) -> dict[str, Any]:
    """Colour, dashes and mark of the k-th method: different for each of the first thirty."""
    return {
        "color": figures.colour(k),
        "ls": DASHES[k // len(figures.COLOURS) % len(DASHES)],
        "marker": MARKS[k % len(MARKS)],
        "ms": 3,
        "lw": 1.1,
    }


def _legend(figure: Figure, axis: Axes) -> None:
    """Beside the panels: ten methods fit into none."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)


def encode_files(detail: Mapping[str, list[Row]]) -> Files:
    """encode.png: medians and ranges over draws against the outer step; sets without an outer loop are lines."""
    lines: list[tuple[Any, ...]] = []
    for method, rows in detail.items():
        for k, step in enumerate(rows[0]["curve_step"]):
            lines.append((method, step, *(float(np.median([row[f"curve_{name}"][k] for row in rows])) for name in windows.MEASURES)))
    out: Files = dict(figures.files(_encode_figure(detail), "encode"))
    return out | {"encode.csv": _csv(("method", "outer step", *windows.MEASURES), lines)}


@figures.styled
def _encode_figure(detail: Mapping[str, list[Row]]) -> Figure:
    figure, axes = figures.new_figure(len(windows.MEASURES))
    last = 1 + max(rows[0]["curve_step"][-1] for rows in detail.values())
    for axis, name in zip(axes, windows.MEASURES, strict=True):
        for k, (method, rows) in enumerate(detail.items()):
            stack = np.array([row[f"curve_{name}"] for row in rows])
            steps = np.array(rows[0]["curve_step"]) + 1
            if stack.shape[1] == 1:
                steps, stack = np.array([1, last]), np.repeat(stack, 2, axis=1)
            axis.plot(steps, np.median(stack, axis=0), label=method, **_style(k))
            axis.fill_between(steps, stack.min(axis=0), stack.max(axis=0), color=figures.colour(k), alpha=0.08, lw=0)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("outer step + 1")
        axis.set_ylabel(NAMES[name])
    _legend(figure, axes[0])
    return figure


def unroll_files(detail: Mapping[str, list[Row]]) -> Files:
    """unroll.png: gradient norms along the training run, windows drawn, what the meta-gradient leaves out."""
    lines = [
        (method, when, t, float(np.median([row[f"profile_{when}"][t] for row in rows])))
        for method, rows in detail.items()
        for when in ("start", "end")
        for t in range(len(rows[0]["profile_end"]))
    ]
    out: Files = dict(figures.files(_unroll_figure(detail), "unroll"))
    return out | {"unroll.csv": _csv(("method", "set", "inner step", "gradient norm"), lines)}


@figures.styled
def _unroll_figure(detail: Mapping[str, list[Row]]) -> Figure:
    figure, (left, middle, right) = figures.new_figure(3)
    looped = {method: rows for method, rows in detail.items() if rows[0]["window_starts"]}
    for k, (method, rows) in enumerate(detail.items()):
        profile = np.median([row["profile_end"] for row in rows], axis=0)
        left.plot(np.arange(len(profile)), profile, label=method, **_style(k))
        if method in looped and len(profile) > 1:
            starts = np.concatenate([row["window_starts"] for row in rows])
            stops = np.concatenate([row["window_stops"] for row in rows])
            share = [float(np.mean((starts <= t) & (t < stops))) for t in range(int(stops.max()))]
            style: dict[str, Any] = _style(k) | {"marker": "", "drawstyle": "steps-post"}
            middle.plot(np.arange(len(share) + 1), [*share, share[-1]], **style)
    left.set_yscale("log")
    left.set_xlabel("inner step t")
    left.set_ylabel("gradient norm on the final set")
    middle.set_xlabel("inner step t")
    middle.set_ylabel("share of windows that hold it")
    place = np.arange(len(looped))
    bars = (
        ("cosine_truncation_end", "whole unroll, final set"),
        ("cosine_full_start", "BPTT, start"),
        ("cosine_full_end", "BPTT, final set"),
    )
    for j, (name, label) in enumerate(bars):
        found = [[row[name] for row in rows if row[name] is not None] for rows in looped.values()]
        heights = [float(np.median(values)) if values else 0.0 for values in found]
        right.bar(place + 0.27 * (j - 1), heights, 0.25, color=figures.colour(j), label=label)
    right.axhline(0.0, color="black", lw=0.8)
    right.set_xticks(place, list(looped), rotation=40, ha="right", fontsize=7)
    right.set_ylabel("cosine of meta-gradients")
    right.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=0.8)
    _legend(figure, left)
    return figure


def floats_files(config: Unroll, rows: Sequence[Row]) -> Files:
    """floats.png: every criterion over stored floats at the middle d and the first r."""
    d, r = config.base_d, config.r[0]
    medians = {
        (method, name): np.median(curves(config, rows, name, method=method, d=d, r=r), axis=0)
        for method in config.method
        for name in CRITERIA
        if method != "full-data"
    }
    lines = [
        (method, name, m1, m1 * point_floats(config, method, d), float(value))
        for (method, name), curve in medians.items()
        for m1, value in zip(config.M1, curve, strict=True)
    ]
    out: Files = dict(figures.files(_floats_figure(config, medians), "floats"))
    return out | {"floats.csv": _csv(("method", "criterion", "M1", "floats", "median"), lines)}


@figures.styled
def _floats_figure(config: Unroll, medians: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    figure, axes = figures.new_figure(len(CRITERIA))
    methods = list(dict.fromkeys(method for method, _ in medians))
    for axis, name in zip(axes, CRITERIA, strict=True):
        for k, method in enumerate(methods):
            curve = medians[method, name]
            x = np.array(config.M1) * point_floats(config, method, config.base_d)
            seen = np.isfinite(curve)
            axis.plot(x[seen], curve[seen], label=method, **_style(k))
        axis.axhline(level(config, name), color="black", ls=":", lw=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.set_xlabel("stored floats of the set")
        axis.set_ylabel(NAMES[CRITERIA[name]])
    _legend(figure, axes[0])
    return figure


def flatness_files(ratios: Sequence[Ratio]) -> Files:
    """flatness.png: ftd / mtt with intervals, experts beside the sets they make."""
    lines = [(x.name, x.at, x.ratio, *x.interval, x.n) for x in ratios]
    out: Files = dict(figures.files(_flatness_figure(ratios), "flatness"))
    return out | {"flatness.csv": _csv(("number", "M1", "ratio", "low", "high", "tasks"), lines)}


@figures.styled
def _flatness_figure(ratios: Sequence[Ratio]) -> Figure:
    figure, axes = figures.new_figure(2, width=4.6)
    for axis, names, title in zip(axes, (QUALITIES, MEASURES), ("experts", "sets"), strict=True):
        sizes = list(dict.fromkeys(x.at for x in ratios))
        for k, m1 in enumerate(sizes):
            here = {x.name: x for x in ratios if x.at == m1}
            shown = [name for name in names if name in here]
            place = np.array([names.index(name) for name in shown]) + 0.7 * ((k + 0.5) / len(sizes) - 0.5)
            label = "all M1" if m1 is None else f"M1 = {m1}"
            figures.points(axis, place.tolist(), [here[n].ratio for n in shown], [here[n].interval for n in shown], label, k)
        axis.axhline(1.0, color="black", lw=0.8)
        axis.set_xticks(range(len(names)), [name.removeprefix("expert_").replace("_", " ") for name in names], rotation=30, ha="right")
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("ftd / mtt")
    _legend(figure, axes[1])
    return figure


def window_files(ratios: Mapping[str, Sequence[Ratio]]) -> Files:
    """windows.png: method / rat-bptt against the outer step, with intervals."""
    lines = [(method, x.name, x.at, x.ratio, *x.interval, x.n) for method, found in ratios.items() for x in found]
    out: Files = dict(figures.files(_window_figure(ratios), "windows"))
    return out | {"windows.csv": _csv(("method / rat-bptt", "number", "outer step", "ratio", "low", "high", "tasks"), lines)}


@figures.styled
def _window_figure(ratios: Mapping[str, Sequence[Ratio]]) -> Figure:
    figure, axes = figures.new_figure(len(windows.MEASURES))
    for axis, name in zip(axes, windows.MEASURES, strict=True):
        for k, (method, found) in enumerate(ratios.items()):
            here = {x.at: x for x in found if x.name == name and x.at is not None}
            axis.plot(list(here), [x.ratio for x in here.values()], label=method, **_style(k))
            low, high = np.array([x.interval for x in here.values()]).T
            axis.fill_between(list(here), low, high, color=figures.colour(k), alpha=0.15, lw=0)
        axis.axhline(1.0, color="black", lw=0.8)
        axis.set_xscale("log")
        axis.set_xlabel("outer step")
        axis.set_title(NAMES[name], fontsize=9)
    axes[0].set_ylabel("method / rat-bptt")
    _legend(figure, axes[0])
    return figure


def law_files(laws: Sequence[Law]) -> Files:
    """law-d.png and law-r.png: floats* over d or r, a panel a criterion, with lines of slope 1 and 2."""
    out: Files = {}
    for name in dict.fromkeys(law.axis for law in laws):
        here = [law for law in laws if law.axis == name]
        lines = [
            (law.method, law.criterion, x, y, *(interval or (None, None)))
            for law in here
            for x, y, interval in zip(law.found.x, law.found.y, law.found.intervals, strict=True)
        ]
        out |= {f"law-{name}.csv": _csv(("method", "criterion", name, "floats", "low", "high"), lines)}
        out |= figures.files(_law_figure(here), f"law-{name}")
    return out


@figures.styled
def _law_figure(laws: Sequence[Law]) -> Figure:
    figure, axes = figures.new_figure(len(CRITERIA))
    methods = list(dict.fromkeys(law.method for law in laws))
    for axis, criterion in zip(axes, CRITERIA, strict=True):
        _law_panel(axis, [law for law in laws if law.criterion == criterion], methods)
        axis.set_title(criterion, fontsize=9)
    _legend(figure, axes[0])
    return figure


def _law_panel(axis: Axes, laws: Sequence[Law], methods: Sequence[str]) -> None:
    x = laws[0].found.x
    for law in laws:
        k = methods.index(law.method)
        y = np.array(law.found.y)
        seen = np.isfinite(y) & (y > 0)
        shift = 1.015 ** (k - len(methods) / 2)
        intervals = [interval or (v, v) for v, interval, s in zip(y, law.found.intervals, seen, strict=True) if s]
        low, high = np.array(intervals).reshape(-1, 2).T
        error = [np.maximum(0.0, y[seen] - low), np.maximum(0.0, high - y[seen])]
        style: dict[str, Any] = {"yerr": error, "capsize": 2, "label": law.method} | _style(k)
        axis.errorbar(np.array(x)[seen] * shift, y[seen], **style)
    anchors = [figures.centre(law.found.x, law.found.y) for law in laws]
    anchor = next((found for found in anchors if found is not None), None)
    for slope, style in ((1.0, {"color": "0.3"}), (2.0, {"color": "0.7", "ls": "--"})):
        if anchor is not None:
            figures.power_line(axis, x, anchor, slope, f"slope {slope:g}", **style)
    figures.log_log(axis, laws[0].axis, "floats*", x)


def _csv(names: Sequence[str], lines: Sequence[tuple[Any, ...]]) -> str:
    return figures.csv({name: [_cell(line[k]) for line in lines] for k, name in enumerate(names)})


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
