"""What a scaling experiment leaves for its reader: summary.json, report.md, figures with the numbers behind them, and a table."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sims.command import Facts
from sims.encode.report import NAMES as REPRESENTATIONS
from sims.lab.report import LAW_HEADERS, Cell, law_row, markdown_table, number, with_interval
from sims.lab.store import Row
from sims.population import THRESHOLDS
from sims.scaling.additive import LAW, Additive
from sims.scaling.experiment import Scaling
from sims.scaling.laws import RISK_BOUND, Laws, Series
from sims.scaling.rows import sound_at

NAMES = {
    "d": "d: floats M1 d at one risk level",
    "L": "L: labels that recover the head (line inputs)",
    "L_functional_same": "L: labels for the risk, same start",
    "L_functional_fresh": "L: labels for the risk, fresh start",
    "r_common_mode": "r: M1, common mode",
    "r_conditioning": "r: M1, conditioning, plain",
    "r_reflected": "r: M1, conditioning, reflected",
    "r_rows_common_mode": "r: M1, common mode, real samples",
    "r_rows_conditioning": "r: M1, conditioning, plain, real samples",
    "r_rows_reflected": "r: M1, conditioning, reflected, real samples",
    "r_risk": "r: M1, test risk, plain",
    "r_risk_reflected": "r: M1, test risk, reflected",
}


FIGURES = {
    "law": "exponents",
    "risk": "risk against points and labels",
    "risk-in-r": "least points by test risk over r, and the risk against points, with the equivalents' curves",
    "memory": "floats against the fit, residuals, and the weights' floats",
    "geometry": "principal angles against floats, singular values",
    "baselines": "risk beside baselines at equal floats",
}


def law_rows(laws: Laws) -> list[list[Cell]]:
    """The rows of the law table, in reading order."""
    return [law_row(NAMES[name], laws.fits[name]) for name in NAMES if name in laws.fits]


def summary(laws: Laws, facts: Facts) -> str:
    """summary.json."""
    content = {
        "fit": {name: fit.as_json() for name, fit in laws.fits.items()},
        "additive": {name: _additive_json(found) for name, found in laws.additive.items()},
        "floats": laws.floats,
        "remarks": laws.remarks,
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def _additive_json(found: Additive) -> dict[str, Any]:
    rivals = {r.term: {"error": r.error, "excess": r.excess, "interval": r.interval, "excluded": r.excluded} for r in found.rivals}
    even = [{"d": d, "r": r, "L": width, "interval": interval} for (d, r), (width, interval) in found.break_even.items()]
    log = {"power": found.log_power, "interval": found.log_interval}
    return found.fit.as_json() | {"rivals": rivals, "log_d": log, "break_even": even}


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
            ("d", "r", "L", "floats, labels reach the level", "M2 there", "floats, exact head", "floats of the weights"),
            [[f["d"], f["r"], f["L"], f["functional"], f["M2"], f["exact_head"], f["weights"]] for f in laws.floats],
        ),
        "\n## Other formulas\n",
        *(_rival_table(name, found) for name, found in laws.additive.items()),
        "\n## Distilling or storing the weights\n",
        break_even_text(laws),
        f"\n## At equal floats: median risk, M1 = 4 r^2, M2 = 2 L, {scaling.baseline_seeds} seeds\n",
        baseline_table(scaling, rows),
        "\n## The numbers behind the slopes\n",
        *(_series_table(NAMES[name], laws.series[name]) for name in NAMES if name in laws.series),
        *(f"\n![{words}](figures/{name}.png)\n" for name, words in FIGURES.items()),
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
        "(at least 6). The predicted column is the slope of the deterministic equivalent of theory.head_risk over the same r (derived "
        "here; within 7 % of sampled risks from M1 = 6 r on at r >= 8, rougher below; none at odd r). It lies between 1 and 2 and tends "
        "to 1: the common mode, which costs r^2 points by conditioning, is one direction of r and carries 1/r of a quadratic target. The "
        "upper end has to "
        f"stay under {RISK_BOUND:g}.",
        f"- **Why these numbers**: a risk of {scaling.level:g} lies well under the variance and well over the "
        "full-data teacher at every size; ratios of "
        "3 and 10 ask for features conditioned within a constant, and change M1* by a factor, not its exponent; medians because single "
        "draws have heavy tails; grids of M1 reach from below r points to ten r^2, and of M2 from L/4 to 8 L, so that a slope of 0 and "
        "one of 2 would both show. All stand in the configuration before the first trial.",
        "- **What is not counted**: the preprocessing's mean and linear part, d + 1 floats shared by the teacher, every distilled set and "
        "every baseline; and the held-out samples that pick each ridge penalty.",
        "- A point that never reaches its level, or reaches it at the start of its grid already, is censored: left out of every fit, "
        "counted, and never replaced.",
    )
    return "\n".join(lines) + "\n"


ADDITIVE = {
    "functional": "least M1 d + M2 whose median risk with a fresh start reaches the level",
    "exact_head": "M1* d + L: points for the level with a real head, and the L labels of an exact head, added by construction",
}


def additive_text(laws: Laws) -> str:
    """The coefficients of both additive fits with their intervals, and what each one counts."""
    lines = []
    for name, found in laws.additive.items():
        fit = found.fit
        if not fit.coefficients:
            lines.append(f"- {name}: no fit ({fit.n} points, {fit.censored} censored)\n")
            continue
        terms = ", ".join(f"{term}: {with_interval(c, fit.intervals.get(term))}" for term, c in fit.coefficients.items())
        error = f"relative residual {number(fit.error)}, {fit.n} points, {fit.censored} censored"
        lines.append(f"- {name} ({ADDITIVE[name]}): {terms}; {error}\n")
        shut = ", ".join(rival.term for rival in found.rivals if rival.excluded) or "none"
        left = ", ".join(rival.term for rival in found.rivals if not rival.excluded) or "none"
        power = with_interval(found.log_power, found.log_interval)
        lines.append(f"- {name}, other first terms than {LAW}: excluded {shut}; not excluded {left}; power of log d: {power}\n")
    bounds = sum(entry["at_start"] for entry in laws.floats)
    if bounds:
        count = "1 task reaches" if bounds == 1 else f"{bounds} tasks reach"
        lines.append(f"- {count} the level at the start of the grid of M1 already: left out, its floats are not known\n")
    return "".join(lines)


def _series_table(name: str, series: Series) -> str:
    predicted: Sequence[float | None] = series.predicted or [None] * len(series.x)
    rows = [
        [number(x), with_interval(y if math.isfinite(y) else None, i, 1), p]
        for x, y, i, p in zip(series.x, series.y, series.intervals, predicted, strict=True)
    ]
    return f"{name}\n\n" + markdown_table(("x", "value [95 %]", "predicted"), rows)


def _rival_table(name: str, found: Additive) -> str:
    if not found.rivals:
        return f"{name}: no fit\n"
    rows: list[list[Cell]] = [[f"{LAW} (the law)", found.fit.error, None, None]]
    for rival in found.rivals:
        ratio = None if rival.interval is None else (math.exp(rival.interval[0]), math.exp(rival.interval[1]))
        verdict = "excluded" if rival.excluded else "not excluded"
        rows.append([rival.term, rival.error, with_interval(math.exp(rival.excess), ratio), verdict])
    return f"{name}\n\n" + markdown_table(("first term", "relative residual", "over the law's [95 %]", ""), rows)


def break_even_text(laws: Laws) -> str:
    """Where the fitted floats equal those of the weights, and the measured ratio at its extremes."""
    lines = []
    for (d, r), (width, interval) in laws.additive["functional"].break_even.items():
        per = with_interval(width / r**2, None if interval is None else (interval[0] / r**2, interval[1] / r**2), 1)
        lines.append(f"- d = {d}, r = {r}: as many floats as the weights at L = {with_interval(width, interval, 0)}, L / r^2 = {per}\n")
    measured = [(f["functional"] / f["weights"], f) for f in laws.floats if f["functional"] is not None]
    for words, (ratio, f) in (("least", min(measured, key=_first)), ("largest", max(measured, key=_first))) if measured else ():
        lines.append(f"- {words} measured floats over those of the weights: {number(ratio)} at d = {f['d']}, r = {f['r']}, L = {f['L']}\n")
    return "".join(lines) or "No task reaches the level.\n"


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


def baseline_table(scaling: Scaling, rows: dict[str, list[Row]]) -> str:
    """Median risk of every representation at every task; floats of the distilled set."""
    lines: list[list[Cell]] = []
    for d, r, width in scaling.tasks():
        group = sound_at(rows, "baselines", d=d, r=r, L=width)
        medians = [float(np.median([row[f"risk_{name}"] for row in group])) for name in REPRESENTATIONS]
        lines.append([d, r, width, group[0]["floats_distilled"], *medians])
    return markdown_table(("d", "r", "L", "floats", *REPRESENTATIONS.values()), lines)
