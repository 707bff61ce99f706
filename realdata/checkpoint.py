"""The state of a piece of work on disk: one sealed safetensors file, tensors in its body and JSON in its header, replaced in one step.

`write_parts` and `read_parts` do so for any record and named tuples of tensors, the rest of the module for the state of a distillation.

Numbers come back bit for bit (JSON writes the shortest decimal that reads back as the same float64), so a continued run repeats the
uninterrupted one.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from realdata.bridge import Tensors
from sims.lab.artefact import sealed, unsealed
from sims.lab.files import RunError, atomic_write
from theory.distill.distiller import OuterState
from theory.distill.stages import Stage, StageState

FILE = "checkpoint.safetensors"
FORMAT = 4
DAMAGE = (SafetensorError, OSError, KeyError, TypeError, ValueError)  # what reading a damaged file may raise


@dataclass(frozen=True)
class CurvePoint:
    """One measurement: mean objective since the last one (None at the start), held-out accuracy over fresh networks (shares), and that
    of the running average of the images where there is one.
    """

    step: int
    loss: float | None
    mean: float
    std: float
    ema_mean: float | None = None
    ema_std: float | None = None


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything a distillation needs to continue: the outer state, the curve, the best set so far, losses since the last point."""

    outer: OuterState
    best: Tensors
    curve: tuple[CurvePoint, ...] = ()
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    """Working time so far, over all starts; the one entry that two runs of one configuration do not share."""
    best_average: Tensors | None = None
    """The best running average of the images, with the rest of S at its step."""

    @property
    def best_point(self) -> CurvePoint:
        """The measurement with the best set: the highest mean, the earliest of equals. Averages play no part in it."""
        return max(self.curve, key=lambda point: point.mean)

    @property
    def best_average_point(self) -> CurvePoint | None:
        """The measurement with the best running average, None where none is kept."""
        return max((point for point in self.curve if point.ema_mean is not None), key=lambda point: point.ema_mean or 0.0, default=None)


def write_checkpoint(folder: Path, state: RunState) -> None:
    """Stores the state in the run folder, whole or not at all."""
    outer = state.outer
    parts = {"s": outer.s, "best": state.best} | {f"slot{i}": slot for i, slot in enumerate(outer.slots)}
    if outer.s_average is not None:
        parts["average"] = outer.s_average
    if state.best_average is not None:
        parts["best_average"] = state.best_average
    record = {
        "format": FORMAT,
        "step": outer.step,
        "clip_average": outer.clip_average,
        "profile": outer.profile,
        "stage": dataclasses.asdict(outer.stage),
        "curve": [dataclasses.asdict(point) for point in state.curve],
        "losses": state.losses,
        "seconds": state.seconds,
    }
    write_parts(folder / FILE, record, parts)


def read_checkpoint(folder: Path, device: torch.device) -> RunState | None:
    """The stored state, None where there is none yet; RunError for a file that is damaged or of another format."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        record, parts = read_parts(path, device)
        if record["format"] != FORMAT:
            raise RunError(f"{path} is of format {record['format']}, this version writes {FORMAT}: choose another --out")
        return _state(record, parts)
    except DAMAGE as error:
        raise RunError(f"{path} is damaged ({error}): remove it to start the run anew, or choose another --out") from error


def write_parts(path: Path, record: Mapping[str, Any], parts: Mapping[str, Tensors]) -> None:
    """Stores a JSON record and named tuples of tensors, whole or not at all."""
    tensors = {f"{name}.{k}": leaf.cpu().numpy() for name, leaves in parts.items() for k, leaf in enumerate(leaves)}
    counts = {name: len(leaves) for name, leaves in parts.items()}
    atomic_write(path, sealed(tensors, json.dumps({**record, "parts": counts})))


def read_parts(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """(record, parts) of a file of `write_parts`; one of DAMAGE where it is none."""
    tensors, text = unsealed(path)
    record = json.loads(text)
    counts = record.pop("parts").items()
    return record, {name: tuple(torch.from_numpy(tensors[f"{name}.{k}"]).to(device) for k in range(count)) for name, count in counts}


def _state(record: dict[str, Any], parts: dict[str, Tensors]) -> RunState:
    slots = tuple(parts[f"slot{i}"] for i in range(sum(name.startswith("slot") for name in parts)))
    profile, stage = record["profile"], record["stage"]
    outer = OuterState(
        parts["s"],
        slots,
        record["clip_average"],
        parts.get("average"),
        record["step"],
        None if profile is None else tuple(profile),
        StageState(Stage(stage["stage"]), stage["slow"], stage["accuracy"]),
    )
    curve = tuple(CurvePoint(**point) for point in record["curve"])
    return RunState(outer, parts["best"], curve, tuple(record["losses"]), record["seconds"], parts.get("best_average"))
