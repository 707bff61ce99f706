"""Snapshots of experts on disk, as `theory.distill.trajectory.Experts`.

    FOLDER/config.toml                     the recipe and the digest of its data
    FOLDER/shards/EXPERT-EPOCH.safetensors one snapshot: the network's parameters in their order; the header holds recipe key, expert
                                           and epoch, and the seal of a checkpoint
    FOLDER/resume.safetensors              the expert under way: theta and the optimiser's slots after its last whole epoch

A shard is written to a neighbour and renamed, so it is whole or absent; it is read, and its seal checked, when it is asked for. Nothing
is executed. An expert counts once all its shards are there.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from realdata.checkpoint import DAMAGE, read_parts, write_parts
from realdata.config import stored
from realdata.experts.recipe import Recipe, key
from realdata.lift import Tensors
from sims.lab.files import RunError, make_folder
from sims.lab.run import stored_config

SHARDS = "shards"
RESUME = "resume.safetensors"

Shapes = tuple[tuple[int, ...], ...]


def shard_path(folder: Path, expert: int, epoch: int) -> Path:
    """Where a snapshot lies."""
    return folder / SHARDS / f"{expert:04d}-{epoch:04d}.safetensors"


def _write(path: Path, record: dict[str, Any], parts: dict[str, Tensors]) -> None:
    make_folder(path.parent)
    write_parts(path, record, parts)


def _read(path: Path, device: torch.device, mend: str) -> tuple[dict[str, Any], dict[str, Tensors]]:
    try:
        return read_parts(path, device)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {mend}") from error
    except DAMAGE as error:
        raise RunError(f"{path} is damaged ({error}): {mend}") from error


def write_snapshot(folder: Path, recipe_key: str, expert: int, epoch: int, theta: Tensors) -> None:
    """Stores theta* of an expert after an epoch."""
    _write(shard_path(folder, expert, epoch), {"recipe": recipe_key, "expert": expert, "epoch": epoch}, {"theta": theta})


def read_snapshot(folder: Path, recipe_key: str, shapes: Shapes, expert: int, epoch: int, device: torch.device) -> Tensors:
    """The stored theta*; RunError for a shard that is missing, damaged, or of another recipe, place or network."""
    path, mend = shard_path(folder, expert, epoch), "remove it and run the experts' command again, which makes it anew"
    record, parts = _read(path, device, mend)
    theta = parts.get("theta", ())
    found = tuple(tuple(leaf.shape) for leaf in theta)
    if found != shapes:
        raise RunError(f"{path} is of another network (parameters {_in_words(found)}, the recipe's have {_in_words(shapes)}): {mend}")
    asked = {"recipe": recipe_key, "expert": expert, "epoch": epoch}
    there = {name: record.get(name) for name in asked}
    if there != asked:
        raise RunError(f"{path} holds another snapshot ({there} in the place of {asked}): {mend}")
    return theta


def _in_words(shapes: Shapes) -> str:
    return f"{sum(map(prod, shapes))} floats, first {'x'.join(map(str, shapes[0])) if shapes else 'none'}"


class UnderWay(NamedTuple):
    """An expert in training: number, epochs done, parameters and optimiser slots."""

    expert: int
    epoch: int
    theta: Tensors
    slots: tuple[Tensors, ...]


def write_under_way(folder: Path, at: UnderWay) -> None:
    """Replaces the record of the expert under way."""
    slots = {f"slot{i}": slot for i, slot in enumerate(at.slots)}
    _write(folder / RESUME, {"expert": at.expert, "epoch": at.epoch}, {"theta": at.theta} | slots)


def read_under_way(folder: Path, device: torch.device) -> UnderWay | None:
    """The record, None where there is none."""
    if not (folder / RESUME).exists():
        return None
    record, parts = _read(folder / RESUME, device, "remove it, and its expert begins anew")
    theta = parts.pop("theta")
    return UnderWay(record["expert"], record["epoch"], theta, tuple(parts[f"slot{i}"] for i in range(len(parts))))


def complete(folder: Path, epochs: int) -> tuple[int, ...]:
    """The numbers of the experts with all their shards, in order."""
    names = {path.name for path in (folder / SHARDS).glob("*.safetensors")}
    begun = sorted({int(name.split("-")[0]) for name in names if name.split("-")[0].isdecimal()})
    return tuple(k for k in begun if all(shard_path(folder, k, e).name in names for e in range(epochs + 1)))


@dataclass(frozen=True, eq=False)
class StoredExperts:
    """The first `count` complete experts of a recipe's folder."""

    folder: Path
    recipe: Recipe
    data: str
    numbers: tuple[int, ...]
    device: torch.device

    @property
    def count(self) -> int:
        return len(self.numbers)

    @property
    def epochs(self) -> int:
        return self.recipe.epochs

    @cached_property
    def key(self) -> str:
        return key(self.recipe, self.data)

    @cached_property
    def shapes(self) -> Shapes:
        return tuple(tuple(p.shape) for p in self.recipe.module().parameters())

    def snapshot(self, expert: int, epoch: int) -> Tensors:
        return read_snapshot(self.folder, self.key, self.shapes, self.numbers[expert], epoch, self.device)


def recipe_in(folder: Path) -> tuple[Recipe, str]:
    """A folder's recipe and the digest of its data."""
    settings = stored_config(folder)
    data = settings.pop("data", None)
    if not isinstance(data, str):
        raise RunError(f"{folder} is no folder of experts (its config.toml names no data): give the one that `experts` printed")
    return stored(Recipe, settings, str(folder / "config.toml")), data


def open_experts(folder: Path, count: int, device: torch.device) -> StoredExperts:
    """The first `count` experts of the folder, for reading; it may go on growing meanwhile."""
    recipe, data = recipe_in(folder)
    found = complete(folder, recipe.epochs)
    if len(found) < count:
        raise RunError(f"{folder} has {len(found)} complete experts, {count} are asked for: train more with `experts --count {count}`")
    if found[:count] != tuple(range(count)):  # a run that goes on must retrace the experts that it began with
        gap = next(k for k in range(count) if k not in found)
        raise RunError(f"{folder} misses expert {gap}, or a part of it: the same `experts` command makes it again")
    return StoredExperts(folder, recipe, data, found[:count], device)
