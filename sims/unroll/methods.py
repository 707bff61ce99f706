"""The practical distillation algorithms on the two-layer student, as a table: what each one minimises, through which window.

    performance matching (DD)   the real loss of a network trained on S: dd after one inner step, bptt after T
    windows                     bptt all T steps, t-bptt the last W, rat-bptt W from a random start,
                                at-bptt about W where gradients are large
    phases                      progressive: P subsets in turn, each through all T/P steps of its phase of training
    gradient matching (DC)      dc at the start of training, dc-path at states on a training run on S
    given sets                  one-step (the idealised step of sims.pipeline), subset (real samples), full-data (all of them)

Sources: DD Wang et al., arXiv:1811.10959; DC Zhao et al., ICLR 2021; rat-bptt Feng, Vedantam, Kempe, arXiv:2311.07025; at-bptt Li et
al., arXiv:2510.04838; progressive Chen et al., arXiv:2310.06982. To add an algorithm, add an entry to METHODS: an objective of the scene
and a window policy of the recipe.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from sims.arrays import child
from sims.pipeline import Encoded, distil_points
from sims.student import RealSample, Student
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.distiller import Distiller
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.leaves import Array, Leaves
from theory.distill.matching import DISTANCES, GradientMatching, PathObjective, PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.problem import Objective
from theory.distill.progressive import Phase, distil_in_phases, train
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window, WindowPolicy

OPTIMISERS: dict[str, Callable[[float], InnerOptimiser]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}


@dataclass(frozen=True)
class Recipe:
    """Both levels of distillation. The start of the network is symmetric: a_i = +-init_scale, rows of norm init_scale, f = 0."""

    T: int = 20  # inner steps of a training run on the distilled set
    W: int = 7  # steps in the window of t-bptt and rat-bptt, on average in that of at-bptt
    spread: int = 2  # at-bptt: how far its window's length moves from W
    states: int = 3  # states of a run at which dc-path matches gradients
    phases: int = 2  # phases of progressive distillation
    inner: str = "sgd"  # inner optimiser: sgd, momentum or adam
    inner_lr: float = 0.15  # inner step size
    init_scale: float = 0.2  # scale of the network's start
    outer: str = "adam"  # outer optimiser: sgd, momentum or adam
    outer_lr: float = 0.05  # outer step size
    K: int = 150  # outer steps
    J: int = 1  # starts averaged in an outer step
    fixed_starts: bool = False  # keep the same J starts in all outer steps
    learn_labels: bool = True  # learn the labels of the points; else they are all one
    distance: str = "squared"  # gradient matching: squared, inner_product or cosine
    start_norm: float = 0.1  # norm of the points before the first outer step, in units of sqrt(d); small: the start is forgotten
    batch: float = 2.0  # real samples an outer step, in units of d^2

    def __post_init__(self) -> None:
        for name in ("T", "W", "states", "phases", "K", "J"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1: {name}={getattr(self, name)}")
        for name in ("W", "states", "phases"):
            if getattr(self, name) > self.T:
                raise ValueError(f"{name} cannot exceed the T={self.T} inner steps: {name}={getattr(self, name)}")
        if not 0 <= self.spread < self.W or self.W + self.spread > self.T:
            raise ValueError(f"windows of at-bptt need 1 <= W - spread and W + spread <= T: W={self.W}, spread={self.spread}, T={self.T}")
        if self.phases > self.K:
            raise ValueError(f"every phase needs an outer step: phases={self.phases}, K={self.K}")
        for name in ("inner_lr", "init_scale", "outer_lr", "start_norm", "batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: {name}={getattr(self, name)}")
        for name, known in (("inner", OPTIMISERS), ("outer", OPTIMISERS), ("distance", DISTANCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(sorted(known))}")


@dataclass(frozen=True, eq=False)
class Scene:
    """A task with its real sample, a recipe, a number of points, and the seed that everything random here descends from."""

    encoded: Encoded
    recipe: Recipe
    m1: int
    real: RealSample
    seed: np.random.SeedSequence

    @staticmethod
    def of(encoded: Encoded, recipe: Recipe, m1: int, seed: np.random.SeedSequence) -> "Scene":
        """The scene on the whole training sample of the task, labels preprocessed."""
        task = encoded.task
        x, xi = encoded.stream.head(task.N)
        y = encoded.residual(x, encoded.model.labels(x, xi))
        return Scene(encoded, recipe, m1, RealSample(x, y, batch=min(round(recipe.batch * task.d**2), task.N)), seed)

    def student(self, labels: Array | None = None) -> Student:
        """The network at the recipe's start."""
        base = self.encoded.student
        return Student(base.d, base.width, init_scale=self.recipe.init_scale, labels=labels, xp=base.xp, dtype=base.dtype)

    def rng(self, *key: int) -> np.random.Generator:
        """A generator for a purpose: 0 starting points, 1 real subset, 2 outer loop, 3 probes, 4 fresh networks."""
        return np.random.default_rng(child(self.seed, *key))


