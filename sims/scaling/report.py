"""What a scaling experiment leaves for its reader: summary.json, report.md, figures with the numbers behind them, and a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sims import figures
from sims.command import Facts
from sims.lab.report import LAW_HEADERS, Cell, law_row, markdown_table, number, with_interval
from sims.lab.store import Row
from sims.population import THRESHOLDS
from sims.scaling.experiment import CRITERIA, Scaling
from sims.scaling.laws import RISK_BOUND, Laws, Series, sound_at

NAMES = {
    "d": "d: floats M1 d at one risk level",
    "L": "L: labels that recover the head (line inputs)",
    "L_functional_same": "L: labels for the risk, same start",
    "L_functional_fresh": "L: labels for the risk, fresh start",
    "r_common_mode": "r: M1, common mode",
    "r_conditioning": "r: M1, conditioning, plain",
    "r_reflected": "r: M1, conditioning, reflected",
    "r_risk": "r: M1, test risk, plain",
    "r_risk_reflected": "r: M1, test risk, reflected",
}


def law_rows(laws: Laws) -> list[list[Cell]]:
    """The rows of the law table, in reading order."""
    return [law_row(NAMES[name], laws.fits[name]) for name in NAMES if name in laws.fits]


def summary(laws: Laws, facts: Facts) -> str:
    """summary.json."""
    content = {
        "fit": {name: fit.as_json() for name, fit in laws.fits.items()},
        "additive": {name: fit.as_json() for name, fit in laws.additive.items()},
        "floats": laws.floats,
        "remarks": laws.remarks,
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def report(scaling: Scaling, laws: Laws, rows: dict[str, list[Row]], facts: Facts) -> str:
    """report.md."""
    parts = [
        "# Memory of the distilled set: measured exponents\n",
        "Stated in the paper (Kinoshita et al., arXiv:2603.14830, abstract): memory of order r^2 d + L up to logarithms. Derived here: "
        "which measurement stands for which term, and every finite-size prediction. Intervals are 95 % percentile bootstrap over seeds "
        f"or draws, whole curves at a time. {facts.trials} trials, {facts.failed} failed, {facts.seconds} s, {facts.backend}.\n",
        markdown_table(LAW_HEADERS, law_rows(laws)),
        *(f"- {NAMES[name]}: {text}\n" for name, text in laws.remarks.items()),
        "\n## What each line measures\n",
        _definitions(scaling, _head_error_at_width(rows)),
        "\n## Total floats: a r^2 d + b L + c\n",
        additive_text(laws),
        markdown_table(
            ("d", "r", "L", "floats, labels reach the level", "M2 there", "floats, exact head"),
            [[f["d"], f["r"], f["L"], f["functional"], f["M2"], f["exact_head"]] for f in laws.floats],
        ),
        "\n## The numbers behind the slopes\n",
        *(_series_table(NAMES[name], laws.series[name]) for name in NAMES if name in laws.series),
        "\n![exponents](figures/law.png)\n\n![risk against points](figures/risk.png)\n",
    ]
    return "\n".join(parts)


def _head_error_at_width(rows: dict[str, list[Row]]) -> float:
    """The largest relative head error at M2 = L, over all networks."""
    return max(row["errors"][row["grid"].index(row["L"])] for row in sound_at(rows, "head"))


def _definitions(scaling: Scaling, head_error: float) -> str:
    lines = (
        f"- **d**: link {scaling.link!r}, r = {scaling.base_r}, L = {scaling.base_L}, N = {scaling.samples:g} d^2 streamed samples, "
        f"L J/(r d) = {scaling.diversity:g}, {scaling.seeds} seeds. M1 is interpolated where the median test risk (head on real samples) "
        f"first reaches {scaling.level:g}, one level for all d. Neighbours in the grid of M1 differ by a factor of at most 1.4 wherever "
        "integers allow.",
        f"- **L, head**: least M2 from which the relative head error stays under {scaling.tolerance:g}; inputs t v on a line, one "
        "between consecutive kinks. Linear algebra says exactly L, so L - 1, L and L + 1 are in the grid and the interval has no width; "
        f"the largest error seen at M2 = L is {head_error:.1e}. "
        f"{scaling.head_seeds} networks a width.",
        f"- **L, risk**: least M2 whose risk is within {scaling.functional_ratio:g} of a head on real samples, for the network that made "
        "the labels and for a fresh one. No prediction, so no verdict.",
        "- **r, spectrum**: second moment of the retrained rows at L = infinity for M1 Gaussian points in r coordinates; largest over "
        f"median eigenvalue <= {THRESHOLDS['common_mode']:g}, condition number <= {THRESHOLDS['conditioning']:g}; "
        f"{scaling.spectrum_draws}/r draws. The predicted column is the slope of the finite-size prediction over the same r.",
        f"- **r, risk**: population mode, least M1 with risk <= {scaling.risk_ratio:g} x the teacher's, {scaling.risk_draws}/r^2 draws "
        "(at least 6). At the sizes reached it can neither confirm nor refute r^2; asked is only that the upper end stays under "
        f"{RISK_BOUND:g}.",
        f"- **Why these numbers**: a risk of {scaling.level:g} lies well under the variance and well over the "
        "full-data teacher at every size; ratios of "
        "3 and 10 ask for features conditioned within a constant, and change M1* by a factor, not its exponent; medians because single "
        "draws have heavy tails; grids of M1 reach from below r points to ten r^2, and of M2 from L/4 to 8 L, so that a slope of 0 and "
        "one of 2 would both show. All stand in the configuration before the first trial.",
        "- **What is not counted**: the preprocessing's mean and linear part, d + 1 floats shared by the teacher, every distilled set and "
        "every baseline; and the held-out samples that pick each ridge penalty.",
        "- A point that never reaches its level is censored: left out of the slope, counted, and never replaced.",
    )
    return "\n".join(lines) + "\n"


ADDITIVE = {
    "functional": "least M1 d + M2 whose median risk with a fresh start reaches the level",
    "exact_head": "M1* d + L: points for the level with a real head, and the L labels of an exact head, added by construction",
}


def additive_text(laws: Laws) -> str:
    """The coefficients of both additive fits with their intervals, and what each one counts."""
    lines = []
    for name, fit in laws.additive.items():
        if not fit.coefficients:
            lines.append(f"- {name}: no fit ({fit.n} points, {fit.censored} censored)\n")
            continue
        terms = ", ".join(f"{term}: {with_interval(c, fit.intervals.get(term))}" for term, c in fit.coefficients.items())
        error = f"relative residual {number(fit.error)}, {fit.n} points, {fit.censored} censored"
        lines.append(f"- {name} ({ADDITIVE[name]}): {terms}; {error}\n")
    bounds = sum(entry["at_start"] for entry in laws.floats)
    if bounds:
        count = "1 task reaches" if bounds == 1 else f"{bounds} tasks reach"
        lines.append(f"- {count} the level at the start of the grid of M1 already: entered with it, an upper bound\n")
    return "".join(lines)


def _series_table(name: str, series: Series) -> str:
    predicted: Sequence[float | None] = series.predicted or [None] * len(series.x)
    rows = [
        [number(x), with_interval(y if math.isfinite(y) else None, i, 1), p]
        for x, y, i, p in zip(series.x, series.y, series.intervals, predicted, strict=True)
    ]
    return f"{name}\n\n" + markdown_table(("x", "value [95 %]", "predicted"), rows)


def figure_files(scaling: Scaling, laws: Laws, rows: dict[str, list[Row]]) -> dict[str, bytes | str]:
    """Every figure of the report by file name, with the CSV behind each."""
    out: dict[str, bytes | str] = {}
    out |= figures.files(_law_figure(laws), "law")
    over_m1, over_m2 = _risk_bands(scaling, rows)
    out |= figures.files(_risk_figure(scaling, over_m1, over_m2), "risk")
    out |= {"risk-M1.csv": _risk_csv(over_m1), "risk-M2.csv": _risk_csv(over_m2)}
    for name, series in laws.series.items():
        low, high = ([None if i is None else i[k] for i in series.intervals] for k in (0, 1))
        columns: dict[str, Sequence[Any]] = {"x": series.x, "y": series.y, "low": low, "high": high}
        out[f"law-{name}.csv"] = figures.csv(columns | ({"predicted": series.predicted} if series.predicted else {}))
    return out


@figures.styled
def _law_figure(laws: Laws) -> Any:
    figure, (left, middle, right) = figures.new_figure(3)
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
    for k, name in enumerate(CRITERIA):
        series = laws.series[f"r_{name}"]
        fit = laws.fits[f"r_{name}"]
        figures.points(
            right, series.x, series.y, series.intervals, f"{name.replace('_', ' ')}: {with_interval(fit.exponent, fit.interval)}", k
        )
        right.plot(series.x, np.array(series.predicted, float), color=figures.colour(k), lw=1.2)
    figures.log_log(right, "intrinsic dimension r", "points M1* (lines: prediction)", laws.series["r_common_mode"].x)
    right.set_title("r: least points by criterion", fontsize=9)
    for axis in (left, middle, right):
        axis.legend()
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
