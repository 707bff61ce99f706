"""What a run's meta-gradients leave out of the full one, at the first and at the last state of the run, and what memory one takes.

    G        the arm's own meta-gradient: its window, its Hessian
    G_N      exact, through all N steps of the same inner run up to the end of that window
    G_T      exact, through all T steps of that run, same real batch
    cosine_run = cos(G, G_N),  cosine_full = cos(G, G_T): means over inner runs;   norm_run = ||G|| / ||G_N||
    peak_bytes  the most that is allocated at a time during one G (real batch in its chunks included), beyond what lay there before

An adaptive window is drawn from the profile and in the stage of the state; at the first state, which has none, from that of a full run.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from realdata.artefact import read_set
from realdata.checkpoint import read_checkpoint
from realdata.config import DistillConfig
from realdata.machine import Runtime
from realdata.task import Split, build
from sims.lab.files import RunError
from theory.distill.distiller import Distiller, MetaGradient, OuterState, meta_gradient, start
from theory.distill.leaves import Leaves, dot, norm
from theory.distill.truncation import Window

WHEN = ("start", "end")


def cosine(x: Leaves, y: Leaves) -> float:
    """<x, y> / (||x|| ||y||)."""
    return float(dot(x, y)) / (norm(x) * norm(y))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The largest sum of live allocations during one call, beyond those before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    live = highest = 0
    profiler: Any = seen.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    return highest


def probe(config: DistillConfig, place: Path, split: Split, runtime: Runtime, probes: int, device: torch.device) -> dict[str, Any]:
    """The numbers of the module's head for the run in `place`."""
    task = build(config, split, read_set(place).transform, device, runtime.chunk, runtime.compiled)
    last = read_checkpoint(place, device)
    if last is None:
        raise RunError(f"{place} has no checkpoint left: remove it, its run is made again")
    states = dict(zip(WHEN, (start(task.distiller, task.first), last.outer), strict=True))
    whole, exact = Window(0, config.horizon), replace(task.distiller, hessian=None)
    out: dict[str, Any] = {}

    def gradient(k: int, state: OuterState, distiller: Distiller, window: Window | None) -> MetaGradient:
        seed = np.random.SeedSequence((config.seed, zlib.crc32(b"probe")), spawn_key=(k,))
        kept = {"stage": state.stage.stage, "profile": state.profile}
        return meta_gradient(task.problem, task.objective, distiller, state.s, seed, window=window, **kept)

    for when, state in states.items():
        full = [gradient(k, state, exact, whole) for k in range(probes)]
        state = replace(state, profile=state.profile or full[0].profile)
        mine = [gradient(k, state, task.distiller, None) for k in range(probes)]
        same = [gradient(k, state, exact, Window(0, one.window.stop)) for k, one in enumerate(mine)]
        for name, others in (("run", same), ("full", full)):
            out[f"cosine_{name}_{when}"] = float(np.mean([cosine(x.grad_s, y.grad_s) for x, y in zip(mine, others, strict=True)]))
        out[f"norm_run_{when}"] = float(np.mean([norm(x.grad_s) / norm(y.grad_s) for x, y in zip(mine, same, strict=True)]))
    out["peak_bytes"] = peak_bytes(lambda: gradient(0, states["end"], task.distiller, None), device)
    return out
