"""Trajectory matching on images: which experts a run may retrace, where its images and labels start, and its outer loop.

    S = (images, [logits,] [log step size])
    mtt, ftd   momentum 0.5 on images and step size (released codes); they differ in their experts alone, plain and flat
    datm       also learned labels (momentum 0.9), a growing range of start epochs, updates above a threshold left out
    tesla      mtt with the sweep that leaves curvature out (theory.distill.trajectory)

Training on S is plain gradient descent, T steps from theta*_t towards theta*_{t+M}.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from realdata.bridge import ModuleProblem, Tensors
from realdata.config import DistillConfig
from realdata.data import ImageSet
from realdata.experts import StoredExperts, open_experts
from realdata.experts.recipe import Recipe, data_digest, key
from realdata.experts.shards import recipe_in
from realdata.preprocess import Transform
from realdata.second_order import forward
from realdata.streaming import Rows, on_device
from realdata.task import Split, Task, first_set, hard_labels, judges, stream, training_problem
from sims.lab.files import RunError
from theory.distill.distiller import Distiller
from theory.distill.inner_optim import Momentum
from theory.distill.outer import OuterOptimiser, PerLeaf
from theory.distill.step_size import StepSizeMomentum, with_step_size
from theory.distill.trajectory import TrajectoryMatching

SHARED = ("dataset", "network", "transform", "held_out")  # in which experts and distillation must agree
CANDIDATES = 256  # images looked at in one go


def chosen_experts(
    config: DistillConfig, place: Path | None, fitted: ImageSet, device: torch.device
) -> tuple[DistillConfig, StoredExperts]:
    """The configuration with the experts' key filled in, and the experts; RunError where the two do not belong together."""
    if place is None:
        raise RunError(f"{config.method} retraces experts: give their folder as --experts (python -m realdata experts makes one)")
    place = _one_recipe(config, place)
    experts = open_experts(place, config.trajectory.experts, device)
    fault = _misfit(config, experts.recipe)
    if fault is not None:
        raise RunError(f"the experts in {place} {fault}")
    if experts.data != data_digest(fitted):
        raise RunError(f"the experts in {place} were trained on other images than those at hand: train them anew")
    if config.trajectory.recipe not in ("", experts.key):
        raise RunError(f"{place} holds the recipe {experts.key}, the run asks for {config.trajectory.recipe}")
    TrajectoryMatching(experts, config.trajectory.starts(), config.trajectory.length)  # refuses segments that end beyond the last epoch
    return replace(config, trajectory=replace(config.trajectory, recipe=experts.key)), experts


def _misfit(config: DistillConfig, recipe: Recipe) -> str | None:
    """Why a run cannot take experts of this recipe, None where it can."""
    for name in SHARED:
        theirs, ours = getattr(recipe, name), getattr(config, name)
        if theirs != ours:
            return f"have {name} = {theirs}, the run has {ours}: take others or change the run"
    rho = recipe.flat.rho
    if (config.method == "mtt" and rho > 0) or (config.method == "ftd" and rho == 0):
        kind, other = ("flat", "ftd") if rho > 0 else ("plain", "mtt")
        return f"are {kind} (rho = {rho}), {config.method} takes the others: use --method {other}"
    return None


def _one_recipe(config: DistillConfig, place: Path) -> Path:
    """`place`, or where it is a store the one recipe in it that the run can take."""
    inside = sorted(path.parent for path in place.glob("*/config.toml"))
    if (place / "config.toml").exists() or not inside:
        return place
    recipes = {folder: recipe_in(folder) for folder in inside}
    asked = [folder for folder, (recipe, data) in recipes.items() if config.trajectory.recipe in ("", key(recipe, data))]
    fitting = [folder for folder in asked if _misfit(config, recipes[folder][0]) is None]
    if len(fitting) != 1:
        names = ", ".join(folder.name for folder in fitting) or "none"
        raise RunError(f"{place} has {len(fitting)} recipes that {config.method} can take here ({names}): give one folder as --experts")
    return fitting[0]


def outer_loop(config: DistillConfig) -> Distiller:
    """The outer loop: momentum on every part of S, on the step size itself though S holds its logarithm."""
    t = config.trajectory
    rates: list[OuterOptimiser] = [Momentum(t.image_lr, 0.5)]
    if config.learn_labels:
        rates.append(Momentum(t.label_lr, 0.9))
    if config.learn_step:
        rates.append(StepSizeMomentum(t.step_lr, 0.5))
    return Distiller(
        config.windows(),
        config.inner_optimiser(),
        PerLeaf(tuple(rates)),
        ema_decay=t.ema,
        hessian=config.hessian(),
        learn_step=config.learn_step,
        skip_above=t.skip_above,
    )


def build(config: DistillConfig, split: Split, transform: Transform, device: torch.device, compiled: bool, experts: StoredExperts) -> Task:
    """The task of a configuration that retraces experts."""
    labels = None if config.learn_labels else hard_labels(len(split.source.classes), config.ipc)
    problem = training_problem(config, labels, device, compiled)
    images, _ = on_device(transform, split.fitted, device)
    if config.method == "datm":
        first = understood(problem, experts, images, split.fitted.labels, stream(config.seed, "first set"))
    else:
        first = first_set(config, images, split.fitted.labels, device)
    return Task(
        problem=problem,
        objective=TrajectoryMatching(experts, config.trajectory.starts(), config.trajectory.length),
        distiller=outer_loop(config),
        first=with_step_size(first, config.inner_lr) if config.learn_step else first,
        held_out=judges(config, split, transform, device),
    )


def understood(problem: ModuleProblem, experts: StoredExperts, images: Rows, labels: np.ndarray, rng: np.random.Generator) -> Tensors:
    """DATM's first set: (random real images that the first expert classifies rightly, what experts say of them).

    The logits of an image are the mean over those experts that classify it rightly at their last epoch, over all where none does. A class
    with too few such images is filled with others.
    """
    theta, chosen = experts.snapshot(0, experts.epochs), []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        rows, others = [], []
        for start in range(0, len(order), CANDIDATES):
            part = order[start : start + CANDIDATES]
            right = _logits(problem, theta, images[torch.from_numpy(part)]).argmax(1).cpu().numpy() == label
            rows, others = [*rows, *part[right]], [*others, *part[~right]]
            if len(rows) >= problem.ipc:
                break
        chosen += [*rows, *others][: problem.ipc]
    first = images[torch.from_numpy(np.asarray(chosen))]
    truth = torch.from_numpy(labels[chosen]).to(first.device)
    logits = torch.stack([_logits(problem, experts.snapshot(k, experts.epochs), first) for k in range(experts.count)])
    right = (logits.argmax(2) == truth).to(logits.dtype)
    weight = torch.where(right.sum(0) > 0, right, torch.ones_like(right))
    return first, (weight[:, :, None] * logits).sum(0) / weight.sum(0)[:, None]


def _logits(problem: ModuleProblem, theta: Tensors, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return forward(problem.module, theta, images)
