"""What a phase diagram leaves for its reader: median risks on both planes, contours, the theory's lines, numbers behind them."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.optimize import root_scalar

from sims import figures
from sims.command import Facts, Rows
from sims.lab.report import Cell, markdown_table, number
from sims.lab.sweep import rows_at, sound
from sims.phase.experiment import Phase
from theory import predictions
from theory.multi_index import make_link


@dataclass(frozen=True)
class Diagrams:
    """Median risks: points (N/d^2, M1), labels (M1, M2); the teacher's at every N/d^2."""

    points: Float[np.ndarray, "S G"]
    labels: Float[np.ndarray, "G H"]
    teacher: Float[np.ndarray, "S"]


def measure(config: Phase, rows: Rows) -> Diagrams:
    """Medians over the seeds that did not fail."""
    every = [*rows["points"], *rows["labels"]]
    by_n = [sound(rows_at(every, samples=samples), f"trials at N/d^2 = {samples:g}", 1) for samples in config.samples]
    labels = np.array([row["fresh"] for row in by_n[-1]]).reshape(len(by_n[-1]), len(config.m1), len(config.m2))
    return Diagrams(
        np.array([np.median([row["real"] for row in group], axis=0) for group in by_n]),
        np.median(labels, axis=0),
        np.array([np.median([row["teacher"] for row in group]) for group in by_n]),
    )


def damian_threshold(config: Phase) -> float:
    """kappa^2 r, the order in N/d^2 from which every direction is learned (Damian et al., COLT 2022); infinite where one is lost."""
    return make_link(config.link, config.r).kappa ** 2 * config.r


def half_off(config: Phase) -> float | None:
    """N/d^2 at which the predicted energies of a point on and off S* are equal; None where no N does that."""
    link, k = make_link(config.link, config.r), config.task(config.samples[0]).J * config.L // 2

    def excess(log_n: float) -> float:
        n = round(math.exp(log_n) * config.d**2)
        return math.log(predictions.distilled_points(link, config.noise, config.d, n, k).ratio)

    low, high = math.log(2.0 / config.d), math.log(1e6)
    if not make_link(config.link, config.r).hessian.any() or not excess(low) > 0 > excess(high):
        return None
    return math.exp(root_scalar(excess, bracket=(low, high), xtol=1e-2).root)


def title(config: Phase) -> str:
    """One line that names the task."""
    kind = "reflected" if config.reflected else "plain"
    return f"{config.link} link, {kind} set, d = {config.d}, r = {config.r}, L = {config.L}, LJ/(rd) = {config.diversity:g}"


def report(config: Phase, found: Diagrams, facts: Facts) -> str:
    """report.md."""
    return "\n".join(
        [
            "# Phase diagrams of the distilled set\n",
            f"{title(config)}; median test risk over {config.seeds} seeds. {facts.trials} trials, {facts.failed} failed, "
            f"{facts.seconds} s, {facts.backend}.\n",
            f"Lines: M1 = r and M1 = r^2; N = {number(damian_threshold(config))} d^2 (kappa^2 r, stated by Damian et al., COLT 2022, up to "
            f"a constant); N = {number(half_off(config))} d^2, where the points' predicted energy is half off S* (derived here); M2 = L.\n",
            f"\n## Points: risk with a head on real samples, level {config.level:g}\n",
            markdown_table(("N/d^2 \\ M1", "teacher", *map(str, config.m1)), _point_rows(config, found)),
            f"\n## Labels: risk of a fresh network at N = {config.samples[-1]:g} d^2\n",
            markdown_table(
                ("M1 \\ M2", *map(str, config.m2)), [[m, *map(float, row)] for m, row in zip(config.m1, found.labels, strict=True)]
            ),
            "\n![phase diagrams](figures/phase.png)\n",
        ]
    )


def _point_rows(config: Phase, found: Diagrams) -> list[list[Cell]]:
    return [
        [number(samples), float(teacher), *map(float, row)]
        for samples, teacher, row in zip(config.samples, found.teacher, found.points, strict=True)
    ]


