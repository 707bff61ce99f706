"""The state of a distillation on disk: one safetensors file, tensors in its body and JSON in its header, replaced in one step.

Numbers come back bit for bit (JSON writes the shortest decimal that reads back as the same float64), so a continued run repeats the
uninterrupted one.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from realdata.bridge import Tensors
from sims.lab.files import RunError, atomic_write
from theory.distill.distiller import OuterState
from theory.distill.stages import Stage, StageState

FILE = "checkpoint.safetensors"
FORMAT = 2


@dataclass(frozen=True)
class CurvePoint:
    """One measurement: mean objective since the last one (None at the start), held-out accuracy over fresh networks (shares)."""

    step: int
    loss: float | None
    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything a distillation needs to continue: the outer state, the curve, the best set so far, losses since the last point."""

    outer: OuterState
    best: Tensors
    curve: tuple[CurvePoint, ...] = ()
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    """Working time so far, over all starts; the one entry that two runs of one configuration do not share."""

    @property
    def best_point(self) -> CurvePoint:
        """The measurement of the best set: the highest mean, the earliest of equals."""
        return max(self.curve, key=lambda point: point.mean)


def write_checkpoint(folder: Path, state: RunState) -> None:
    """Stores the state in the run folder, whole or not at all."""
    outer = state.outer
    parts = {"s": outer.s, "best": state.best} | {f"slot{i}": slot for i, slot in enumerate(outer.slots)}
    if outer.s_average is not None:
        parts["average"] = outer.s_average
    tensors = {f"{name}.{k}": leaf.cpu().numpy() for name, leaves in parts.items() for k, leaf in enumerate(leaves)}
    record = {
        "format": FORMAT,
        "step": outer.step,
        "clip_average": outer.clip_average,
        "profile": outer.profile,
        "stage": dataclasses.asdict(outer.stage),
        "parts": {name: len(leaves) for name, leaves in parts.items()},
        "curve": [dataclasses.asdict(point) for point in state.curve],
        "losses": state.losses,
        "seconds": state.seconds,
    }
    atomic_write(folder / FILE, save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {"state": json.dumps(record)}))


def read_checkpoint(folder: Path, device: torch.device) -> RunState | None:
    """The stored state, None where there is none yet; RunError for a file that is damaged or of another format."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 - no mapping
        if record["format"] != FORMAT:
            raise RunError(f"{path} is of format {record['format']}, this version writes {FORMAT}: choose another --out")
        return _state(record, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it to start the run anew, or choose another --out") from error


def _state(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> RunState:
    parts = {name: tuple(tensors[f"{name}.{k}"] for k in range(count)) for name, count in record["parts"].items()}
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
    return RunState(outer, parts["best"], curve, tuple(record["losses"]), record["seconds"])
