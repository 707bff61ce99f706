"""What a comparison of plain and reflected sets leaves for its reader: expectations with verdicts, paired ratios, least M1, figures."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sims import figures
from sims.command import Facts
from sims.lab.laws import SampledLaw
from sims.lab.report import Cell, markdown_table, number, with_interval
from sims.reflected.experiment import ENOUGH, Reflected
from sims.reflected.laws import NEAR, SETS, Found, Pair, holds, label, places

HEADERS = ("expectation", "mean log(reflected / plain) [95 %]", "verdict")

FORMS = {"risk": " (quadratic target, population limit)", "conditioning": ""}


def expectation_rows(found: Found) -> list[list[Cell]]:
    """One row an expectation."""
    return [[e.text, with_interval(e.value, e.interval), e.verdict] for e in found.expectations]


def verdict(found: Found) -> str:
    """What the run says about the conjecture, in words computed from the rows."""
    wins = [(interval[1] < 0, interval[0] > 0, m / pair.task["r"]) for pair in found.pairs for m, (_, interval) in _at(pair)]
    lines = []
    for name, chosen in (
        (f"M1 >= {ENOUGH} r", [w for w in wins if w[2] >= ENOUGH]),
        (f"M1 < {ENOUGH} r", [w for w in wins if w[2] < ENOUGH]),
    ):
        better, worse = sum(w[0] for w in chosen), sum(w[1] for w in chosen)
        lines.append(f"{name}: reflected better in {better} of {len(chosen)} places, plain in {worse}, undecided in the rest")
    for words, laws in (("risk", found.least), ("conditioning", found.conditioned)):
        plain, reflected = (laws[name].slope for name in SETS)
        lines.append(
            f"exponent in r of the least M1 by {words}: plain {with_interval(plain.exponent, plain.interval)} ({plain.censored} censored), "
            f"reflected {with_interval(reflected.exponent, reflected.interval)} ({reflected.censored} censored)"
        )
        forms = ", ".join(f"{name} {number(found.predicted[words][name])}" for name in SETS)
        lines.append(f"closed forms at these sizes, {words}{FORMS[words]}: {forms}")
        lines.append(f"conjecture M1 of order r, by {words}: {holds(laws['reflected'])}; {_exponent_words(laws['reflected'], words)}")
    for name in SETS[::-1]:
        at = places(found.pairs, name)
        count = {word: [place for place in at if place.verdict == word] for word in ("HOLDS", "BREAKS", "UNDECIDED")}
        lines.append(
            f"{name} set at M1 = {ENOUGH} r: risk within {NEAR:g} x the full-data teacher's in {len(count['HOLDS'])} of {len(at)} tasks, "
            f"above in {len(count['BREAKS'])}, undecided in {len(count['UNDECIDED'])}"
        )
    count = {word: [place for place in places(found.pairs) if place.verdict == word] for word in ("BREAKS", "UNDECIDED")}
    lines += [
        f"{word.lower()} at {p.task}, M1 = {p.m1}: {with_interval(p.factor, p.interval)} x"
        for word in ("BREAKS", "UNDECIDED")
        for p in count[word]
    ]
    return "".join(f"- {line}\n" for line in lines)


def _exponent_words(law: SampledLaw, criterion: str) -> str:
    interval = law.slope.interval
    if interval is None:
        return "no exponent for reflected sets: too few r reach the level"
    one, two = (interval[0] <= value <= interval[1] for value in (1.0, 2.0))
    kept = " and ".join(words for words, inside in (("r", one), ("r^2", two)) if inside)
    shut = " and ".join(words for words, inside in (("r", one), ("r^2", two)) if not inside)
    return f"reflected, by {criterion} at these sizes: compatible with {kept or 'neither r nor r^2'}" + (
        f", excludes {shut}" if shut else ""
    )


def _at(pair: Pair) -> list[tuple[int, Any]]:
    return list(zip(pair.m1, pair.ratios, strict=True))


def summary(found: Found, facts: Facts) -> str:
    """summary.json."""
    content = {
        "expectations": [vars(e) for e in found.expectations],
        "conjecture": {
            "risk": holds(found.least["reflected"]),
            "conditioning": holds(found.conditioned["reflected"]),
            "closed_forms": found.predicted,
            "places": {name: [vars(place) for place in places(found.pairs, name)] for name in SETS},
        },
        "least": {name: _law_json(law) for name, law in found.least.items()},
        "least_by_conditioning": {name: _law_json(law) for name, law in found.conditioned.items()},
        "least_plain_over_reflected": _law_json(found.gain),
        "pairs": [_pair_json(pair) for pair in found.pairs],
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def _law_json(law: SampledLaw) -> dict[str, Any]:
    values = [y if math.isfinite(y) else None for y in law.y]
    fit = {"exponent": law.slope.exponent, "interval": law.slope.interval, "censored": law.slope.censored}
    return {"r": law.x, "M1": values, "intervals": law.intervals} | fit


def _pair_json(pair: Pair) -> dict[str, Any]:
    lists = {f"{kind}_{name}": getattr(pair, kind)[name].tolist() for kind in ("risk", "conditioning", "off") for name in SETS}
    ratios = [{"mean": mean, "interval": interval} for mean, interval in pair.ratios]
    return {
        "task": pair.task,
        "M1": pair.m1,
        "teacher": pair.teacher,
        "log_ratio": ratios,
        "predicted": pair.predicted,
        "predicted_off": pair.predicted_off,
    } | lists


def report(config: Reflected, found: Found, facts: Facts) -> str:
    """report.md."""
    parts = [
        "# Plain and reflected distilled sets at equal stored floats\n",
        "Derived here and conjectured (stated in no paper): points used as x and as -x at retraining leave no common mode, so "
        f"that of order r points carry what plain sets need of order r^2 for. Real samples, d = {config.d}, {config.seeds} seeds; a "
        "pair shares task, samples, fresh start, biases, head samples and test inputs. Intervals: 95 %, Student's over draws for paired "
        f"ratios, bootstrap over draws for least M1. {facts.trials} trials, {facts.failed} failed, {facts.seconds} s, {facts.backend}.\n",
        markdown_table(HEADERS, expectation_rows(found)),
        "\n## Verdict\n",
        verdict(found),
        "\n## Least M1 with risk within a factor of the full-data teacher's\n",
        f"Link {config.link!r}, L J/(r d) = {config.least_diversity:g}, level {config.ratio:g} x the teacher's median.\n",
        _least_table(found),
        "\n## Risk ratios, reflected over plain: geometric mean [95 %]\n",
        "In brackets: closed forms at these N, d, L, J and M1 (theory.retrained, derived here).\n",
        *(_pair_table(pair) for pair in found.pairs),
        "\n![ratios](figures/ratio.png)\n\n![least points](figures/least.png)\n\n![conditioning](figures/conditioning.png)\n",
    ]
    return "\n".join(parts)


def _least_table(found: Found) -> str:
    laws = (*(found.least[name] for name in SETS), found.gain)
    rows = []
    for k, r in enumerate(found.gain.x):
        cells = [with_interval(law.y[k] if math.isfinite(law.y[k]) else None, law.intervals[k], 1) for law in laws]
        rows.append([number(r), *cells])
    return markdown_table(("r", "plain", "reflected", "plain / reflected"), rows)


def _pair_table(pair: Pair) -> str:
    rows = []
    for k, (m, (mean, (low, high))) in enumerate(_at(pair)):
        ratio = with_interval(math.exp(mean), (math.exp(low), math.exp(high)))
        risks = [float(pair.risk[name][k]) for name in SETS]
        conditions = [f"{number(float(pair.conditioning[name][k]))} ({number(pair.predicted[name][k])})" for name in SETS]
        off = [f"{number(float(pair.off[name][k]))} ({number(pair.predicted_off[name][k])})" for name in SETS]
        rows.append([m, *risks, ratio, *conditions, *off])
    headers = ("M1", "risk, plain", "reflected", "ratio", "condition number, plain", "reflected", "energy off S*, plain", "reflected")
    return f"{label(pair.task)}; full-data teacher {number(pair.teacher)}\n\n" + markdown_table(headers, rows)


def figure_files(config: Reflected, found: Found) -> dict[str, bytes | str]:
    """Every figure with the numbers behind it."""
    out: dict[str, bytes | str] = {}
    out |= figures.files(_ratio_figure(config, found), "ratio")
    out |= figures.files(_least_figure(config, found), "least")
    out |= figures.files(_conditioning_figure(found), "conditioning")
    rows = [
        (label(pair.task), m, mean, *interval, *(pair.conditioning[n][k] for n in SETS), *(pair.predicted[n][k] for n in SETS))
        for pair in found.pairs
        for k, (m, (mean, interval)) in enumerate(_at(pair))
    ]
    names = ("task", "M1", "log_ratio", "low", "high", "condition_plain", "condition_reflected", "predicted_plain", "predicted_reflected")
    quoted = [(f'"{row[0]}"', *row[1:]) for row in rows]
    out["pairs.csv"] = figures.csv(dict(zip(names, zip(*quoted, strict=True), strict=True)))
    laws = {name: found.least[name].y for name in SETS}
    out["least.csv"] = figures.csv({"r": found.gain.x, **laws, "gain": found.gain.y})
    return out


@figures.styled
def _ratio_figure(config: Reflected, found: Found) -> Figure:
    """Left: links and r. Right: the axes around the base task."""
    base = config.cell(config.r)
    counts = {"head_samples": 0, "J": 0}
    crossed = [p for p in found.pairs if {**p.task, "r": 0, "link": 0, "L": 0, **counts} == {**base, "r": 0, "link": 0, "L": 0, **counts}]
    crossed = [p for p in crossed if p.task == config.cell(p.task["r"], link=p.task["link"])]
    others = [p for p in found.pairs if p not in crossed or p.task == base]
    figure, axes = figures.new_figure(2, width=5.0, height=3.8)
    for axis, pairs, name in ((axes[0], crossed, _crossed_name), (axes[1], others, lambda p: _changed(p, base))):
        for k, pair in enumerate(pairs):
            means, intervals = zip(*pair.ratios, strict=True)
            x = np.array(pair.m1) / pair.task["r"] * 1.02 ** (k - len(pairs) / 2)
            error = np.abs(np.array(intervals).T - np.array(means))
            style = {"fmt": "os^vD*Phx+"[k % 10] + "-", "ms": 3.5, "lw": 0.9, "capsize": 2}
            axis.errorbar(x, np.exp(means), yerr=_relative(means, error), color=figures.colour(k), label=name(pair), **style)
        axis.axhline(1.0, color="black", lw=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_yticks([0.25, 0.5, 0.71, 1, 1.41, 2], ["0.25", "0.5", "0.71", "1", "1.41", "2"])
        axis.minorticks_off()
        axis.set_ylim(0.25, 2.5)
        ticks = sorted({m / p.task["r"] for p in pairs for m in p.m1 if m % p.task["r"] == 0})
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_xlabel("stored points M1 / r")
        axis.legend(fontsize=6.5, ncols=2, loc="upper right")
    axes[0].set_ylabel("risk, reflected / plain")
    axes[0].set_title("links and intrinsic dimensions", fontsize=9)
    axes[1].set_title(f"one setting changed ({config.link}, r = {config.r})", fontsize=9)
    return figure


def _relative(means: Sequence[float], error: np.ndarray) -> np.ndarray:
    centre = np.exp(means)
    return np.stack([centre - np.exp(np.array(means) - error[0]), np.exp(np.array(means) + error[1]) - centre])


def _crossed_name(pair: Pair) -> str:
    return f"{pair.task['link']}, r = {pair.task['r']}"


def _changed(pair: Pair, base: dict[str, Any]) -> str:
    t = pair.task
    diversity = t["L"] * t["J"] / (t["r"] * t["d"])
    words = {
        "L": f"L = {t['L']}",
        "J": f"LJ/rd = {diversity:g}",
        "samples": f"N/d^2 = {t['samples']:g}",
        "noise": f"noise {t['noise']:g}",
        "matching": f"matching: {t['matching']}",
    }
    return next((text for name, text in words.items() if t[name] != base[name]), "base")


@figures.styled
def _least_figure(config: Reflected, found: Found) -> Figure:
    figure, (axis,) = figures.new_figure(1, width=4.6, height=3.6)
    for k, name in enumerate(SETS):
        law = found.least[name]
        text = f"{name}: {with_interval(law.slope.exponent, law.slope.interval)}"
        figures.points(axis, law.x, law.y, law.intervals, text, k)
        anchor = figures.centre(law.x, law.y)
        if anchor is not None and law.slope.exponent is not None:
            figures.power_line(axis, law.x, anchor, law.slope.exponent, "_", color=figures.colour(k))
    anchor = figures.centre(found.least["plain"].x, found.least["plain"].y)
    if anchor is not None:
        for exponent, dashes in ((1.0, ":"), (2.0, "--")):
            figures.power_line(axis, found.gain.x, anchor, exponent, f"slope {exponent:g}", color="0.6", ls=dashes)
    figures.log_log(axis, "intrinsic dimension r", f"least M1: risk <= {config.ratio:g} x teacher", found.gain.x)
    axis.legend()
    return figure


@figures.styled
def _conditioning_figure(found: Found) -> Figure:
    """Measured condition numbers on S* over M1 for the task of the largest r, with the prediction at its L and J."""
    chosen = [p for p in found.pairs if any(v is not None for v in p.predicted["plain"])]
    figure, (axis,) = figures.new_figure(1, width=4.6, height=3.6)
    if not chosen:
        return figure
    pair = max(chosen, key=lambda p: p.task["r"])
    for k, name in enumerate(SETS):
        axis.plot(pair.m1, pair.conditioning[name], "o", ms=4, color=figures.colour(k), label=f"{name}, real samples")
        axis.plot(pair.m1, np.array(pair.predicted[name], float), color=figures.colour(k), lw=1.2, label=f"{name}, prediction")
    figures.log_log(axis, "stored points M1", "condition number of the rows on S*", pair.m1)
    axis.set_title(label(pair.task), fontsize=8)
    axis.legend()
    return figure