def summary(config: Phase, found: Diagrams, facts: Facts) -> str:
    """summary.json."""
    content = {
        "M1": config.m1,
        "M2": config.m2,
        "samples": config.samples,
        "points": found.points.tolist(),
        "labels": found.labels.tolist(),
        "teacher": found.teacher.tolist(),
        "lines": {"kappa^2 r": _finite(damian_threshold(config)), "half off S*": half_off(config)},
        **vars(facts),
    }
    return json.dumps(content, indent=2) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def figure_files(config: Phase, found: Diagrams) -> dict[str, bytes | str]:
    """phase.png, phase.pdf and the numbers behind both planes."""
    out: dict[str, bytes | str] = dict(figures.files(_figure(config, found), "phase"))
    planes = {
        "points": ("samples", config.samples, "M1", config.m1, found.points),
        "labels": ("M1", config.m1, "M2", config.m2, found.labels),
    }
    for name, (rows, row_values, columns, column_values, risk) in planes.items():
        places = [(a, b, float(risk[i, j])) for i, a in enumerate(row_values) for j, b in enumerate(column_values)]
        out[f"{name}.csv"] = figures.csv(dict(zip((rows, columns, "risk"), zip(*places, strict=True), strict=True)))
    return out


@figures.styled
def _figure(config: Phase, found: Diagrams) -> Figure:
    figure, (left, right) = figures.new_figure(2, width=4.8, height=3.8)
    share = np.array(config.m1) / config.r**2
    norm = LogNorm(max(1e-3, min(found.points.min(), found.labels.min())), 1.0)
    _plane(left, share, np.array(config.samples), found.points, config.level, norm)
    left.set_xlabel("points M1 / r^2")
    left.set_ylabel("samples N / d^2")
    left.set_title("points, head on real samples", fontsize=9)
    lines = [(damian_threshold(config), "kappa^2 r"), (half_off(config), "half off S*")]
    for k, (height, text) in enumerate(lines):
        if height is not None and config.samples[0] < height < config.samples[-1]:
            left.axhline(height, color="white", lw=1.4, ls=("--", ":")[k])
            left.text(share[-1], height, text + " ", color="white", ha="right", va="bottom", fontsize=8)
    image = _plane(right, np.array(config.m2) / config.L, share, found.labels, config.level, norm)
    right.set_xlabel("labels M2 / L")
    right.set_ylabel("points M1 / r^2")
    right.set_title(f"fresh network on labels, N = {config.samples[-1]:g} d^2", fontsize=9)
    right.axvline(1.0, color="white", lw=1.4, ls="--")
    right.text(1.0, share[0], " M2 = L", color="white", ha="left", va="bottom", fontsize=8)
    for value, text in ((1.0 / config.r, "M1 = r"), (1.0, "M1 = r^2")):
        left.axvline(value, color="white", lw=1.4, ls="-.")
        left.text(value, config.samples[-1], f" {text}", color="white", ha="left", va="top", fontsize=8)
        right.axhline(value, color="white", lw=1.4, ls="-.")
        right.text(config.m2[-1] / config.L, value, text + " ", color="white", ha="right", va="bottom", fontsize=8)
    bar = figure.colorbar(image, ax=[left, right], label=f"median test risk (contour: {config.level:g})")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    figure.suptitle(title(config), fontsize=9)
    return figure


def _plane(axis: Any, x: np.ndarray, y: np.ndarray, risk: np.ndarray, level: float, norm: LogNorm) -> Any:
    """A heat map of risk (y, x) on logarithmic axes with the contour of a level."""
    image = axis.pcolormesh(_edges(x), _edges(y), np.minimum(risk, 1.0), norm=norm, cmap="viridis_r", shading="flat", rasterized=True)
    if risk.min() < level < risk.max():
        axis.contour(x, y, risk, levels=[level], colors="black", linewidths=1.4)
    axis.grid(False)
    for ticks, scale in ((x, axis.xaxis), (y, axis.yaxis)):
        (axis.set_xscale if scale is axis.xaxis else axis.set_yscale)("log")
        scale.set_major_locator(FixedLocator(list(ticks[:: max(1, math.ceil(len(ticks) / 7))])))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
    return image


def _edges(centres: np.ndarray) -> np.ndarray:
    """Geometric cell borders around increasing centres."""
    middle = np.sqrt(centres[1:] * centres[:-1])
    return np.concatenate([centres[:1] ** 2 / middle[:1], middle, centres[-1:] ** 2 / middle[-1:]])
