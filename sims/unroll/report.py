"""What a run of the practical algorithms leaves for its reader: tables, summary.json and report.md (figures in sims.unroll.plots).

The detail is one cell, the middle d and the first r, at the middle M1 of the grid: median over draws, with the least and the greatest
(which for five draws is a 94 % interval of the median, see sims.lab.laws).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sims.command import Facts
from sims.lab.laws import crossing
from sims.lab.report import LAW_HEADERS, Cell, law_row, markdown_table, number, with_interval
from sims.lab.run import RunError
from sims.lab.store import Row
from sims.lab.sweep import failures, rows_at, sound
from sims.unroll import flatness, plots, windows
from sims.unroll.experiment import Unroll
from sims.unroll.experts import QUALITIES
from sims.unroll.laws import CRITERIA, EXPECTED, Law, curves, level, point_floats, reaches
from sims.unroll.methods import METHODS
from sims.unroll.names import ENCODED, NAMES
from sims.unroll.paired import Ratio
from theory import predictions
from theory.multi_index import make_link

Detail: TypeAlias = dict[str, list[Row]]

UNROLLED = {
    "cosine_truncation_end": "cosine to the whole unroll",
    "error_truncation_end": "relative error",
    "cosine_full_start": "cosine to BPTT over T: at the start",
    "cosine_full_end": "at the end",
}
ENCODED_HEADERS = ("method", "floats", *(NAMES[name] for name in ENCODED))
LEAST_HEADERS = ("method", "d", "r", *(f"{name}, M1*: floats*" for name in CRITERIA))
FLAT_HEADERS = ("ftd / mtt", "M1", "ratio", "tasks", "verdict")
WINDOW_HEADERS = ("number", "method / rat-bptt", "after outer steps", "ratio", "tasks", "verdict")
UNROLLED_HEADERS = ("method", "windows drawn: starts", "lengths", *UNROLLED.values(), "last / first gradient norm")


def collect(config: Unroll, rows: Sequence[Row]) -> Detail:
    """The sound rows of the detail by method; a method all of whose trials failed there is left out."""
    m1 = config.M1[len(config.M1) // 2]
    found = {method: rows_at(rows, method=method, d=config.base_d, r=config.r[0], M1=m1) for method in config.method}
    detail = {method: sound(group) for method, group in found.items()}
    if not any(detail.values()):
        raise RunError(f"all trials of the detail failed, first: {rows[0]['failed']}")
    return {method: group for method, group in detail.items() if group}


def title(config: Unroll) -> str:
    """One line that names the detail."""
    m1, recipe = config.M1[len(config.M1) // 2], config.recipe
    return (
        f"d = {config.base_d}, r = {config.r[0]}, L = {config.L}, N = {config.samples:g} d^2, {config.link} link, M1 = {m1}, "
        f"T = {recipe.T}, K = {recipe.K}, {config.seeds} seeds"
    )


def _band(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return "-"
    return f"{number(float(np.median(values)), 2)} [{number(min(values), 2)}, {number(max(values), 2)}]"


def encoded_rows(detail: Detail) -> list[list[Cell]]:
    """What each method encodes, beside its floats."""
    return [[method, rows[0]["floats_set"], *(_band(rows, name) for name in ENCODED)] for method, rows in detail.items()]


def unrolled_rows(detail: Detail) -> list[list[Cell]]:
    """Windows and meta-gradients of the methods that have an outer loop."""
    out: list[list[Cell]] = []
    for method, rows in detail.items():
        if not any(row["window_starts"] for row in rows):
            continue
        starts = np.concatenate([row["window_starts"] for row in rows])
        lengths = np.concatenate([row["window_stops"] for row in rows]) - starts
        falls = [{"fall": row["profile_end"][-1] / row["profile_end"][0]} for row in rows]
        words = [f"{values.min()} to {values.max()}, mean {values.mean():.1f}" for values in (starts, lengths)]
        out.append([method, *words, *(_band(rows, name) for name in UNROLLED), _band(falls, "fall")])
    return out


def expert_rows(detail: Detail) -> list[list[Cell]]:
    """How good and how flat the experts of each method that has any are."""
    return [[m, *(_band(rows, name) for name in QUALITIES)] for m, rows in detail.items() if rows[0]["expert_loss"] is not None]


def _ratio_cells(x: Ratio) -> list[Cell]:
    return ["all" if x.at is None else x.at, with_interval(x.ratio, x.interval, 3), x.n, x.verdict]


def flat_rows(ratios: Sequence[Ratio]) -> list[list[Cell]]:
    """The ratios under FLAT_HEADERS, all M1 together first."""
    return [[NAMES[x.name], *_ratio_cells(x)] for x in sorted(ratios, key=lambda ratio: ratio.at is not None)]


def window_rows(ratios: Mapping[str, Sequence[Ratio]]) -> list[list[Cell]]:
    """The ratios under WINDOW_HEADERS over all outer steps and after the last; those between are in the figure and its CSV."""
    last = max((x.at for found in ratios.values() for x in found if x.at is not None), default=0)
    shown = [(x, method) for method, found in ratios.items() for x in found if x.at in (None, last)]
    return [[NAMES[x.name], method, *_ratio_cells(x)] for x, method in shown]


def law_rows(laws: Sequence[Law]) -> list[list[Cell]]:
    """The exponents under LAW_HEADERS."""
    return [law_row(f"{law.axis}: {law.method}, {law.criterion}", law.fit) for law in laws]


def least_rows(config: Unroll, rows: Sequence[Row]) -> list[list[Cell]]:
    """M1* and floats* of every method and cell, a pair a criterion; '> grid' where the level is not reached."""
    out: list[list[Cell]] = []
    for method in config.method:
        for d, r in config.cells():
            cells: list[Cell] = [method, d, r]
            for criterion in CRITERIA:
                stack = curves(config, rows, criterion, method=method, d=d, r=r)
                found = crossing(np.array(config.M1, float), np.median(stack, axis=0), level(config, criterion))
                floats = found.value * point_floats(config, method, d)
                words = {"": f"{found.value:.1f}: {floats:.0f}", "above": "> grid", "below": f"<= {config.M1[0]}"}
                cells.append(words[found.side])
            out.append(cells)
    return out


def verdict_rows(config: Unroll, laws: Sequence[Law]) -> list[list[Cell]]:
    """A method a row: whether it keeps the law in each criterion."""
    return [[method, *(reaches(laws, method, criterion) for criterion in CRITERIA)] for method in config.method if method != "full-data"]


def summary(config: Unroll, rows: Sequence[Row], detail: Detail, laws: Sequence[Law], facts: Facts) -> str:
    """summary.json."""
    more = ("risk_kept", "angle_rows", "angle_point_increments", "floats_set", "floats_head", "middle_from", "late_from")
    numbers = (*ENCODED, *UNROLLED, *QUALITIES, *more)
    content: dict[str, Any] = {
        "detail": {method: {name: [row.get(name) for row in group] for name in numbers} for method, group in detail.items()},
        "fit": {f"{law.method}.{law.criterion}.{law.axis}": law.fit.as_json() for law in laws},
        "reaches": {method: dict(zip(CRITERIA, words, strict=True)) for method, *words in verdict_rows(config, laws)} if laws else {},
        "expected": list(EXPECTED),
        "flatness": flatness.as_json(config, rows, flatness.compare(config, rows)) if flatness.asked(config) else None,
        "windows": {method: [vars(x) for x in found] for method, found in windows.compare(config, rows).items()},
        "failures": sorted({f"{row['method']}: {row['failed']}" for row in failures(list(rows))}),
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def report(config: Unroll, rows: Sequence[Row], detail: Detail, laws: Sequence[Law], facts: Facts) -> str:
    """report.md."""
    failed = failures(list(rows))
    parts = [
        "# Practical distillation algorithms on the two-layer student\n",
        f"{title(config)}. {facts.trials} trials, {facts.failed} failed, {facts.backend}. Labels are OLS residuals; "
        f"a network starts at scale {config.recipe.init_scale:g} with f = 0 and both its layers are trained. Medians over seeds with least "
        "and greatest.\n",
        "## What each method encodes of S*\n",
        _definitions(config),
        markdown_table(ENCODED_HEADERS, encoded_rows(detail)),
        _idealised(config),
        "\n![subspace and risk against the outer step](figures/encode.png)\n",
        "## Windows and meta-gradients\n",
        "The whole unroll is that of the same run up to the window's end; BPTT over T is performance matching through all inner steps "
        "from the same start on the same real batch. No number: a truncation is not what the method makes, or its set cannot be trained "
        "for T steps.\n",
        markdown_table(UNROLLED_HEADERS, unrolled_rows(detail)),
        "\n![profile, windows, meta-gradients](figures/unroll.png)\n",
        _stage_text(detail),
        _window_text(windows.compare(config, rows)),
        _expert_text(config, rows, detail),
        _law_text(config, rows, laws) if laws else "",
        "## Methods\n",
        "".join(f"- **{method}**: {METHODS[method].about}\n" for method in config.method),
    ]
    parts += (
        [f"\n{len(failed)} trials failed:\n", "".join(f"- {row['method']}, M1 = {row['M1']}: {row['failed']}\n" for row in failed)]
        if failed
        else []
    )
    return "\n".join(parts)


def _definitions(config: Unroll) -> str:
    lines = (
        "- **off-S* energy** of the points, of what the outer loop added to them, of the rows of a fresh network trained on the set, and "
        "of what the training added to those rows: its rows with the start erased.",
        "- **risk, set alone**: a fresh network trained on the set by the method's own inner steps (one for dd, dc and one-step).",
        "- **risk, head on erased rows**: those increments at unit size, fresh biases, ridge head on real samples; "
        f"{config.L} floats for the head come on top of the set's. Risk is E (f - f*)^2 / Var f* on fresh inputs.",
        "- **floats** of the set: points, and their labels where they are learned.",
    )
    return "\n".join(lines) + "\n"


def _idealised(config: Unroll) -> str:
    d, r = config.base_d, config.r[0]
    starts = max(1, round(config.diversity * r * d / config.L))
    predicted = predictions.distilled_points(
        make_link(config.link, r), config.noise, d, round(config.samples * d * d), config.L // 2 * starts, "ols"
    )
    return f"Off-S* energy of the idealised points: predicted {number(predicted.fraction)} (derived here).\n"


def _stage_text(detail: Detail) -> str:
    rows = detail.get("at-bptt", [])
    middle, late = (sorted(row[name] for row in rows if row[name] is not None) for name in ("middle_from", "late_from"))
    if not rows:
        return ""
    return (
        f"Stages of at-bptt, by the clock on held-out labels (theory.distill.stages): the middle one began in {len(middle)} of {len(rows)} "
        f"runs, after {_range(middle)} outer steps, the late one in {len(late)}, after {_range(late)}.\n"
    )


def _window_text(ratios: Mapping[str, Sequence[Ratio]]) -> str:
    if not ratios:
        return ""
    return "\n".join(
        [
            "## Which window encodes S* in fewer outer steps?\n",
            "Equal outer steps, tasks and first sets; the ratio's mean over tasks (of its logarithm) with a 95 % interval, below 1 where "
            "the method is ahead of rat-bptt. Expected before the run:\n",
            "".join(f"- {line}\n" for line in windows.EXPECTED),
            markdown_table(WINDOW_HEADERS, window_rows(ratios)),
            "\n![ratios against the outer step](figures/windows.png)\n",
        ]
    )


def _range(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if steps else "-"


def _expert_text(config: Unroll, rows: Sequence[Row], detail: Detail) -> str:
    experts, recipe = expert_rows(detail), config.recipe
    if not experts:
        return ""
    parts = [
        "## Experts\n",
        f"{recipe.experts} experts a task, {recipe.epochs} epochs of steps of {recipe.inner_lr:g} on batches of {recipe.batch:g} d^2; "
        f"{recipe.T} steps on the set follow {recipe.span} epochs from epoch 0 to {recipe.starts - 1}. Flat ones: rho = {recipe.rho:g}, "
        f"alpha = {recipe.alpha:g}, snapshots at the training losses of the plain ones. Sharpness and lambda_max on one real batch.\n",
        markdown_table(("method", *(NAMES[name] for name in QUALITIES)), experts),
    ]
    if flatness.asked(config):
        ratios = flatness.compare(config, rows)
        parts += [
            "## Does flatness change how much of S* is encoded?\n",
            "Sets of equal floats on the same tasks, experts of equal training loss; the ratio's mean over tasks (of its logarithm) with a "
            "95 % interval. Expected before the run:\n",
            "".join(f"- {line}\n" for line in flatness.EXPECTED),
            markdown_table(FLAT_HEADERS, flat_rows(ratios)),
            "".join(
                f"floats* of ftd / mtt, {name}: {with_interval(*flatness.floats_ratio(config, rows, name))}\n\n"
                for name in (CRITERIA if len(config.M1) > 1 else ())
            ),
            "![ratios](figures/flatness.png)\n",
        ]
    return "\n".join(parts)


def _law_text(config: Unroll, rows: Sequence[Row], laws: Sequence[Law]) -> str:
    grid = ", ".join(map(str, config.M1))
    return "\n".join(
        [
            "## Which methods reach r^2 d + L\n",
            "Stated in the paper (Kinoshita et al., arXiv:2603.14830, abstract): memory of order r^2 d + L. Derived here: everything "
            "else. Expected before the run:\n",
            "".join(f"- {line}\n" for line in EXPECTED),
            f"Levels, the same for all d and r: head {config.level_head:g}, alone {config.level_alone:g}, angle {config.level_angle:g} "
            f"degrees. M1 in {grid}, interpolated; floats* = M1* times the floats of a point. The head's {config.L} floats come on top in "
            "criterion head.\n",
            markdown_table(("method", *CRITERIA), verdict_rows(config, laws)),
            markdown_table(LEAST_HEADERS, least_rows(config, rows)),
            markdown_table(LAW_HEADERS, law_rows(laws)),
            "".join(f"\n![floats over {axis}](figures/law-{axis}.png)\n" for axis in dict.fromkeys(law.axis for law in laws)),
            "\n![risk and angle against floats](figures/floats.png)\n",
        ]
    )


def figure_files(config: Unroll, rows: Sequence[Row], detail: Detail, laws: Sequence[Law]) -> dict[str, bytes | str]:
    """Every figure by file name, with the CSV behind it."""
    out = plots.encode_files(detail) | plots.unroll_files(detail)
    out |= plots.flatness_files(flatness.compare(config, rows)) if flatness.asked(config) else {}
    ratios = windows.compare(config, rows)
    out |= plots.window_files(ratios) if ratios else {}
    return out | plots.floats_files(config, rows) | plots.law_files(laws) if laws else out
