"""The settings of a distillation, and where they come from: defaults, then a preset file, then the command line.

A preset is a TOML file of settings (a name such as `cpu`, or a path). Its entries become options that stand before the user's own, and the
last one wins; so presets, command line and the configuration stored in a finished set pass the same checks.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tyro

from realdata.augment import AUGMENTATIONS
from realdata.checks import at_least, one_of, positive, share
from realdata.data import source
from realdata.networks import ConvNetConfig
from realdata.preprocess import TRANSFORMS
from sims.lab.files import RunError
from sims.lab.options import options
from theory.distill.adaptive import CHANGES, PLACEMENTS, PROFILES, SCORES, AdaptiveWindow
from theory.distill.curvature import LowRankHessian
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.stages import Stage, StageClock
from theory.distill.trajectory import StartRange
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, WindowPolicy

PRESETS = Path(__file__).parent / "presets"
TRAJECTORIES = ("mtt", "ftd", "datm", "tesla")
METHODS = ("rat-bptt", "t-bptt", "bptt", "at-bptt", *TRAJECTORIES, "dc")
OPTIMISERS = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
INITS = ("noise", "real")
STAGES = ("clock", *(stage.value for stage in Stage))

T = TypeVar("T")


@dataclass(frozen=True)
class AdaptiveConfig:
    """What at-bptt adds: where and how long its window is, and when its stages change. `window` is the base length, which stays."""

    spread: int = 10
    """d: window lengths lie within [window - spread, window + spread]."""
    temperature: float = 1.0
    """Of the softmax over positions, in units of the scores."""
    scores: str = "standardised"
    """Gradient norms as scores of a position: standardised, or norms (as they are)."""
    change: str = "rank"
    """Length from the change of the gradient norm: by rank, range or sigmoid."""
    placement: str = "end"
    """Whether a position is a window's end or its start."""
    profile: str = "previous"
    """Gradient norms of the previous update's run, or of the current one (which keeps the states of all T steps)."""
    stage: str = "clock"
    """Stages move by the clock, or it is one that stays: early, middle or late."""
    early_gain: float = 1.5
    """Points of held-out accuracy from one measurement to the next (every curve_every updates, where the paper means one outer epoch); a
    smaller gain counts towards the middle stage. Where a measurement spans several epochs, raise it by their number."""
    middle_gain: float = 1.0
    """The same towards the late stage."""
    early_share: float = 0.05
    """Slow measurements in a row that end the early stage, as a share of all."""
    middle_share: float = 1 / 24
    """The same for the middle stage."""

    def __post_init__(self) -> None:
        one_of(SCORES, scores=self.scores)
        one_of(CHANGES, change=self.change)
        one_of(PLACEMENTS, placement=self.placement)
        one_of(PROFILES, profile=self.profile)
        one_of(STAGES, stage=self.stage)


@dataclass(frozen=True)
class SketchConfig:
    """How a low-rank Hessian is made, where `hessian_rank` asks for one, and how long it serves."""

    oversample: int = 4
    """Test vectors beyond the rank."""
    power: int = 2
    """Power iterations, each of rank + oversample Hessian-vector products."""
    max_age: int = 20
    """Inner steps that one sketch serves; 1 makes one at every step, with that step's own warp and batch."""
    max_drift: float = 0.2
    """Change of the parameters that ends it before, as a share of their norm when it was made."""

    def __post_init__(self) -> None:
        self.of_rank(0)

    def of_rank(self, rank: int) -> LowRankHessian:
        """The stand-in of that rank."""
        return LowRankHessian(rank, self.oversample, self.power, self.max_age, self.max_drift)


