"""One distillation of one task: the set on its way, what it encodes of S*, and how well it trains fresh networks.

    off(X)          ||X (I - P)||^2 / ||X||^2 of the rows of X, P the projection on S*
    angle(X)        largest principal angle, in degrees, between S* and the top-r right singular space of X; 90 where rank X < r
    points          X = x~, and X = x~ - x~^(0), the increment that the outer loop made
    rows            X = W_T of a fresh network trained on the set, and X = W_T - W_0, its rows with the start erased
    risk_trained    E (f - f*)^2 / Var f* of that network as it is: the set alone is stored
    risk_erased     the same for rows W_T - W_0 at unit size, fresh biases, ridge head on real samples: L floats more than the set
    risk_kept       the same for rows W_T
    meta-gradients  cosine and relative error against the whole unroll of the same run (truncation), and the cosine to performance
                    matching through all steps of that run, which gradient matching is compared with too

What is measured on networks is the median over `networks` fresh starts. Definitions are ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from sims import two_phase
from sims.arrays import child, to_numpy
from sims.lab.subspace import leading_subspace, principal_angles
from sims.pipeline import Bench, Task, encode, trial_seed
from sims.unroll.experts import QUALITIES, quality
from sims.unroll.methods import METHODS, Loop, Method, Scene, Snapshot, Training, performance
from sims.unroll.recipe import Recipe
from theory import memory, two_layer
from theory.distill.adjoint import unroll
from theory.distill.distiller import MetaGradient, meta_gradient
from theory.distill.leaves import Leaves, axpy, dot, norm
from theory.distill.matching import PerformanceMatching
from theory.distill.problem import Diverged
from theory.distill.progressive import union
from theory.distill.stages import Stage
from theory.distill.truncation import Window


def unroll_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys: d, r, L, task_J, link, noise, samples, head_samples, validation, test; the fields of Recipe; method, M1, seed, draw,
    `checkpoints` of the curves, `networks` at each, `probes` of the meta-gradient, backend.
    """
    task = trial_task(config)
    seed = trial_seed(config, task.d, task.r, task.L)
    encoded = encode(task, seed, config["backend"])
    recipe = Recipe(**{f.name: config[f.name] for f in fields(Recipe)})
    scene = Scene.of(encoded, recipe, config["M1"], child(seed, config["M1"]))
    method, bench = METHODS[config["method"]], Bench.of(encoded)
    training = method.training(scene)
    ruler = Ruler(scene, bench, training, config["networks"])
    history = _history(method.run(scene), recipe.K, config["checkpoints"])
    first = history.shots[0] if isinstance(method, Loop) else None
    curve = [{"step": shot.step} | ruler.measure(shot, first) for shot in history.shots]
    out: dict[str, Any] = {f"curve_{name}": [point[name] for point in curve] for name in curve[0]}
    out |= {name: value for name, value in curve[-1].items() if name != "step"}
    out |= {"window_starts": [w.start for w in history.windows], "window_stops": [w.stop for w in history.windows]}
    shots = history.shots
    out |= {f"{stage}_from": history.first_of(stage) for stage in (Stage.MIDDLE, Stage.LATE)}
    out |= _experts(method, scene)
    out |= {"values": history.values, "profile_start": ruler.profile(shots[0]), "profile_end": ruler.profile(shots[-1])}
    out |= _floats(task, shots[-1])
    if isinstance(method, Loop):
        errors = [_probe(method, scene, training, shot, config["probes"]) for shot in (shots[0], shots[-1])]
        out |= {f"{name}_{when}": e[name] for when, e in zip(("start", "end"), errors, strict=True) for name in e}
    return out


def trial_task(config: Mapping[str, Any]) -> Task:
    """The task of a trial's configuration."""
    names = ("d", "r", "L", "link", "noise", "samples", "head_samples", "validation", "test")
    return Task(**{name: config[name] for name in names}, J=config["task_J"], dtype="float64")


@dataclass(frozen=True, eq=False)
class _History:
    shots: list[Snapshot]
    windows: list[Window]
    values: list[float]
    stages: list[str | None]

    def first_of(self, stage: str) -> int | None:
        """The outer steps done before a stage of the window began, None where it never did."""
        return self.stages.index(stage) if stage in self.stages else None


def measured_steps(steps: int, count: int) -> set[int]:
    """The outer steps after which a set is measured, the last one among them: evenly spread in the logarithm."""
    return {round(k) for k in np.geomspace(1, steps, count)} if count > 1 else {steps}


def _history(run: Iterator[Snapshot], steps: int, count: int) -> _History:
    """The first and the last set and `count` - 1 between them, evenly spread in the logarithm of the outer step; all windows and values."""
    wanted = measured_steps(steps, count)
    shots = [next(run)]
    last, windows, values, stages = shots[0], [], [], []
    for last in run:
        if last.window is not None and last.value is not None:
            windows.append(last.window)
            values.append(last.value)
            stages.append(last.stage)
        if last.step in wanted:
            shots.append(last)
    return _History(shots if last is shots[-1] else [*shots, last], windows, values, stages)


def _experts(method: Method, scene: Scene) -> Mapping[str, float | None]:
    """How good and how flat the experts are at their last epoch; None for methods without."""
    if not isinstance(method, Loop) or method.experts is None:
        return dict.fromkeys(QUALITIES)
    return quality(method.experts(scene), scene.real, scene.recipe.rho, scene.recipe.epochs, scene.rng(5, scene.recipe.experts))


