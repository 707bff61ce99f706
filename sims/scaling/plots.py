"""The figures of a scaling experiment, each with the numbers behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sims import figures, population
from sims.encode.report import NAMES as REPRESENTATIONS
from sims.lab.report import with_interval
from sims.lab.store import Row
from sims.scaling.additive import LEADING
from sims.scaling.experiment import CRITERIA, Scaling
from sims.scaling.laws import Laws, Series, risk_fit
from sims.scaling.rows import sound_at


def figure_files(scaling: Scaling, laws: Laws, rows: dict[str, list[Row]]) -> dict[str, bytes | str]:
    """Every figure of the report by file name, with the CSV behind each."""
    out: dict[str, bytes | str] = {}
    out |= figures.files(_law_figure(laws), "law")
    over_m1, over_m2 = _risk_bands(scaling, rows)
    out |= figures.files(_risk_figure(scaling, over_m1, over_m2), "risk")
    out |= figures.files(_risk_in_r_figure(laws, rows), "risk-in-r")
    out |= figures.files(_memory_figure(laws), "memory") | figures.files(_geometry_figure(scaling, rows), "geometry")
    out |= figures.files(_baseline_figure(scaling, rows), "baselines")
    out["floats.csv"] = figures.csv({name: [entry[name] for entry in laws.floats] for name in laws.floats[0]})
    out |= {"risk-M1.csv": _risk_csv(over_m1), "risk-M2.csv": _risk_csv(over_m2)}
    for name, series in laws.series.items():
        low, high = ([None if i is None else i[k] for i in series.intervals] for k in (0, 1))
        columns: dict[str, Sequence[Any]] = {"x": series.x, "y": series.y, "low": low, "high": high}
        out[f"law-{name}.csv"] = figures.csv(columns | ({"predicted": series.predicted} if series.predicted else {}))
    return out


@figures.styled
def _law_figure(laws: Laws) -> Any:
    figure, (left, middle, right, last) = figures.new_figure(4, width=4.0)
    d = laws.series["d"]
    figures.points(left, d.x, d.y, d.intervals, "measured", 0)
    _guides(left, d, ((1.0, "slope 1 (theory)"), (0.0, "0, 2 (rivals)"), (2.0, None)))
    figures.log_log(left, "input dimension d", "floats M1* d at the risk level", d.x)
    left.set_title(_title("d", laws), fontsize=9)
    widths = laws.series["L"]
    figures.points(middle, widths.x, widths.y, widths.intervals, "exact head, line inputs", 0)
    _guides(middle, widths, ((1.0, "slope 1 (theory)"),))
    for k, init in enumerate(("same", "fresh"), start=1):
        series = laws.series[f"L_functional_{init}"]
        figures.points(middle, series.x, series.y, series.intervals, f"risk, {init} start", k)
    figures.log_log(middle, "width L", "labels M2*", widths.x)
    middle.set_title(_title("L", laws), fontsize=9)
    for axis, prefix, words in ((right, "r_", "population, L = infinity"), (last, "r_rows_", "rows from real samples")):
        for k, name in enumerate(CRITERIA):
            series, fit = laws.series[prefix + name], laws.fits[prefix + name]
            text = f"{name.replace('_', ' ')}: {with_interval(fit.exponent, fit.interval)}"
            figures.points(axis, series.x, series.y, series.intervals, text, k)
            axis.plot(series.x, np.array(series.predicted, float), color=figures.colour(k), lw=1.2)
        figures.log_log(axis, "intrinsic dimension r", "points M1* (lines: prediction)", laws.series[prefix + CRITERIA[0]].x)
        axis.set_title(f"r: least points, {words}", fontsize=9)
    last.set_ylim(top=8.0 * last.get_ylim()[1])  # room for its legend above the curves
    for axis in (left, middle, right, last):
        axis.legend(loc="upper left")
    return figure


def _title(name: str, laws: Laws) -> str:
    fit = laws.fits[name]
    return f"{name}: exponent {with_interval(fit.exponent, fit.interval)}"


def _guides(axis: Any, series: Series, lines: Sequence[tuple[float, str | None]]) -> None:
    anchor = figures.centre(series.x, series.y)
    if anchor is None:
        return
    for k, (exponent, label) in enumerate(lines):
        style = {"color": "black"} if k == 0 else {"color": "0.7", "ls": "--"}
        figures.power_line(axis, series.x, anchor, exponent, label or "_", **style)


@dataclass(frozen=True)
class Band:
    """Curves of several seeds as quantiles along x."""

    label: str
    x: Sequence[float]
    quartiles: Float[np.ndarray, "3 n"]


def _risk_bands(scaling: Scaling, rows: dict[str, list[Row]]) -> tuple[list[Band], list[Band]]:
    """Risk over M1 for each d, and over M2 / L at the largest M1 for each L."""

    def band(label: str, x: Sequence[float], curves: list[list[float]]) -> Band:
        return Band(label, x, np.quantile(curves, (0.25, 0.5, 0.75), axis=0))

    over_m1, over_m2 = [], []
    for d in scaling.d:
        group = sound_at(rows, "risk", d=d, r=scaling.base_r, L=scaling.base_L)
        over_m1.append(band(f"d = {d}", scaling.m1_grid(scaling.base_r), [row["real"] for row in group]))
    for width in scaling.L:
        group, grid = sound_at(rows, "risk", d=scaling.base_d, r=scaling.base_r, L=width), scaling.m2_grid(width)
        curves = [row["fresh"][-len(grid) :] for row in group]
        over_m2.append(band(f"L = {width}, fresh start", [m / width for m in grid], curves))
    return over_m1, over_m2


def _risk_csv(bands: Sequence[Band]) -> str:
    points = [(band.label, x, *q) for band in bands for x, q in zip(band.x, band.quartiles.T.tolist(), strict=True)]
    return figures.csv(dict(zip(("curve", "x", "q25", "median", "q75"), zip(*points, strict=True), strict=True)))


@figures.styled
def _risk_figure(scaling: Scaling, over_m1: Sequence[Band], over_m2: Sequence[Band]) -> Any:
    figure, (left, right) = figures.new_figure(2, width=4.2)
    for axis, bands in ((left, over_m1), (right, over_m2)):
        for k, band in enumerate(bands):
            low, middle, high = band.quartiles
            axis.plot(band.x, middle, "o-", ms=3, lw=1.2, color=figures.colour(k), label=band.label)
            axis.fill_between(band.x, low, high, color=figures.colour(k), alpha=0.15, lw=0)
    left.axhline(scaling.level, color="black", lw=1, ls=":", label=f"level {scaling.level:g}")
    figures.log_log(left, "distilled points M1", "test risk, median and quartiles", scaling.m1_grid(scaling.base_r))
    figures.log_log(right, "labels M2 / L at the largest M1", "test risk, median and quartiles", scaling.m2_shares)
    left.legend()
    right.legend()
    return figure


@figures.styled
def _risk_in_r_figure(laws: Laws, rows: dict[str, list[Row]]) -> Any:
    """Left: least M1 by population risk. Right: risk over the teacher's against M1 / r at the least r and the largest. Lines: predicted."""
    figure, (left, right) = figures.new_figure(2, width=4.2)
    sets = ("plain", "reflected")
    for k, (name, key) in enumerate(zip(sets, ("r_risk", "r_risk_reflected"), strict=True)):
        series, fit = laws.series[key], laws.fits[key]
        figures.points(left, series.x, series.y, series.intervals, f"{name}: {with_interval(fit.exponent, fit.interval)}", k)
        left.plot(series.x, np.array(series.predicted, float), color=figures.colour(k), lw=1.2)
    rs = sorted({row["r"] for row in rows["population-risk"]})
    for j, r in enumerate((rs[0], rs[-1])):
        group, fit = sound_at(rows, "population-risk", r=r), risk_fit(rows, r)
        x = np.array(group[0]["grid"], float)
        for k, name in enumerate(sets):
            middle = np.median([[risk / row["teacher"] for risk in row[name]] for row in group], axis=0)
            style: dict[str, Any] = {"ls": "", "marker": "os"[j], "ms": 4, "color": figures.colour(k), "label": f"r = {r}, {name}"}
            right.plot(x / r, middle, **style)
            some = np.geomspace(2.001 * r, x[-1], 7).tolist()
            curve = population.predicted_risk_curve(r, some, fit, name == "reflected")
            if curve is not None:
                right.plot(np.array(some) / r, curve, color=figures.colour(k), lw=1.2, ls="-:"[j])
    figures.log_log(left, "intrinsic dimension r", "points M1* (lines: prediction)", laws.series["r_risk"].x)
    figures.log_log(right, "points M1 / r", "median risk / teacher's (lines: prediction)", (2, 4, 8, 16, 32))
    left.set_title("r: least points by test risk, population", fontsize=9)
    left.legend()
    right.legend()
    return figure