@dataclass(frozen=True)
class TrajectoryConfig:
    """What mtt, ftd, datm and tesla add: the segments of experts that training on the set retraces, a learning rate for each part of it.

    Epochs are those of the experts; T, the steps on the set that stand for a segment, is `horizon`.
    """

    experts: int = 100
    """Experts to draw from, the first ones of their folder."""
    recipe: str = ""
    """Key of their recipe; filled in from the folder, and then compared with it."""
    length: int = 2
    """M: epochs that a segment spans."""
    low: int = 0
    """First start epoch."""
    high: int = 20
    """T+: every start epoch lies below it."""
    first: int | None = None
    """Where T+ begins when it grows; by default it does not."""
    growth: int = 0
    """Updates in which T+ grows from `first` to `high`."""
    batch: int | None = None
    """Distilled images of one training step, of whatever class; all by default."""
    image_lr: float = 100.0
    """Learning rate of the images, with momentum 0.5."""
    label_lr: float = 5.0
    """Learning rate of learned labels (logits), with momentum 0.9."""
    step_lr: float = 1e-5
    """Learning rate of the step size itself, with momentum 0.5; its logarithm is learned, at step_lr / inner_lr^2. 0 keeps it."""
    ema: float | None = None
    """Decay of a running average of the images, kept beside them as a second set; none by default."""
    skip_above: float | None = None
    """Updates whose objective is larger are left out; none by default."""
    curve_steps: int = 300
    """Training steps of the networks that measure the set, at its own step size, momentum 0.9 and weight decay 5e-4."""

    def __post_init__(self) -> None:
        at_least(1, experts=self.experts, length=self.length, curve_steps=self.curve_steps)
        positive(image_lr=self.image_lr, label_lr=self.label_lr)
        if not 0.0 <= self.step_lr < float("inf"):
            raise RunError(f"the learning rate of the step size must be >= 0 and finite: step_lr={self.step_lr}")
        if self.ema is not None:
            share(ema=self.ema)
        self.starts()

    def starts(self) -> StartRange:
        """The start epochs."""
        return StartRange(self.high, self.low, self.first, self.growth)


