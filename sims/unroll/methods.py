"""The practical distillation algorithms on the two-layer student, as a table: what each one minimises, through which window.

    performance matching (DD)   the real loss of a network trained on S: dd after one inner step, bptt after T
    windows                     bptt all T steps, t-bptt the last W, rat-bptt W from a random start,
                                at-bptt about W where gradients are large, then anywhere, then small, as a stage clock on held-out data says
    phases                      progressive: P subsets in turn, each through all T/P steps of its phase of training
    gradient matching (DC)      dc at the start of training, dc-path at states on a training run on S
    trajectory matching         mtt along experts on the real sample, ftd along flat ones of the same training loss (sims.unroll.experts)
    given sets                  one-step (the idealised step of sims.pipeline), subset (real samples), full-data (all of them)

Sources: DD Wang et al., arXiv:1811.10959; DC Zhao et al., ICLR 2021; rat-bptt Feng, Vedantam, Kempe, arXiv:2311.07025; at-bptt Li et
al., arXiv:2510.04838; progressive Chen et al., arXiv:2310.06982; mtt Cazenavette et al., arXiv:2203.11932; ftd Du et al., arXiv:2211.11004.
Trajectory matching keeps the recipe's inner step size here, since learned labels scale the inner gradient as well, and takes no running
average of the set, so that mtt and ftd differ in their experts alone. Its loss need not fall: a unit's gate that flips makes theta_T jump
as a function of the set, and the gradient of a run leaves jumps out. At d = 16, r = 2, L = 64, M1 = 8, T = 20 it fell from 1.0 to 0.2 in
80 outer steps and rose to 0.5 in the next 60 (one task); on the way up, at step 105, its slope along the gradient was -0.15 for a move of
1e-6 and between -0.01 and 0.08 for moves of 1e-4 to 0.1 (mean of 16 segments). To add an algorithm, add an entry to METHODS: an objective
of the scene and a window policy of the recipe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from sims.arrays import child
from sims.pipeline import Encoded, distil_points, draw_samples
from sims.student import RealSample, Student
from sims.unroll.experts import ExpertStore, ExpertTraining
from sims.unroll.recipe import OPTIMISERS, Recipe
from theory import two_layer
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.distiller import Distiller, observed, start
from theory.distill.flatness import Flat
from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import Array, Leaves
from theory.distill.matching import DISTANCES, GradientMatching, PathObjective, PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.problem import Objective
from theory.distill.progressive import Phase, PhasedState, distil_in_phases, train
from theory.distill.trajectory import StartRange, TrajectoryMatching
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window, WindowPolicy


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
        """A generator for a purpose: 0 starting points, 1 real subset, 2 outer loop, 3 probes, 4 fresh networks, 5 experts, 6 the clock."""
        return np.random.default_rng(child(self.seed, *key))

    @property
    def training_of_experts(self) -> ExpertTraining:
        """Experts start as the students do and take the recipe's inner steps, on real batches."""
        recipe = self.recipe
        seeds = tuple(child(self.seed, 5, k) for k in range(recipe.experts))
        return ExpertTraining(self.student(), self.real, recipe.inner_lr, recipe.epochs, seeds)

    @cached_property
    def plain_experts(self) -> ExpertStore:
        """Experts of mtt, trained once a scene."""
        return self.training_of_experts.plain()

    @cached_property
    def flat_experts(self) -> ExpertStore:
        """Experts of ftd, matched to the plain ones."""
        return self.training_of_experts.flat(Flat(self.recipe.rho, self.recipe.alpha), self.plain_experts)

    @cached_property
    def held_out(self) -> Leaves:
        """Held-out inputs and labels, of neither the training nor the test sample."""
        samples = draw_samples(self.encoded, "validation")
        return samples.x, samples.label


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
    """A distilled set on the way: outer steps done, the subsets, and of the last step its window, objective and stage."""

    step: int
    subsets: tuple[Leaves, ...]
    window: Window | None = None
    value: float | None = None
    stage: str | None = None