@figures.styled
def _memory_figure(laws: Laws) -> Any:
    """Left: floats* against the fit, one line for all d, r, L. Middle: residuals. Right: against the floats of the weights."""
    figure, (left, middle, right) = figures.new_figure(3)
    found, seen = laws.additive["functional"], [entry for entry in laws.floats if entry["functional"] is not None]
    floats = np.array([entry["functional"] for entry in seen], float)
    d, r, width = (np.array([entry[name] for entry in seen], float) for name in ("d", "r", "L"))
    for axis, words in ((left, "floats* of the distilled set"), (middle, "floats* / fit"), (right, "floats* / floats of the weights")):
        axis.set_ylabel(words)
    left.set_xlabel("r^2 d + L")
    middle.set_xlabel("fit  a r^2 d + b L + c")
    right.set_xlabel("L / r^2")
    if not found.fit.coefficients:
        return figure
    a, b, c = found.fit.coefficients.values()
    fit = a * LEADING["r^2 d"](r, d) + b * width + c
    weights = np.array([entry["weights"] for entry in seen], float)
    for k, value in enumerate(np.unique(r)):
        at = r == value
        style: dict[str, Any] = {"ls": "", "marker": "os^vD*Ph"[k % 8], "ms": 5, "color": figures.colour(k), "label": f"r = {value:g}"}
        left.plot((r * r * d + width)[at], floats[at], **style)
        middle.plot(fit[at], (floats / fit)[at], **style)
        right.plot((width / r**2)[at], (floats / weights)[at], **style)
    ends = np.array([np.min(r * r * d + width), np.max(r * r * d + width)])
    left.plot(ends, ends * float(np.exp(np.mean(np.log(floats / (r * r * d + width))))), color="black", lw=1.2, label="slope 1")
    for axis in (middle, right):
        axis.axhline(1.0, color="black", lw=1.2)
    for axis in (left, right):
        axis.set_yscale("log")
    for axis in (left, middle, right):
        axis.set_xscale("log")
        figures.plain_ticks(axis.xaxis)
        axis.legend()
    middle.set_title(f"relative residual {found.fit.error:.2g}", fontsize=9)
    right.set_title("below 1: distilling stores less", fontsize=9)
    return figure


