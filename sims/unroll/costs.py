"""What a trial of `sims unroll` costs, counted from its configuration (see sims.costs).

    gradient on n points   4 n L d products in 64 bit; a step of the reverse sweep (both second-order products) 10 n L d
    a run on the set       T steps on its M1 points, in P phases of T/P steps on M1/P points
    an outer step          J x (a run, a sweep over the window, one gradient on the real batch; of dc-path one a state of the window)
    a measurement          `networks` x (a run, two ridge heads)
    experts                every epoch N points and the loss on all of them; flat ones two gradients a step and that loss at each step
Windows count as if they ended at T; stage clock and qualities of experts are left out. At small sizes the interpreter takes longer than
the arithmetic: CALLS elementwise operations stand for its share of a gradient, three times as many for that of a sweep's step.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from sims import costs
from sims.lab.sweep import Cost
from sims.pipeline import Task
from sims.unroll.methods import METHODS, Loop, gradients, performance
from sims.unroll.recipe import Recipe
from sims.unroll.trial import measured_steps, trial_task
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.truncation import FixedWindow, RandomWindow

CALLS = 1.5e5


def unroll_trial(config: Mapping[str, Any]) -> Cost:
    """`trial.unroll_trial`."""
    task, method = trial_task(config), METHODS[config["method"]]
    recipe = Recipe(**{f.name: config[f.name] for f in fields(Recipe)})
    phases = min(recipe.phases, config["M1"]) if isinstance(method, Loop) and method.phased else 1
    points = task.N if config["method"] == "full-data" else config["M1"] / phases
    run = (recipe.T if method.many else 1) * _gradient(task, points)
    sets = 1 + len(measured_steps(recipe.K, config["checkpoints"])) if isinstance(method, Loop) else 1
    total = costs.encoding(task) + costs.samples(task) + Cost(normals=float(task.N * task.d))
    total += sets * config["networks"] * (run + 2 * costs.head(task, task.head_samples))
    if not isinstance(method, Loop):
        return total + (costs.matching(task, config["M1"]) if config["method"] == "one-step" else Cost())
    horizon = recipe.T // phases if method.many else 1
    windows = method.windows(recipe, horizon)
    length = windows.base if isinstance(windows, AdaptiveWindow) else horizon
    length = windows.length if isinstance(windows, FixedWindow | RandomWindow) else length
    batch = min(round(recipe.batch * task.d**2), task.N)
    real = {performance: 1, gradients: length}.get(method.objective, 0)
    outer = run + length * _sweep_step(task, points) + real * _gradient(task, batch)
    whole = recipe.T // phases * (_gradient(task, points) + _sweep_step(task, points))
    total += recipe.K * recipe.J * outer + 2 * config["probes"] * (outer + whole)
    if method.experts is not None:
        total += recipe.experts * recipe.epochs * _epoch(task, batch, flat=config["method"] == "ftd")
    return total


def _gradient(task: Task, points: float) -> Cost:
    return Cost(8.0 * points * task.L * task.d, 0.0, 12.0 * points * task.L + CALLS, 0.0, 40.0 * points * task.L)


def _sweep_step(task: Task, points: float) -> Cost:
    return Cost(20.0 * points * task.L * task.d, 0.0, 30.0 * points * task.L + 3 * CALLS, 0.0, 80.0 * points * task.L)


def _epoch(task: Task, batch: int, flat: bool) -> Cost:
    """Of a plain expert, and of its flat twin beside it."""
    steps = int(np.ceil(task.N / batch))
    plain = steps * _gradient(task, batch) + _gradient(task, task.N)
    return plain + steps * (2 * _gradient(task, batch) + _gradient(task, task.N)) if flat else plain