def _floats(task: Task, shot: Snapshot) -> dict[str, int]:
    """Of the set, and of the set with a head on its rows."""
    own = memory.distilled(sum(part[0].shape[0] for part in shot.subsets), task.d, 0, constant_label=len(shot.subsets[0]) == 1).floats
    return {"floats_set": own, "floats_head": own + task.L}


@dataclass(frozen=True, eq=False)
class Ruler:
    """What a set is measured with: the same fresh starts for every set of a trial."""

    scene: Scene
    bench: Bench
    training: Training
    networks: int

    def measure(self, shot: Snapshot, first: Snapshot | None) -> dict[str, float | None]:
        """Every number of the module's head; the increment of the points where there is a `first` set that it grew from."""
        x = to_numpy(union(shot.subsets)[0])
        out: dict[str, float | None] = {"off_points": self.off(x), "angle_points": self.angle(x)}
        moved = None if first is None or first is shot else x - to_numpy(union(first.subsets)[0])
        out |= {"off_point_increments": None if moved is None else self.off(moved)}
        out |= {"angle_point_increments": None if moved is None else self.angle(moved)}
        one = [self._network(shot, k) for k in range(self.networks)]
        return out | {name: float(np.median([point[name] for point in one])) for name in one[0]}

    def _network(self, shot: Snapshot, k: int) -> dict[str, float]:
        encoded, rng = self.scene.encoded, self.scene.rng(4, k)
        before, after = self.training(shot.subsets, rng)
        kept, erased = after[1], after[1] - before[1]
        biases = encoded.student.asarray(rng.standard_normal(encoded.task.L))
        risks = {
            f"risk_{name}": self.bench.risk(self.bench.fit_real(two_phase.unit_rms(rows, f"{name} rows"), biases))
            for name, rows in (("kept", kept), ("erased", erased))
        }
        error = two_layer.value(after, self.bench.test.x) - self.bench.test.clean
        risks["risk_trained"] = float(encoded.xp.mean(error * error)) / encoded.model.link.variance
        if not risks["risk_trained"] < float("inf"):
            raise Diverged(f"test risk of a network trained on the set is {risks['risk_trained']}")
        rows, increment = to_numpy(kept), to_numpy(erased)
        energies = {"off_rows": self.off(rows), "off_row_increments": self.off(increment)}
        return risks | energies | {"angle_rows": self.angle(rows), "angle_row_increments": self.angle(increment)}

    @property
    def index(self) -> Float[np.ndarray, "d r"]:
        """A basis of S* on the host."""
        return to_numpy(self.scene.encoded.model.B)

    def off(self, x: Float[np.ndarray, "m d"]) -> float:
        """Share of the energy of the rows of x that lies off S*."""
        total = float(np.sum(x * x))
        if not 0 < total < float("inf"):
            raise Diverged(f"off-subspace energy: the total energy is {total}")
        return 1.0 - float(np.sum((x @ self.index) ** 2)) / total

    def angle(self, x: Float[np.ndarray, "m d"]) -> float:
        """The largest principal angle in degrees."""
        r = self.scene.encoded.task.r
        if np.linalg.matrix_rank(x) < r:
            return 90.0
        return float(np.degrees(principal_angles(self.index, leading_subspace(x, r))[-1]))

    def profile(self, shot: Snapshot) -> list[float]:
        """||g_t|| along the last phase of a training run on the set."""
        phase, steps, rng = self.training.phase(shot.subsets), self.training.steps, self.scene.rng(3, 0)
        theta, noises = phase.init(rng), [phase.draw(rng) for _ in range(steps)]
        window = Window(steps - 1, steps)
        return list(unroll(phase, self.training.optimiser, shot.subsets[-1], theta, noises, window, profile=True).gradient_norms)


def _probe(method: Loop, scene: Scene, training: Training, shot: Snapshot, probes: int) -> dict[str, float | None]:
    """What the method's meta-gradient at a set leaves out, means over `probes` runs; only performance matching is a truncation.

    `cosine_full` is None where a set made for one inner step cannot be trained for T.
    """
    problem, s, distiller = training.phase(shot.subsets), shot.subsets[-1], method.distiller(scene)
    objective, real = method.objective(scene), performance(scene)
    whole = Window(0, scene.recipe.T // method.phases(scene))

    def gradient(k: int, objective: Any, window: Window | None) -> MetaGradient:
        return meta_gradient(problem, objective, distiller, s, child(scene.seed, 3, 1, k), window=window)

    mine = [gradient(k, objective, None) for k in range(probes)]
    out: dict[str, float | None] = {"cosine_truncation": None, "error_truncation": None}
    if isinstance(objective, PerformanceMatching):
        same = [gradient(k, real, Window(0, one.window.stop)).grad_s for k, one in enumerate(mine)]
        out["cosine_truncation"] = float(np.mean([_cosine(x.grad_s, y) for x, y in zip(mine, same, strict=True)]))
        out["error_truncation"] = float(np.mean([norm(axpy(-1.0, y, x.grad_s)) / norm(y) for x, y in zip(mine, same, strict=True)]))
    try:
        full = [gradient(k, real, whole).grad_s for k in range(probes)]
        out["cosine_full"] = float(np.mean([_cosine(x.grad_s, y) for x, y in zip(mine, full, strict=True)]))
    except Diverged:
        out["cosine_full"] = None
    return out


def _cosine(x: Leaves, y: Leaves) -> float:
    size = norm(x) * norm(y)
    if not 0.0 < size < float("inf"):
        raise Diverged(f"cosine of meta-gradients: the product of their norms is {size}")
    return float(dot(x, y)) / size