@figures.styled
def _geometry_figure(scaling: Scaling, rows: dict[str, list[Row]]) -> Any:
    """Left: largest principal angle to S* over stored floats. Right: singular values of the largest sets, gap at r."""
    figure, (left, right) = figures.new_figure(2, width=4.2)
    for k, d in enumerate(scaling.d):
        group = sound_at(rows, "risk", d=d, r=scaling.base_r, L=scaling.base_L)
        degrees = np.degrees(np.quantile([row["angle"] for row in group], (0.25, 0.5, 0.75), axis=0))
        x = [m * d for m in scaling.m1_grid(scaling.base_r)]
        left.plot(x, degrees[1], "o-", ms=3, lw=1.2, color=figures.colour(k), label=f"d = {d}")
        left.fill_between(x, degrees[0], degrees[2], color=figures.colour(k), alpha=0.15, lw=0)
    places = dict.fromkeys((scaling.base_d, r, scaling.L_real) for r in scaling.r_real)
    places = [(scaling.base_d, scaling.base_r, scaling.L[-1]), *places]
    for k, (d, r, width) in enumerate(places):
        values = np.array([row["singular_values"] for row in sound_at(rows, "risk", d=d, r=r, L=width)])
        middle = np.median(values / values[:, :1], axis=0)
        right.plot(np.arange(1, len(middle) + 1) / r, middle, "o-", ms=3, lw=1.2, color=figures.colour(k), label=f"r = {r}")
    right.axvline(1.0, color="black", ls=":", lw=1)
    for axis in (left, right):
        axis.set_yscale("log")
        axis.legend()
    left.set_xscale("log")
    left.set_xlabel("stored floats M1 d")
    left.set_ylabel("largest principal angle to S*, degrees")
    right.set_xlabel("index / r")
    right.set_ylabel("singular value / largest")
    return figure


@figures.styled
def _baseline_figure(scaling: Scaling, rows: dict[str, list[Row]]) -> Any:
    """Risk of every representation at every task, tasks in the order of their floats: median, least and greatest over seeds."""
    figure, (axis,) = figures.new_figure(1, width=9.5, height=4.2)
    groups = [sound_at(rows, "baselines", d=d, r=r, L=width) for d, r, width in scaling.tasks()]
    groups.sort(key=lambda group: group[0]["floats_distilled"])
    for k, (name, label) in enumerate(REPRESENTATIONS.items()):
        risks = [np.quantile([row[f"risk_{name}"] for row in group], (0.0, 0.5, 1.0)) for group in groups]
        low, middle, high = np.array(risks).T
        place = np.arange(len(groups)) + 0.8 * ((k + 0.5) / len(REPRESENTATIONS) - 0.5)
        style: dict[str, Any] = {"fmt": "os^vD*Phx"[k], "ms": 4, "lw": 0.8, "color": figures.colour(k), "label": label}
        axis.errorbar(place, middle, yerr=[middle - low, high - middle], **style)
    names = ["\n".join(str(g[0][name]) for name in ("d", "r", "L", "floats_distilled")) for g in groups]
    axis.set_xticks(range(len(groups)), names, fontsize=7)
    axis.set_yscale("log")
    axis.set_xlabel("task, from above: d, r, L, floats of the distilled set")
    axis.set_ylabel("test risk: median, least, greatest")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