@dataclass(frozen=True)
class DistillConfig:
    """Everything that determines a distilled set. Lengths are in optimiser steps, sizes in images, learning rates per step."""

    dataset: str
    """Data set: a named one (cifar10, mnist, tiny-imagenet, imagenette-64, ..) or your own, e.g. folders:3x64x64:10."""
    method: str = "rat-bptt"
    """rat-bptt (window at a random place), t-bptt (the last steps), bptt (all steps), at-bptt (place and length by gradient norms); with
    experts mtt (plain ones), ftd (flat ones), datm and tesla (any); dc (real gradients, class by class)."""
    ipc: int = 1
    """Distilled images per class."""
    seed: int = 0
    """Root of all randomness."""
    network: ConvNetConfig = field(default_factory=ConvNetConfig)
    transform: str = "zca"
    """Preprocessing fitted on the training part: zca, zca-mtt (centred by the mean image) or standardise; or published-DATASET."""
    augment: str = "auto"
    """Warps of distilled and real images: none, flip, rotate, flip-rotate, dsa, ..; auto leaves out flips where they change the class."""
    init: str = "noise"
    """First images: noise, or real (random training images)."""
    init_norm: float = 1.0
    """Euclidean norm of each first noise image, in transformed units."""
    learn_labels: bool = False
    """Learn the labels too (logits; the start is the hard label at probability 0.9)."""
    horizon: int = 200
    """T: longest unroll of training on the set."""
    window: int = 60
    """M: differentiated steps of an unroll (all T for bptt, on average for at-bptt)."""
    window_start: int | None = None
    """t-bptt: the plain steps before its window; by default the window is the last steps."""
    window_spread: int = 0
    """rat-bptt: the window's length is drawn too, uniform within so many steps of `window`."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    hessian_rank: int | None = None
    """Rank of a low-rank Hessian in the reverse sweep; exact by default, 0 leaves curvature out."""
    sketch: SketchConfig = field(default_factory=SketchConfig)
    inner: str = "adam"
    """Optimiser of training on the set: sgd, momentum or adam."""
    inner_lr: float = 1e-3
    """Its learning rate."""
    starts: int | None = None
    """J: training runs of each update, from fresh networks, their meta-gradients averaged; one by default."""
    batch_per_class: int | None = None
    """Distilled images of each class in one training step; all of them by default."""
    classes_per_step: int | None = None
    """Classes in one training step, drawn anew for each; all of them by default."""
    alignment: float = 0.0
    """Weight of a term that holds the patches of a class together, for large images; 0 leaves it out."""
    patches: int = 4
    """Patches along each side of an image, for that term and for --by-patch."""
    by_patch: bool = False
    """Move one patch of the images an update, all places in turn, for large images."""
    outer_lr: float = 1e-3
    """Learning rate of Adam on the distilled images."""
    outer_steps: int = 6000
    """Updates of the distilled set."""
    project: bool = False
    """Bring every image back to the norm init_norm after each update."""
    real_batch: int = 5000
    """Real images that judge each unroll."""
    held_out: float = 0.1
    """Share of the training split kept for all choices."""
    curve_every: int = 25
    """Updates between two measurements on the held-out images."""
    curve_networks: int = 3
    """Fresh networks of each measurement, the same ones every time."""
    curve_images: int = 2000
    """Held-out images of each measurement."""

    def __post_init__(self) -> None:
        known = source(self.dataset)
        one_of(METHODS, method=self.method)
        one_of(TRANSFORMS, transform=self.transform)
        one_of(("auto", *AUGMENTATIONS), augment=self.augment)
        one_of(INITS, init=self.init)
        one_of(tuple(OPTIMISERS), inner=self.inner)
        at_least(1, ipc=self.ipc, outer_steps=self.outer_steps, real_batch=self.real_batch, starts=self.inner_runs)
        at_least(1, curve_every=self.curve_every, curve_networks=self.curve_networks, curve_images=self.curve_images)
        at_least(0, seed=self.seed)
        positive(init_norm=self.init_norm, inner_lr=self.inner_lr, outer_lr=self.outer_lr)
        share(held_out=self.held_out)
        if self.batch_per_class is not None and not 1 <= self.batch_per_class <= self.ipc:
            raise RunError(f"the batch per class must lie in [1, ipc={self.ipc}]: batch_per_class={self.batch_per_class}")
        if self.classes_per_step is not None and not 1 <= self.classes_per_step <= len(known.classes):
            raise RunError(f"the classes per step must lie in [1, {len(known.classes)}]: classes_per_step={self.classes_per_step}")
        if not 0.0 <= self.alignment < float("inf"):
            raise RunError(f"the weight of the alignment must be >= 0 and finite: alignment={self.alignment}")
        if self.alignment and not self.method.endswith("bptt"):
            raise RunError(f"the alignment of patches goes with the bptt methods: alignment={self.alignment}, method={self.method}")
        if self.by_patch and self.project:
            raise RunError("--project scales whole images at every update, --by-patch moves a part of them: leave one out")
        if self.by_patch and not self.method.endswith("bptt"):
            raise RunError(f"images are moved patch by patch by the bptt methods: method={self.method}, leave out --by-patch")
        if self.patches < 1 or ((self.alignment or self.by_patch) and any(side % self.patches for side in known.shape[1:])):
            raise RunError(f"a grid of patches must divide the image of {known.shape[1]} x {known.shape[2]}: patches={self.patches}")
        if self.inner_runs > 1 and (self.trajectories or (self.method == "at-bptt" and self.adaptive.profile == "current")):
            raise RunError(f"one expert, or the profile of the current run, stands for one start: starts={self.starts}, use --starts 1")
        if self.method == "datm" and not self.learn_labels:
            raise RunError("datm learns the labels: --learn-labels")
        if self.learn_labels and self.trajectory.ema is not None:
            raise RunError("the running average is one of images under fixed labels: leave out --trajectory.ema or --learn-labels")
        if self.trajectories and self.inner != "sgd":
            raise RunError(f"{self.method} trains on the set by plain gradient descent: inner={self.inner}, use --inner sgd")
        size, batch = self.ipc * len(source(self.dataset).classes), self.trajectory.batch
        if batch is not None and (self.batch_per_class is not None or not 1 <= batch <= size):
            raise RunError(f"the batch must lie in [1, {size}], without --batch-per-class: batch={batch}")
        self.windows()
        self.clock()
        self.hessian()

    @property
    def inner_runs(self) -> int:
        """J."""
        return 1 if self.starts is None else self.starts

    @property
    def trajectories(self) -> bool:
        """Whether the method retraces experts."""
        return self.method in TRAJECTORIES

    @property
    def family(self) -> str:
        """The warps that augment = auto stands for, where mirroring keeps the class."""
        return "dsa" if self.trajectories or self.method == "dc" else "flip-rotate"

    @property
    def learn_step(self) -> bool:
        """Whether the set carries its own step size."""
        return self.trajectories and self.trajectory.step_lr > 0

    def windows(self) -> WindowPolicy | AdaptiveWindow:
        """The truncation of the method."""
        match self.method:
            case "rat-bptt":
                return RandomWindow(self.horizon, self.window, spread=self.window_spread)
            case "bptt" | "mtt" | "ftd" | "datm" | "tesla":
                return FullWindow(self.horizon)
            case "at-bptt":
                a = self.adaptive
                return AdaptiveWindow(self.horizon, self.window, a.spread, a.temperature, a.scores, a.change, a.placement, a.profile)
            case "t-bptt":
                return FixedWindow(self.horizon, self.window, self.window_start)
        return RandomWindow(self.horizon, self.window)

    def clock(self) -> StageClock | None:
        """The stages of at-bptt, moved by the measurements of the learning curve; None where there are none or one stays."""
        if self.method != "at-bptt" or self.adaptive.stage != "clock":
            return None
        a, measurements = self.adaptive, -(-self.outer_steps // self.curve_every)
        return StageClock(measurements, a.early_gain, a.middle_gain, a.early_share, a.middle_share)

    @property
    def first_stage(self) -> Stage:
        """The stage that an adaptive window begins in."""
        return Stage.EARLY if self.adaptive.stage == "clock" else Stage(self.adaptive.stage)

    def hessian(self) -> LowRankHessian | None:
        """The stand-in for the Hessian, None for the exact sweep; for tesla there is no curvature at all."""
        rank = 0 if self.method == "tesla" else self.hessian_rank
        return None if rank is None else self.sketch.of_rank(rank)

    def judging(self, lr: float) -> tuple[InnerOptimiser, int]:
        """(optimiser, steps) of the networks that measure a set whose step size is `lr`."""
        if self.trajectories:
            return Momentum(lr, 0.9, 5e-4), self.trajectory.curve_steps
        return self.inner_optimiser(), self.horizon

    @property
    def rates(self) -> str:
        """The options that a run which diverges may lower, with their values."""
        t = self.trajectory
        if self.trajectories:
            return f"--trajectory.image-lr (now {t.image_lr}), --trajectory.step-lr (now {t.step_lr}) or --inner-lr (now {self.inner_lr})"
        return f"--outer-lr (now {self.outer_lr}) or --inner-lr (now {self.inner_lr})"

    def inner_optimiser(self) -> InnerOptimiser:
        """The optimiser of training on the set, in distillation and in evaluation."""
        return OPTIMISERS[self.inner](self.inner_lr)


def stored(kind: type[T], settings: Mapping[str, Any], place: str) -> T:
    """The configuration of type `kind` that was written as `settings` at `place`."""
    try:
        return tyro.cli(kind, args=options(settings), console_outputs=False)
    except (SystemExit, ValueError) as error:
        raise RunError(f"{place} holds settings that this version does not know: use the version that wrote it") from error


def stored_config(settings: Mapping[str, Any], place: str) -> DistillConfig:
    """The configuration written beside a distilled set."""
    return stored(DistillConfig, settings, place)


def as_settings(config: DistillConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries; what is unset (None) stays out of a TOML file."""
    return dataclasses.asdict(config)
