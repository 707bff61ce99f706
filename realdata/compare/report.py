"""What a comparison leaves for its reader: accuracies with intervals, paired differences, costs, meta-gradients; as tables and JSON.

    a_jk       test accuracy of network k trained on the set of seed j;  accuracy of an arm: mean over j and k
    d_j        mean over k of a_jk minus that of the first arm at the same seed: same first set, same networks
    bootstrap  2.5 % to 97.5 % percentiles over resamples of the seeds, and of the networks within each (pairs stay together)
    t          mean d_j +- t_{0.975, n-1} std(d_j) / sqrt(n), n seeds: with few seeds the percentiles are too narrow, so the verdict takes
               this interval

Percentages are points of accuracy.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from realdata.compare.arms import ARMS
from realdata.compare.probe import WHEN
from realdata.steps import COUNTS, PHASES
from sims.lab.laws import COVERAGE, Interval, percentile_interval
from sims.lab.report import Cell, markdown_table, number, with_interval

RESAMPLES = 10_000
ACCURACY_HEADERS = (
    *("equal", "arm", "outer steps", "test % [bootstrap]", "std nets", "difference [bootstrap]", "t", "verdict"),
    *("held-out %", "difference", "t"),
)
COST_HEADERS = ("equal", "arm", "s an outer step", *PHASES, "rest", "steps: plain", "products", "mixed", "HVP", "window", "stored MB")
PROBE_HEADERS = ("arm", *(f"{name}, {when}" for name in ("cos to same run", "cos to full", "norm ratio") for when in WHEN), "peak MiB")


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm at equal steps or equal time: accuracies (seeds, networks), shares; rows of steps.csv of every seed; probes where made."""

    arm: str
    equal: str
    accuracies: np.ndarray
    held_out: list[float]
    steps: list[list[dict[str, Any]]]
    probes: list[Mapping[str, Any]]


def interval(stack: np.ndarray, rng: np.random.Generator) -> Interval | None:
    """The bootstrap interval of the mean of (seeds, networks); None with a single seed."""
    n, m = stack.shape
    if n < 2:
        return None
    seeds = rng.integers(n, size=(RESAMPLES, n, 1))
    return percentile_interval(stack[seeds, rng.integers(m, size=(RESAMPLES, n, m))].mean(axis=(1, 2)))[0]


