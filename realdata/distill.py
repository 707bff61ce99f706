"""`python -m realdata distill`: the outer loop of `theory.distill` on images, in a run folder that can be left and taken up at any moment.

DIR/config.toml, env.json      the run (sims.lab)          DIR/checkpoint.safetensors   its state, replaced every few steps
DIR/transform.safetensors      fitted once                 DIR/figures/                 curve.csv, curve.png, curve.pdf
DIR/steps.csv                  what every outer step did and took (realdata.steps)
DIR/parity.json                in less than float32: the errors of the run's derivatives (realdata.parity)
DIR/distilled/                 the finished set: the one with the best held-out accuracy among those measured      DIR/summary.json

Several processes may share a run (realdata.ranks); the first one alone looks at the folder and writes.
"""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realdata import figures, trajectory
from realdata.artefact import FOLDER, DistilledSet, write_set
from realdata.bridge import Tensors
from realdata.checkpoint import DAMAGE, CurvePoint, RunState, read_checkpoint, write_checkpoint
from realdata.config import DistillConfig, as_settings
from realdata.data import cache_folder
from realdata.experts import StoredExperts
from realdata.machine import Runtime, arithmetic, set_up
from realdata.parity import tested
from realdata.preprocess import Transform, fit, read_transform
from realdata.protocol import accuracy, train
from realdata.ranks import ALONE, Ranks
from realdata.steps import StepLog
from realdata.task import Split, Task, build, check, hard_labels, stream, training_split
from realdata.trajectory import chosen_experts
from sims.lab.artefact import SUMS, sealed
from sims.lab.files import RunError
from sims.lab.progress import Bar, Silent, progress
from sims.lab.run import RunFolder, flat, stored_config
from theory.distill.distiller import Record, asked_at, distil, meta_gradient, observed, start
from theory.distill.problem import Diverged
from theory.distill.truncation import FullWindow

TRANSFORM = "transform.safetensors"
PARITY = "parity.json"


