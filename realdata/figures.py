"""Pictures of a distillation as PNG and PDF bytes: the learning curve with its interval, and the grid of distilled images."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, GREY = "#1f5fa8", "#8a8a8a"
STYLE = {"color": GREY, "linewidth": 0.8}
COLUMNS = 10


def render(figure: Figure, kind: str, dpi: int = 160) -> bytes:
    """The figure as a file of `kind` (png or pdf), the same bytes for the same figure."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    return stream.getvalue()


def learning_curve(steps: Sequence[int], mean: Sequence[float], std: Sequence[float], networks: int, best: int, title: str) -> Figure:
    """Held-out accuracy (per cent) against outer steps, with +- one standard deviation over networks and the chosen step marked."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    x, y, s = np.asarray(steps), 100 * np.asarray(mean), 100 * np.asarray(std)
    axes.fill_between(x, y - s, y + s, color=BLUE, alpha=0.2, linewidth=0, label=f"± 1 std over {networks} networks")
    axes.plot(x, y, color=BLUE, marker="o", markersize=2.5, linewidth=1.2, label="mean")
    axes.axvline(best, linestyle="--", label=f"chosen: step {best}", **STYLE)
    axes.set(xlabel="outer step", ylabel="held-out accuracy (%)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def image_grid(images: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images (classes * ipc, channels, height, width), class-major, one row a class (ten columns at most, one image a class side by side).

    Each image is stretched to the full range of intensities by its own 1st and 99th percentile: distilled images leave [0, 1].
    """
    ipc = len(images) // len(classes)
    columns = min(COLUMNS, len(classes) if ipc == 1 else ipc)
    rows = -(-len(classes) // columns) if ipc == 1 else len(classes)
    figure = Figure(figsize=(0.95 * columns, (1.12 if ipc == 1 else 0.95) * rows), layout="constrained")
    grid = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    for axes in grid.ravel():
        axes.set_axis_off()
    shown = range(len(classes)) if ipc == 1 else [c * ipc + k for c in range(len(classes)) for k in range(columns)]
    for axes, index in zip(grid.ravel(), shown, strict=False):
        axes.imshow(_stretched(images[index]), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
        if index % ipc == 0:
            axes.set_title(classes[index // ipc], fontsize=7, pad=2)
    return figure


def _stretched(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) -> (height, width[, 3]) in [0, 1]."""
    low, high = np.percentile(image, [1, 99])
    shown = np.clip((image - low) / max(high - low, 1e-12), 0.0, 1.0)
    return shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0)


def by_epoch(epochs: Sequence[int], series: Mapping[str, tuple[Sequence[float], Sequence[float]]], runs: int) -> Figure:
    """Named quantities against the epoch, a panel each: mean with +- one standard deviation over `runs` runs."""
    figure = Figure(figsize=(2.9 * len(series), 2.6), layout="constrained")
    for axes, (name, (mean, std)) in zip(figure.subplots(1, len(series), squeeze=False).ravel(), series.items(), strict=True):
        y, s = np.asarray(mean), np.asarray(std)
        axes.fill_between(epochs, y - s, y + s, color=BLUE, alpha=0.2, linewidth=0, label=f"± 1 std over {runs} experts")
        axes.plot(epochs, y, color=BLUE, marker="o", markersize=2.5, linewidth=1.2)
        axes.set(xlabel="epoch", title=name)
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small")
    return figure


def against(series: Mapping[str, np.ndarray], x: np.ndarray, across: str, up: str) -> Figure:
    """Shares against shares as per cent, a panel a name, one point each."""
    figure = Figure(figsize=(2.9 * len(series), 2.8), layout="constrained")
    for axes, (name, y) in zip(figure.subplots(1, len(series), squeeze=False).ravel(), series.items(), strict=True):
        axes.scatter(100 * x, 100 * np.asarray(y), s=10, color=BLUE, alpha=0.7, linewidth=0)
        axes.set(xlabel=f"{across} (%)", title=name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"{up} (%)")
    return figure