@dataclass(frozen=True, eq=False)
class Training:
    """How a network is trained on a set: one subset a phase, `steps` inner steps each, and the labels where they are not stored."""

    problems: tuple[Student, ...]
    optimiser: InnerOptimiser
    steps: int

    def __call__(self, subsets: tuple[Leaves, ...], rng: np.random.Generator) -> tuple[Leaves, Leaves]:
        """(start, end) of a fresh network."""
        start = self.problems[0].init(rng)
        return start, train(self.problems, subsets, self.optimiser, self.steps, start, rng)

    def phase(self, subsets: tuple[Leaves, ...]) -> Phase:
        """The inner problem of the last subset."""
        return Phase(self.problems, subsets[:-1], self.optimiser, self.steps)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A distilled set on the way: outer steps done, the subsets, and of the last step its window and objective."""

    step: int
    subsets: tuple[Leaves, ...]
    window: Window | None = None
    value: float | None = None


@dataclass(frozen=True)
class Loop:
    """An algorithm with an outer loop. `many` trains for T inner steps, else for one; `phased` in the recipe's phases."""

    about: str
    objective: Callable[[Scene], Objective | PathObjective]
    windows: Callable[[Recipe, int], WindowPolicy | AdaptiveWindow]
    many: bool = True
    phased: bool = False

    def phases(self, scene: Scene) -> int:
        """Number of phases; never more than points."""
        return min(scene.recipe.phases, scene.m1) if self.phased else 1

    def distiller(self, scene: Scene) -> Distiller:
        """Window policy, optimisers and clip for one phase."""
        recipe = scene.recipe
        horizon = recipe.T // self.phases(scene) if self.many else 1
        inner, outer = OPTIMISERS[recipe.inner](recipe.inner_lr), OPTIMISERS[recipe.outer](recipe.outer_lr)
        policy = self.windows(recipe, horizon)
        return Distiller(policy, inner, outer, NormClip(), starts=recipe.J, fixed_starts=recipe.fixed_starts)

    def start(self, scene: Scene) -> tuple[Leaves, ...]:
        """Gaussian points of the recipe's norm, split over the phases; learned labels start at +1 and -1 in turn."""
        recipe, encoded = scene.recipe, scene.encoded
        x = recipe.start_norm * scene.rng(0).standard_normal((scene.m1, encoded.task.d))
        y = np.where(np.arange(scene.m1) % 2 == 0, 1.0, -1.0)
        asarray = encoded.student.asarray
        rows = np.array_split(np.arange(scene.m1), self.phases(scene))
        return tuple((asarray(x[k]), asarray(y[k])) if recipe.learn_labels else (asarray(x[k]),) for k in rows)

    def training(self, scene: Scene) -> Training:
        """The training run that the algorithm distils for."""
        distiller, sizes = self.distiller(scene), np.cumsum([part[0].shape[0] for part in self.start(scene)])
        constant = not scene.recipe.learn_labels
        problems = [scene.student(scene.encoded.student.asarray(np.ones(m)) if constant else None) for m in sizes]
        return Training(tuple(problems), distiller.inner, distiller.windows.horizon)

    def run(self, scene: Scene) -> Iterator[Snapshot]:
        """One snapshot an outer step, K in all, shared evenly by the phases; the first is the start."""
        initial, problems = self.start(scene), self.training(scene).problems
        yield Snapshot(0, initial)
        seed, steps = int(scene.rng(2).integers(2**63)), scene.recipe.K // len(initial)
        for record in distil_in_phases(problems, self.objective(scene), self.distiller(scene), initial, seed, steps):
            done = record.phase * steps + record.record.step + 1
            subsets = (*record.state.subsets, *initial[record.phase + 1 :])
            yield Snapshot(done, subsets, record.record.window, record.record.value)


