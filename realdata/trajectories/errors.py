"""How far a network that is trained on a finished set strays from the experts that the set was made along, segment by segment.

    matching, initialisation, accumulated   ||delta||, ||I||, ||eps|| of theory.distill.trajectory.errors_along, in units of the weights:
                  T steps on the set for each M epochs of the expert, from its start to its last whole segment
    segment, way  ||theta*_{t+1} - theta*_t|| and ||theta*_{t+1} - theta*_0||
    excess        loss of that student on held-out training images minus the expert's, at the end of each segment
    fresh         the same for students that start every segment at the expert's snapshot
    shaken        how much that loss rises when such a student starts at theta*_t + u, u half as long as the segment, its direction random

Each expert is a stored trial. The protocol is that of FTD's first figure (Du et al., arXiv:2211.11004), on held-out images in the place of
the test split; length and direction of u are ours. Warps and batches of a seed and an expert are the same for every method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from realdata.bridge import Tensors
from realdata.checks import at_least
from realdata.experts import StoredExperts
from realdata.experts.quality import KIND as QUALITY
from realdata.experts.quality import mean_loss
from realdata.streaming import Labelled, on_device
from realdata.task import stream, training_problem, training_split
from realdata.trajectories.runs import Finished
from realdata.trajectory import chosen_experts
from sims.lab.progress import progress
from sims.lab.run import RunFolder
from sims.lab.store import Row, TrialStore
from theory.distill.leaves import add, axpy, norm, scale
from theory.distill.problem import Diverged
from theory.distill.trajectory import errors_along, trained

KIND = "retraced"
SHAKE = 0.5
NORMS = ("matching", "initialisation", "accumulated")
LOSSES = ("excess", "fresh", "shaken")


@dataclass(frozen=True)
class Retracing:
    """How errors along experts are measured."""

    experts: int = 10
    """Experts retraced, the first ones; at most those that the run drew from."""
    images: int = 1000
    """Held-out images of the losses."""

    def __post_init__(self) -> None:
        at_least(1, experts=self.experts, images=self.images)


@dataclass(frozen=True, eq=False)
class Curves:
    """One quantity of one method: values (experts, epochs), the epochs, and the experts' numbers; means over the seeds of its sets."""

    values: np.ndarray
    epochs: tuple[int, ...]
    experts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Retraced:
    """All that was measured: rows by run, of every expert; quality of the experts by method."""

    rows: list[tuple[Finished, Row]]
    quality: dict[str, list[Row]]

    @property
    def failed(self) -> list[tuple[Finished, Row]]:
        """Experts along which a student diverged."""
        return [(run, row) for run, row in self.rows if row["failed"] is not None]

    def curves(self, method: str, ipc: int, name: str) -> Curves:
        """A quantity of the rows, over the experts that every seed's student came to the end of."""
        own = [(run.seed, row) for run, row in self.rows if (run.method, run.ipc) == (method, ipc)]
        lost = {row["expert"] for _, row in own if row["failed"] is not None}
        experts = tuple(sorted({row["expert"] for _, row in own} - lost))
        values = np.array([np.mean([row[name] for _, row in own if row["expert"] == k], axis=0) for k in experts])
        epochs = next((tuple(row["epochs"]) for _, row in own if row["failed"] is None), ())
        return Curves(values, epochs, experts)

    def of_experts(self, method: str, name: str) -> Curves:
        """A measure of the experts themselves, from their own report."""
        rows = {(row["expert"], row["epoch"]): row for row in self.quality.get(method, [])}
        experts, epochs = (tuple(sorted({place[i] for place in rows})) for i in range(2))
        whole = tuple(k for k in experts if all((k, e) in rows for e in epochs))
        return Curves(np.array([[rows[k, e][name] for e in epochs] for k in whole]), epochs, whole)


def retraced(folder: RunFolder, runs: Sequence[Finished], place: Path, asked: Retracing, root: str, device: torch.device) -> Retraced:
    """What is measured of each run along its own experts in `place`, stored rows taken from the folder."""
    split = training_split(runs[0].distilled.config, root)
    rows = np.sort(stream(0, "retrace").permutation(len(split.held_out))[: asked.images])
    held_out = on_device(runs[0].distilled.transform, split.held_out.subset(rows), device)
    along = [(run, chosen_experts(run.distilled.config, place, split.fitted, device)[1]) for run in runs]
    work = [(run, experts, k) for run, experts in along for k in range(min(asked.experts, experts.count))]
    done = []
    with progress(len(work), "retrace") as bar:
        for run, experts, k in work:
            key = {"set": run.seal, "experts": experts.key, "expert": experts.numbers[k], "images": asked.images}
            row = folder.store.get(KIND, key)
            if row is None:
                row = folder.store.put(KIND, key, *_measured(run, experts, k, held_out, device))
                bar.advance(note=run.place.name)
            else:
                bar.skip()
            done.append((run, row))
    quality = {run.method: [row for row in TrialStore(experts.folder).rows(QUALITY) if row["failed"] is None] for run, experts in along}
    return Retraced(done, quality)


def reach(runs: Sequence[Finished], ipc: int) -> int:
    """The last epoch that any segment of the runs of this size was drawn to."""
    return max(t.high - 1 + t.length for t in (run.distilled.config.trajectory for run in runs if run.ipc == ipc))


def _measured(run: Finished, experts: StoredExperts, k: int, held_out: Labelled, device: torch.device) -> tuple[dict[str, Any], str | None]:
    try:
        return measure(run, experts, k, held_out, device), None
    except Diverged as error:
        return {}, str(error)


def measure(run: Finished, experts: StoredExperts, k: int, held_out: Labelled, device: torch.device) -> dict[str, list[float]]:
    """The quantities of the module's head at the end of each segment of expert k, and the epochs at which those are."""
    distilled, config = run.distilled, run.distilled.config
    problem = training_problem(config, torch.from_numpy(distilled.labels), device)
    optimiser = replace(cast(Any, config.inner_optimiser()), lr=distilled.optimiser().lr)
    s = (torch.from_numpy(distilled.images).to(device),)
    epochs = range(0, experts.epochs + 1, config.trajectory.length)
    rng = stream(config.seed, "retrace", experts.numbers[k])
    shakes = stream(config.seed, "retrace shaken", experts.numbers[k])

    def loss(theta: Tensors) -> float:
        found = mean_loss(problem.module, theta, held_out)
        if not found < float("inf"):
            raise Diverged(f"the held-out loss along expert {experts.numbers[k]} is {found}")
        return found

    first = experts.snapshot(k, 0)
    found: dict[str, list[float]] = {name: [] for name in (*NORMS, "segment", "way", *LOSSES)}
    for errors in errors_along(problem, optimiser, s, (experts.snapshot(k, e) for e in epochs), config.horizon, rng):
        for name in NORMS:
            found[name].append(norm(getattr(errors, name)))
        segment = norm(axpy(-1.0, errors.start, errors.target))
        u = tuple(torch.from_numpy(shakes.standard_normal(tuple(p.shape))).to(p) for p in errors.start)
        shaken = trained(problem, optimiser, s, add(errors.start, scale(SHAKE * segment / norm(u), u)), errors.noises)
        expert, fresh = loss(errors.target), loss(errors.fresh)
        values = (segment, norm(axpy(-1.0, first, errors.target)), loss(errors.own) - expert, fresh - expert, loss(shaken) - fresh)
        for name, value in zip(("segment", "way", *LOSSES), values, strict=True):
            found[name].append(value)
    return found | {"epochs": [float(e) for e in epochs[1:]]}