def run(
    config: DistillConfig,
    root: Path,
    out: Path,
    runtime: Runtime,
    resume: bool = True,
    experts: Path | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Distils into `out`, or goes on where the run there stopped, and gives the artefact folder back; `experts` is a recipe's folder."""
    clock = time.monotonic
    began = clock()
    device = set_up(runtime, tested=True)
    finished = ranks.told((out / FOLDER / SUMS).is_file)
    load = partial(_loaded, config, root, experts, device, finished)
    config, split, stored = ranks.first_does(load) or load()  # the first decodes and fits, the others find it done
    free = (*_grown(config, out), *(["trajectory.recipe"] if finished else []))  # a finished run does not look at its experts again
    unusual = [f"{ranks.count} ranks"] * (ranks.count > 1) + [runtime.precision] * (runtime.precision != "float32")
    backend = ", ".join([f"torch: {device}", *unusual])
    with ExitStack() as held:
        open_ = partial(RunFolder.open, out, resume=resume, free=free, backend=backend, seed=config.seed)
        folder = ranks.first_does(lambda: held.enter_context(open_(_settings(config, runtime, out))))
        if split is None:
            return out / FOLDER
        transform = ranks.told(lambda: _transform(config, split, folder))
        made = partial(_task, config, split, transform, device, stored, runtime.chunk)
        if runtime.precision != "float32":
            found = ranks.told(lambda: tested(made(), config.seed, runtime.precision))
            if folder is not None:
                folder.write(PARITY, json.dumps(dataclasses.asdict(found), indent=1) + "\n")
            held.enter_context(arithmetic(runtime.precision))
        task = made(runtime.compiled, ranks)
        if runtime.compiled:
            _compiled_beforehand(task)
        first = RunState(start(task.distiller, task.first, config.first_stage), task.first)
        state = ranks.told(lambda: read_checkpoint(out, device) or first)
        worked, log = state.seconds, StepLog.open(out, state.outer.step, device)

        def save(state: RunState) -> RunState:
            if folder is None:
                return state
            state = replace(state, seconds=worked + clock() - began)
            log.save(folder)
            write_checkpoint(folder.path, state)
            folder.write("figures/curve.csv", curve_csv(state))
            return state

        with progress(config.outer_steps, f"distil {config.dataset}") if ranks.first else nullcontext(Silent()) as bar:
            bar.skip(state.outer.step)
            state = _loop(config, task, state, runtime, save, bar, log, ranks)
        return out / FOLDER if folder is None else _finish(config, split, transform, state, folder)


def _task(
    config: DistillConfig,
    split: Split,
    transform: Transform,
    device: torch.device,
    experts: StoredExperts | None,
    chunk: int,
    compiled: bool = False,
    ranks: Ranks = ALONE,
) -> Task:
    """What is distilled: along experts where the method has any."""
    if experts is None:
        return build(config, split, transform, device, chunk, compiled, ranks)
    return trajectory.build(config, split, transform, device, compiled, experts)


def _compiled_beforehand(task: Task) -> None:
    """The meta-gradient of one step, thrown away: no outer step's time has compiling in it."""
    short = replace(task.distiller, windows=FullWindow(1), starts=1)
    with suppress(Diverged):  # the run itself will tell
        meta_gradient(task.problem, asked_at(task.objective, 0), short, task.first, np.random.SeedSequence(0))


def _settings(config: DistillConfig, runtime: Runtime, out: Path) -> dict[str, Any]:
    """What the folder belongs to: under batch norm the chunk too, unless the run there began when that was not stored."""
    settings = as_settings(config)
    if config.network.norm != "batch" or config.trajectories:
        return settings
    older = (out / "config.toml").is_file() and "chunk" not in stored_config(out)
    return settings if older else settings | {"chunk": runtime.chunk}


def _grown(config: DistillConfig, out: Path) -> list[str]:
    """Settings at their defaults that the run in `out` was begun without: options that came later."""
    if not (out / "config.toml").is_file():
        return []
    old, now, default = (flat(x) for x in (stored_config(out), as_settings(config), as_settings(DistillConfig(config.dataset))))
    return [name for name, value in now.items() if name not in old and value is not None and value == default[name]]


def _loaded(
    config: DistillConfig, root: Path, experts: Path | None, device: torch.device, finished: bool
) -> tuple[DistillConfig, Split | None, StoredExperts | None]:
    """The configuration with its experts' key, and what an unfinished run works on: the training images, and the experts if it has any."""
    if finished:
        return config, None, None
    split = training_split(config, str(root))
    check(config, split)  # a refused setting must not leave a folder behind
    if not config.trajectories:
        return config, split, None
    config, stored = chosen_experts(config, experts, split.fitted, device)
    return config, split, stored


def _transform(config: DistillConfig, split: Split, folder: RunFolder | None) -> Transform:
    """The fitted transform, computed once a run folder."""
    assert folder is not None
    path = folder.path / TRANSFORM
    if path.exists():
        try:
            return read_transform(path)
        except DAMAGE as error:
            raise RunError(f"{path} is damaged ({error}): remove it, it will be made again") from error
    transform = fit(config.transform, split.fitted.images, cache_folder())
    folder.write(TRANSFORM, sealed(transform.tensors()))
    return transform


def _loop(
    config: DistillConfig,
    task: Task,
    state: RunState,
    runtime: Runtime,
    save: Callable[[RunState], RunState],
    bar: Bar,
    log: StepLog,
    ranks: Ranks,
) -> RunState:
    """Outer steps until config.outer_steps are done; what is finished is stored before any error or Ctrl-C goes on."""

    def onward() -> Iterator[Record]:
        timed = log.problem(task.problem), log.objective(task.objective)
        return distil(*timed, task.distiller, state.outer, config.seed, config.outer_steps, partial(ranks.shared, team=ranks.team))

    records = onward()
    try:
        while True:
            if _measurement_due(config, state):
                state = _measured(config, task, state, ranks)
                records = onward()
            step = state.outer.step
            if step == config.outer_steps:
                return save(state)
            if step % runtime.checkpoint_every == 0:
                save(state)
            began = time.monotonic()
            record = next(records)
            log.add(record, time.monotonic() - began)
            state = replace(state, outer=record.state, losses=(*state.losses, record.value))
            bar.advance(note=_note(record.value, state))
    except (KeyboardInterrupt, RunError, OSError):
        save(state)
        raise
    except Diverged as error:
        save(state)
        kept = f"the set after {state.outer.step} steps is kept in the checkpoint: choose another --out with a lower"
        raise Diverged(f"{error}; {kept} {config.rates}") from error


def _note(loss: float, state: RunState) -> str:
    stage = "" if state.outer.profile is None else f", {state.outer.stage.stage} stage"
    return f"loss {loss:.3f}, held-out {100 * state.curve[-1].mean:.1f} %, best {100 * state.best_point.mean:.1f} %{stage}"


def _measurement_due(config: DistillConfig, state: RunState) -> bool:
    step = state.outer.step
    on_grid = step % config.curve_every == 0 or step == config.outer_steps
    return on_grid and (not state.curve or state.curve[-1].step < step)


def _measured(config: DistillConfig, task: Task, state: RunState, ranks: Ranks) -> RunState:
    """The state with one more point of the curve: of the set, and of its running average where there is one."""
    outer = state.outer
    mean, std = _held_out(config, task, outer.s, ranks)
    loss = float(np.mean(state.losses)) if state.losses else None
    point, average = CurvePoint(outer.step, loss, mean, std), None
    if outer.s_average is not None:
        average = (*outer.s_average[:1], *outer.s[1:])
        point = CurvePoint(outer.step, loss, mean, std, *_held_out(config, task, average, ranks))
    curve = (*state.curve, point)
    outer = observed(task.distiller, outer, 100.0 * mean)
    state = replace(state, outer=outer, curve=curve, losses=())
    state = replace(state, best=outer.s) if state.best_point is point else state
    return replace(state, best_average=average) if state.best_average_point is point else state


def _held_out(config: DistillConfig, task: Task, s: Tensors, ranks: Ranks) -> tuple[float, float]:
    """Mean and standard deviation of the held-out accuracy of fresh networks, the same initialisations for every set."""
    data, inner = task.distiller.training(s)
    optimiser, steps = config.judging(inner.lr)

    def score(k: int) -> float:
        (theta,) = train(task.problem, optimiser, data, stream(config.seed, "curve networks", k), (steps,))
        return accuracy(task.problem, theta, task.held_out)

    scores = list(ranks.shared(partial(score, k) for k in range(config.curve_networks)))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


def curve_csv(state: RunState) -> str:
    """The learning curve: accuracies are shares."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["outer_step", "mean_objective", "held_out_mean", "held_out_std", "ema_mean", "ema_std"])
    table.writerows(["" if value is None else value for value in dataclasses.astuple(point)] for point in state.curve)
    return stream.getvalue()


def _finish(config: DistillConfig, split: Split, transform: Transform, state: RunState, folder: RunFolder) -> Path:
    """Figures, summary and the artefact, the artefact last: where it lies, the run is complete."""
    best, points = state.best_point, state.curve
    curve = figures.learning_curve(
        [p.step for p in points],
        [p.mean for p in points],
        [p.std for p in points],
        config.curve_networks,
        best.step,
        f"{config.dataset}, {config.ipc} per class, {config.method}",
    )
    for kind in ("png", "pdf"):
        folder.write(f"figures/curve.{kind}", figures.render(curve, kind))
    summary = {
        "outer_steps": config.outer_steps,
        "held_out": {
            "networks": config.curve_networks,
            "first": dataclasses.asdict(points[0]),
            "best": dataclasses.asdict(best),
            "last": dataclasses.asdict(points[-1]),
            "best_average": None if (average := state.best_average_point) is None else dataclasses.asdict(average),
        },
        "seconds": state.seconds,
    }
    folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    classes = len(split.source.classes)
    labels = torch.softmax(state.best[1], dim=1) if config.learn_labels else hard_labels(classes, config.ipc)
    distilled = DistilledSet(
        state.best[0].cpu().numpy(),
        labels.cpu().numpy(),
        transform,
        config,
        split.fitted.classes,
        step_size=float(torch.exp(state.best[-1])) if config.learn_step else None,
        images_ema=None if state.best_average is None else state.best_average[0].cpu().numpy(),
        step_size_ema=float(torch.exp(state.best_average[-1])) if config.learn_step and state.best_average is not None else None,
    )
    return write_set(folder.path / FOLDER, distilled, best, len(points))