@dataclass(frozen=True)
class Loop:
    """An algorithm with an outer loop. `many` trains for T inner steps, else for one; `phased` in the recipe's phases; `staged` measures
    the set on held-out data on its way, for the stage clock. `experts` of the scene, where it follows any.
    """

    about: str
    objective: Callable[[Scene], Objective | PathObjective]
    windows: Callable[[Recipe, int], WindowPolicy | AdaptiveWindow]
    many: bool = True
    phased: bool = False
    staged: bool = False
    experts: Callable[[Scene], ExpertStore] | None = None

    def phases(self, scene: Scene) -> int:
        """Number of phases; never more than points."""
        return min(scene.recipe.phases, scene.m1) if self.phased else 1

    def distiller(self, scene: Scene) -> Distiller:
        """Window policy, optimisers and clip for one phase."""
        recipe = scene.recipe
        horizon = recipe.T // self.phases(scene) if self.many else 1
        inner, outer = OPTIMISERS[recipe.inner](recipe.inner_lr), OPTIMISERS[recipe.outer](recipe.outer_lr)
        clock = recipe.clock() if self.staged else None
        windows = self.windows(recipe, horizon)
        return Distiller(windows, inner, outer, NormClip(), starts=recipe.J, fixed_starts=recipe.fixed_starts, clock=clock)

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
        initial, training, distiller, objective = self.start(scene), self.training(scene), self.distiller(scene), self.objective(scene)
        yield Snapshot(0, initial)
        seed, steps = int(scene.rng(2).integers(2**63)), scene.recipe.K // len(initial)
        state = PhasedState((), start(distiller, initial[0]))
        measured = 1 if distiller.clock is None else distiller.clock.total
        for pause in np.linspace(0, steps, measured + 1).round().astype(int)[1:]:
            if distiller.clock is not None:
                state = replace(state, outer=observed(distiller, state.outer, fitted(scene, training, state.subsets)))
            for record in distil_in_phases(training.problems, objective, distiller, initial, seed, int(pause), state):
                state, done = record.state, record.phase * steps + record.record.step + 1
                subsets = (*state.subsets, *initial[record.phase + 1 :])
                yield Snapshot(done, subsets, record.record.window, record.record.value, state.outer.stage.stage.value)


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


def fitted(scene: Scene, training: Training, subsets: tuple[Leaves, ...]) -> float:
    """100 (1 - error / variance) on held-out labels, in per cent, of the network trained on a set from one start, always the same."""
    x, y = scene.held_out
    error = two_layer.value(training(subsets, scene.rng(6))[1], x) - y
    return 100.0 * (1.0 - float(scene.encoded.xp.mean(error * error)) / float(scene.encoded.xp.mean(y * y)))


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


def _matching(about: str, experts: Callable[[Scene], ExpertStore]) -> Loop:
    """Trajectory matching along the experts of a scene."""

    def objective(scene: Scene) -> TrajectoryMatching:
        return TrajectoryMatching(experts(scene), StartRange(scene.recipe.starts), scene.recipe.span)

    return Loop(about, objective, lambda recipe, T: FullWindow(T), experts=experts)


Method: TypeAlias = Loop | Given

METHODS: dict[str, Method] = {
    "bptt": Loop("performance matching through all T inner steps", performance, lambda recipe, T: FullWindow(T)),
    "t-bptt": Loop("performance matching through the last W of T inner steps", performance, lambda recipe, T: FixedWindow(T, recipe.W)),
    "rat-bptt": Loop(
        "performance matching through W inner steps from a random start", performance, lambda recipe, T: RandomWindow(T, recipe.W)
    ),
    "at-bptt": Loop(
        "performance matching through about W inner steps: where gradients are large, then anywhere, then where they are small",
        performance,
        lambda recipe, T: AdaptiveWindow(T, recipe.W, recipe.spread),
        staged=True,
    ),
    "progressive": Loop("performance matching in phases, a subset a phase", performance, lambda recipe, T: FullWindow(T), phased=True),
    "dd": Loop("performance matching through one inner step", performance, lambda recipe, T: FullWindow(T), many=False),
    "dc": Loop("gradient matching at the start of training", gradients, lambda recipe, T: FullWindow(T), many=False),
    "dc-path": Loop("gradient matching along training runs on the set", gradients, lambda recipe, T: RandomWindow(T, recipe.states)),
    "mtt": _matching("trajectory matching along plain experts", lambda scene: scene.plain_experts),
    "ftd": _matching("trajectory matching along flat experts, matched to mtt's in training loss", lambda scene: scene.flat_experts),
    "one-step": Given("one idealised, erased matching step", idealised, many=False),
    "subset": Given("random real samples, as many as points", real_subset, many=True),
    "full-data": Given("the whole real sample", lambda scene: (scene.real.x, scene.real.y), many=True),
}
"""The algorithms by name."""
