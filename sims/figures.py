"""Every figure of the simulator, in one style: measured points with 95 % intervals, the theory's line, rivals in grey."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
}
P = ParamSpec("P")
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7a5195", "#b8860b", "#444444")


def colour(k: int) -> str:
    """The k-th colour, over and over."""
    return COLOURS[k % len(COLOURS)]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A drawing function carried out in the one style (labels and legends take it when they are made)."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(columns: int, width: float = 3.6, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    """A row of panels, drawn without a display."""
    figure = Figure(figsize=(width * columns, height))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def files(figure: Figure, name: str) -> dict[str, bytes]:
    """{name.png, name.pdf}: the figure in both formats."""
    out = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", 'Creating legend with loc="best"')  # says that the machine is busy
        for kind in ("png", "pdf"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
            out[f"{name}.{kind}"] = buffer.getvalue()
    return out


def points(axis: Axes, x: Sequence[float], y: Sequence[float], intervals: Sequence[Any], label: str, k: int) -> None:
    """Points with intervals; censored ones (not finite) are named at the top."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    seen = np.isfinite(ys)
    low, high = (
        np.array([0.0 if i is None else max(0.0, sign * (i[side] - v)) for v, i in zip(ys, intervals, strict=True)])
        for side, sign in ((0, -1.0), (1, 1.0))
    )
    axis.errorbar(xs[seen], ys[seen], yerr=[low[seen], high[seen]], fmt="o", ms=4, capsize=2.5, lw=1.2, color=colour(k), label=label)
    for censored in xs[~seen]:
        axis.annotate(
            "beyond grid",
            (censored, 0.98),
            xycoords=("data", "axes fraction"),
            fontsize=6,
            color=colour(k),
            rotation=90,
            ha="center",
            va="top",
        )


def power_line(axis: Axes, x: Sequence[float], anchor: tuple[float, float], exponent: float, label: str, **style: Any) -> None:
    """A line of a given slope through a point of the log-log plane."""
    ends = np.array([min(x), max(x)], float)
    options: dict[str, Any] = {"lw": 1.2} | style
    axis.plot(ends, anchor[1] * (ends / anchor[0]) ** exponent, label=label, **options)


def log_log(axis: Axes, x_label: str, y_label: str, ticks: Sequence[float]) -> None:
    """Both axes logarithmic, with the measured x as ticks."""
    if not np.all(np.isfinite(axis.dataLim.intervaly)):
        # Everything is censored: a logarithmic axis needs some positive range.
        axis.set_xlim(0.9 * min(ticks), 1.1 * max(ticks))
        axis.set_ylim(1.0, 10.0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(list(ticks), [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    plain_ticks(axis.yaxis)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)


def plain_ticks(side: Axis) -> None:
    """1, 2, 5, 10, .. as plain numbers on a logarithmic side."""
    side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def centre(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """The geometric mean of the points that are not censored, where a fitted power law passes; None where there are none."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    seen = np.isfinite(ys) & (ys > 0)
    if not seen.any():
        return None
    return float(np.exp(np.log(xs[seen]).mean())), float(np.exp(np.log(ys[seen]).mean()))


def csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """The numbers behind a figure, one column a name; censored values are empty."""
    names = list(columns)
    lines = [",".join(names)]
    for row in zip(*columns.values(), strict=True):
        lines.append(",".join("" if v is None or (isinstance(v, float) and not np.isfinite(v)) else str(v) for v in row))
    return "\n".join(lines) + "\n"