def t_interval(values: np.ndarray) -> Interval | None:
    """Student's interval of a mean; None with a single value."""
    n = len(values)
    if n < 2:
        return None
    half = float(student_t.ppf((1 + COVERAGE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half


def verdict(found: Interval | None) -> str | None:
    """above, below, or not told apart; None without an interval."""
    return None if found is None else "above" if found[0] > 0 else "below" if found[1] < 0 else "not told apart"


def accuracy_numbers(result: ArmResult, first: ArmResult) -> dict[str, Any]:
    """Accuracy of an arm, and its difference to the first one, in points."""
    rng, own = np.random.default_rng(0), 100 * result.accuracies
    out: dict[str, Any] = {
        "outer_steps": round(np.mean([len(rows) for rows in result.steps])),
        "test_mean": float(own.mean()),
        "test_interval": interval(own, rng),
        "test_std_networks": float(np.sqrt(np.mean(np.var(own, axis=1, ddof=1)))) if own.shape[1] > 1 else None,
        "held_out_mean": 100 * float(np.mean(result.held_out)),
        "accuracies": own.tolist(),
    }
    if result is not first:
        apart = own - 100 * first.accuracies
        t = t_interval(apart.mean(axis=1))
        out |= {"difference": float(apart.mean()), "difference_interval": interval(apart, rng), "difference_t": t, "verdict": verdict(t)}
        held = 100 * (np.array(result.held_out) - np.array(first.held_out))
        out |= {"held_out_difference": float(held.mean()), "held_out_difference_t": t_interval(held)}
    return out


def cost_numbers(result: ArmResult) -> dict[str, Any]:
    """Means over all outer steps of all seeds; seconds are medians over seeds of a run's mean."""
    rows = [row for run in result.steps for row in run]
    seconds = {name: float(np.median([np.mean([row[name] for row in run]) for run in result.steps])) for name in _SECONDS}
    counts: dict[str, float] = {name: float(np.mean([row[name] for row in rows])) for name in COUNTS}
    lengths, stops = [row["stop"] - row["start"] for row in rows], [row["stop"] for row in rows]
    rest = seconds["seconds"] - sum(seconds[f"seconds_{phase}"] for phase in PHASES)
    return seconds | {"seconds_rest": rest} | counts | {"window_mean": float(np.mean(lengths)), "stop_mean": float(np.mean(stops))}


_SECONDS = ("seconds", *(f"seconds_{phase}" for phase in PHASES))


def probe_numbers(result: ArmResult) -> dict[str, float]:
    """Medians over seeds of what the probes measured."""
    names = [f"{name}_{when}" for name in ("cosine_run", "cosine_full", "norm_run") for when in WHEN]
    return {name: float(np.median([row[name] for row in result.probes])) for name in (*names, "peak_bytes")}


def numbers(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Every number of every arm, the first arm of its kind being the one that the others are held against."""
    first = {result.equal: result for result in reversed(results)}
    return [
        {"arm": r.arm, "equal": r.equal, **accuracy_numbers(r, first[r.equal]), **cost_numbers(r), **(probe_numbers(r) if r.probes else {})}
        for r in results
    ]


def accuracy_rows(found: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """Under ACCURACY_HEADERS."""
    return [
        [
            x["equal"],
            x["arm"],
            x["outer_steps"],
            with_interval(x["test_mean"], x["test_interval"]),
            number(x["test_std_networks"], 2),
            with_interval(x.get("difference"), x.get("difference_interval")),
            _ends(x.get("difference_t")),
            x.get("verdict"),
            number(x["held_out_mean"]),
            None if "held_out_difference" not in x else f"{x['held_out_difference']:.2f}",
            _ends(x.get("held_out_difference_t")),
        ]
        for x in found
    ]


def _ends(found: Interval | None) -> str | None:
    return None if found is None else "[{:.2f}, {:.2f}]".format(*found)


def cost_rows(found: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """Under COST_HEADERS."""
    seconds = ("seconds", *(f"seconds_{phase}" for phase in PHASES), "seconds_rest")
    counts = ("gradients", "products", "mixed", "hessian_products", "window_mean")
    return [
        [x["equal"], x["arm"], *(number(x[n], 2) for n in seconds), *(number(x[n]) for n in counts), number(4e-6 * x["stored_floats"])]
        for x in found
    ]


def probe_rows(found: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """Under PROBE_HEADERS."""
    names = [f"{name}_{when}" for name in ("cosine_run", "cosine_full", "norm_run") for when in WHEN]
    return [[x["arm"], *(number(x[n], 2) for n in names), number(x["peak_bytes"] / 2**20)] for x in found if "peak_bytes" in x]


def report(title: str, found: Sequence[Mapping[str, Any]], selection: str, left_out: Mapping[str, str]) -> str:
    """report.md; `left_out`: arms without numbers, and why."""
    arms = dict.fromkeys(x["arm"] for x in found)
    parts = (
        "# Truncated backpropagation, arm by arm\n",
        f"{title}. {selection}\n",
        "## Accuracy on the test split\n",
        "Means over seeds and fresh networks. Differences are to the first arm, paired by seed and network; bootstrap over seeds and "
        "networks, t over seeds, 95 %. The verdict takes t. Held-out images chose each set and its training length, so these are upper "
        "ends; paired by seed, they are what settings may be chosen by.\n",
        markdown_table(ACCURACY_HEADERS, accuracy_rows(found)),
        "".join(f"Left out: **{name}**: {why}\n\n" for name, why in left_out.items()),
        "![accuracy, time, meta-gradients](figures/compare.png)\n",
        "## What an outer step costs\n",
        "Seconds: medians over seeds, measurements of the curve apart; rest = optimiser steps, their adjoints, draws. Counts: means "
        "over outer steps. HVP: Hessian-vector products spent on low-rank Hessians. Stored: states and gradients of the recorded steps.\n",
        markdown_table(COST_HEADERS, cost_rows(found)),
        "## Meta-gradients\n",
        "Against the exact gradient through all steps of the same inner run up to the window's end, and through all T steps; at the first "
        "set and at the last one of the run; medians over seeds. Peak: all that one meta-gradient holds, chunks of real images included.\n",
        markdown_table(PROBE_HEADERS, probe_rows(found)),
        "## Arms\n",
        "".join(f"- **{arm}**: {ARMS[arm].about}\n" for arm in arms),
    )
    return "\n".join(parts)


def summary(found: Sequence[Mapping[str, Any]], **facts: Any) -> str:
    """summary.json."""
    return json.dumps({"arms": list(found), **facts}, indent=1) + "\n"


def table_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """The numbers behind the figure, a row an arm."""
    names = [name for name in dict.fromkeys(name for x in found for name in x) if name != "accuracies"]
    stream = io.StringIO()
    table = csv.DictWriter(stream, names, restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    return stream.getvalue()