@dataclass(frozen=True)
class Given:
    """A set that comes without an outer loop."""

    about: str
    points: Callable[[Scene], Leaves]
    many: bool

    def training(self, scene: Scene) -> Training:
        """T inner steps, or one, on the set."""
        recipe, points = scene.recipe, self.points(scene)
        labels = scene.encoded.student.asarray(np.ones(scene.m1)) if len(points) == 1 else None
        return Training((scene.student(labels),), OPTIMISERS[recipe.inner](recipe.inner_lr), recipe.T if self.many else 1)

    def run(self, scene: Scene) -> Iterator[Snapshot]:
        """The set."""
        yield Snapshot(0, (self.points(scene),))


def performance(scene: Scene) -> PerformanceMatching:
    """The real loss at the end of the unroll."""
    return PerformanceMatching(scene.real)


def gradients(scene: Scene) -> GradientMatching:
    """The distance between gradients on S and on a real batch."""
    return GradientMatching(scene.real, DISTANCES[scene.recipe.distance])


def idealised(scene: Scene) -> Leaves:
    """One erased matching step with labels one."""
    return (distil_points(scene.encoded, scene.m1),)


def real_subset(scene: Scene) -> Leaves:
    """M1 real samples with their labels."""
    xp, rows = scene.encoded.xp, scene.rng(1).choice(scene.encoded.task.N, scene.m1, replace=False)
    return xp.take(scene.real.x, xp.asarray(rows), axis=0), xp.take(scene.real.y, xp.asarray(rows), axis=0)


Method: TypeAlias = Loop | Given

METHODS: dict[str, Method] = {
    "bptt": Loop("performance matching through all T inner steps", performance, lambda recipe, T: FullWindow(T)),
    "t-bptt": Loop("performance matching through the last W of T inner steps", performance, lambda recipe, T: FixedWindow(T, recipe.W)),
    "rat-bptt": Loop(
        "performance matching through W inner steps from a random start", performance, lambda recipe, T: RandomWindow(T, recipe.W)
    ),
    "at-bptt": Loop(
        "performance matching through about W inner steps where gradients are large (the law of AT-BPTT's early stage, throughout)",
        performance,
        lambda recipe, T: AdaptiveWindow(T, recipe.W, recipe.spread),
    ),
    "progressive": Loop("performance matching in phases, a subset a phase", performance, lambda recipe, T: FullWindow(T), phased=True),
    "dd": Loop("performance matching through one inner step", performance, lambda recipe, T: FullWindow(T), many=False),
    "dc": Loop("gradient matching at the start of training", gradients, lambda recipe, T: FullWindow(T), many=False),
    "dc-path": Loop("gradient matching along training runs on the set", gradients, lambda recipe, T: RandomWindow(T, recipe.states)),
    "one-step": Given("one idealised, erased matching step", idealised, many=False),
    "subset": Given("random real samples, as many as points", real_subset, many=True),
    "full-data": Given("the whole real sample", lambda scene: (scene.real.x, scene.real.y), many=True),
}
"""The algorithms by name."""
