"""What a look at one task leaves for its reader: medians over seeds, memory beside risk, angles and singular values."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sims import figures
from sims.command import Facts
from sims.encode.experiment import Encode
from sims.lab.report import Cell, markdown_table, number
from sims.lab.store import Row
from sims.lab.subspace import singular_gap
from sims.lab.sweep import failures, sound
from theory import predictions
from theory.multi_index import make_link

HEADERS = ("representation", "floats", "risk, median", "min", "max", "median / teacher's median")
NAMES = {
    "teacher": "weights of the full-data teacher",
    "distilled": "distilled set, fresh start",
    "distilled_same_start": "distilled set, start of the labels",
    "distilled_real_head": "distilled points, head on real samples",
    "H_alone": "H alone and labels",
    "k_means": "k-means of real samples",
    "random_subset": "random real samples",
    "labels_alone": "random features, labels on random inputs",
    "random_features": "random features, head on real samples",
}


@dataclass(frozen=True)
class Result:
    """Risks and floats by representation (one entry a seed), and the geometry of the points."""

    risks: dict[str, np.ndarray]
    floats: dict[str, int]
    angles: np.ndarray
    singular_values: np.ndarray
    off_energy: np.ndarray
    failed: int


def measure(config: Encode, rows: list[Row]) -> Result:
    """Collects the rows that did not fail."""
    good = sound(rows, "seeds", 1)
    return Result(
        {name: np.array([row[f"risk_{name}"] for row in good]) for name in NAMES},
        {name: int(good[0][f"floats_{name}"]) for name in NAMES},
        np.array([row["angles"] for row in good]),
        np.array([row["singular_values"] for row in good]),
        np.array([row["off_energy"] for row in good]),
        len(failures(rows)),
    )


def title(config: Encode) -> str:
    """One line that names the task."""
    t = config.task
    kind = "reflected" if t.reflected else "plain"
    return f"d = {t.d}, r = {t.r}, L = {t.L}, J = {t.J}, N = {t.N}, {t.link} link, M1 = {config.M1} ({kind}), M2 = {config.M2}"


def ratios(result: Result) -> dict[str, float]:
    """Median risk over the teacher's median, by representation."""
    return {name: float(np.median(risk) / np.median(result.risks["teacher"])) for name, risk in result.risks.items()}


def table(result: Result) -> list[list[Cell]]:
    """One row a representation."""
    rows: list[list[Cell]] = []
    for name, label in NAMES.items():
        risk = result.risks[name]
        rows.append([label, result.floats[name], float(np.median(risk)), float(risk.min()), float(risk.max()), ratios(result)[name]])
    return rows


def geometry_text(config: Encode, result: Result) -> str:
    """Off-subspace energy beside its prediction, the largest principal angle, the gap at r."""
    t, s = config.task, np.median(result.singular_values, axis=0)
    lines = [f"off-subspace energy of the points: median {number(float(np.median(result.off_energy)))}"]
    predicted = predictions.distilled_points(make_link(t.link, t.r), t.noise, t.d, t.N, t.L // 2 * t.J, t.preprocessing).fraction
    lines[0] += f", predicted {number(predicted)} (derived here)"
    lines.append(f"largest principal angle to S*: median {number(float(np.degrees(np.median(result.angles.max(axis=1)))))} degrees")
    if len(s) > t.r:
        lines.append(f"singular values: gap s_r / s_(r+1) = {number(singular_gap(s, t.r))}")
    ratio = ratios(result)["distilled"]
    verdict = "PASS" if passed(config, result) else "FAIL"
    lines.append(f"distilled set with a fresh start within {config.within:g} x the teacher: {number(ratio)}, {verdict}")
    if result.failed:
        lines.append(f"{result.failed} seeds failed and are left out")
    return "\n".join(lines) + "\n"


def passed(config: Encode, result: Result) -> bool:
    """Whether the distilled set, from a fresh start, is within the asked factor of the teacher."""
    return ratios(result)["distilled"] <= config.within


def summary(config: Encode, result: Result, facts: Facts) -> str:
    """summary.json."""
    content: dict[str, Any] = {
        "verdict": "PASS" if passed(config, result) else "FAIL",
        "risk": {name: values.tolist() for name, values in result.risks.items()},
        "floats": result.floats,
        "ratio_to_teacher": ratios(result),
        "off_energy": result.off_energy.tolist(),
        "principal_angles_rad": result.angles.tolist(),
        "singular_values": result.singular_values.tolist(),
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def report(config: Encode, result: Result) -> str:
    """report.md."""
    return "\n".join(
        [
            "# What a distilled set encodes\n",
            f"{title(config)}; {len(result.off_energy)} seeds. Risk is E (f - f*)^2 / Var f* on {config.task.test} fresh inputs; the ridge "
            "penalty of every head is picked on held-out samples from one grid. The distilled set's rows and biases come from fresh "
            "starts; its labels are those of another network retrained on the same points.\n",
            markdown_table(HEADERS, table(result)),
            geometry_text(config, result),
            "\n![risk against floats, angles, singular values](figures/encode.png)\n",
        ]
    )


def figure_files(result: Result) -> dict[str, bytes | str]:
    """encode.png, encode.pdf and the numbers behind them (angles and singular values: one row a seed)."""
    out: dict[str, bytes | str] = dict(figures.files(_figure(result), "encode"))
    names = list(NAMES)
    medians = [float(np.median(result.risks[name])) for name in names]
    out["encode.csv"] = figures.csv({"representation": names, "floats": [result.floats[n] for n in names], "risk": medians})
    for name, values in (("angles_rad", result.angles), ("singular_values", result.singular_values)):
        out[f"encode-{name}.csv"] = figures.csv({str(j + 1): column for j, column in enumerate(values.T.tolist())})
    return out


@figures.styled
def _figure(result: Result) -> Figure:
    figure, (left, middle, right) = figures.new_figure(3)
    for k, (name, label) in enumerate(NAMES.items()):
        risk = result.risks[name]
        middle_risk = float(np.median(risk))
        error = [[middle_risk - risk.min()], [risk.max() - middle_risk]]
        style: dict[str, Any] = {"fmt": "os^vD*Phx"[k], "ms": 5, "capsize": 2.5, "color": figures.colour(k)}
        left.errorbar([result.floats[name]], [middle_risk], yerr=error, label=label, **style)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("stored floats")
    left.set_ylabel("test risk: median, min to max")
    left.legend(fontsize=6)
    degrees = np.degrees(result.angles)
    middle.boxplot(degrees, tick_labels=[str(j + 1) for j in range(degrees.shape[1])])
    middle.set_xlabel("principal angle")
    middle.set_ylabel("degrees to S*")
    values = result.singular_values
    right.plot(np.arange(1, values.shape[1] + 1), values.T, "o-", ms=3, lw=0.8, color=figures.colour(0), alpha=0.5)
    right.axvline(degrees.shape[1] + 0.5, color="black", ls=":", lw=1, label="r")
    right.set_yscale("log")
    right.set_xlabel("index")
    right.set_ylabel("singular value of the points")
    right.legend()
    return figure
