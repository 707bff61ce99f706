"""The settings of a distillation, and where they come from: defaults, then a preset file, then the command line.

A preset is a TOML file of settings (a name such as `cpu`, or a path). Its entries become options that stand before the user's own, and the
last one wins; so presets, command line and the configuration stored in a finished set pass the same checks.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, WindowPolicy

PRESETS = Path(__file__).parent / "presets"
METHODS = ("rat-bptt", "t-bptt", "bptt", "at-bptt")
OPTIMISERS = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
INITS = ("noise", "real")
STAGES = ("clock", *(stage.value for stage in Stage))


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
    """Points of held-out accuracy; slower measurements count towards the middle stage."""
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
class DistillConfig:
    """Everything that determines a distilled set. Lengths are in optimiser steps, sizes in images, learning rates per step."""

    dataset: str
    """Data set: a named one (cifar10, mnist, tiny-imagenet, imagenette-64, ..) or your own, e.g. folders:3x64x64:10."""
    method: str = "rat-bptt"
    """rat-bptt (window at a random place), t-bptt (the last steps), bptt (all steps) or at-bptt (place and length by gradient norms)."""
    ipc: int = 1
    """Distilled images per class."""
    seed: int = 0
    """Root of all randomness."""
    network: ConvNetConfig = field(default_factory=ConvNetConfig)
    transform: str = "zca"
    """Preprocessing fitted on the training part: zca or standardise."""
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
    window_spread: int = 0
    """rat-bptt: the window's length is drawn too, uniform within so many steps of `window`."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    hessian_rank: int | None = None
    """Rank of a low-rank Hessian in the reverse sweep; exact by default, 0 leaves curvature out."""
    inner: str = "adam"
    """Optimiser of training on the set: sgd, momentum or adam."""
    inner_lr: float = 1e-3
    """Its learning rate."""
    batch_per_class: int | None = None
    """Distilled images of each class in one training step; all of them by default."""
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
        source(self.dataset)
        one_of(METHODS, method=self.method)
        one_of(TRANSFORMS, transform=self.transform)
        one_of(("auto", *AUGMENTATIONS), augment=self.augment)
        one_of(INITS, init=self.init)
        one_of(tuple(OPTIMISERS), inner=self.inner)
        at_least(1, ipc=self.ipc, outer_steps=self.outer_steps, real_batch=self.real_batch)
        at_least(1, curve_every=self.curve_every, curve_networks=self.curve_networks, curve_images=self.curve_images)
        at_least(0, seed=self.seed)
        positive(init_norm=self.init_norm, inner_lr=self.inner_lr, outer_lr=self.outer_lr)
        share(held_out=self.held_out)
        if self.batch_per_class is not None and not 1 <= self.batch_per_class <= self.ipc:
            raise RunError(f"the batch per class must lie in [1, ipc={self.ipc}]: batch_per_class={self.batch_per_class}")
        self.windows()
        self.clock()
        self.hessian()

    def windows(self) -> WindowPolicy | AdaptiveWindow:
        """The truncation of the method."""
        match self.method:
            case "rat-bptt":
                return RandomWindow(self.horizon, self.window, spread=self.window_spread)
            case "bptt":
                return FullWindow(self.horizon)
            case "at-bptt":
                a = self.adaptive
                return AdaptiveWindow(self.horizon, self.window, a.spread, a.temperature, a.scores, a.change, a.placement, a.profile)
        return FixedWindow(self.horizon, self.window)

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
        """The stand-in for the Hessian, None for the exact sweep."""
        return None if self.hessian_rank is None else LowRankHessian(self.hessian_rank)

    def inner_optimiser(self) -> InnerOptimiser:
        """The optimiser of training on the set, in distillation and in evaluation."""
        return OPTIMISERS[self.inner](self.inner_lr)


def stored_config(settings: Mapping[str, Any], place: str) -> DistillConfig:
    """The configuration written beside a distilled set."""
    try:
        return tyro.cli(DistillConfig, args=options(settings), console_outputs=False)
    except (SystemExit, ValueError) as error:
        raise RunError(f"{place} holds settings that this version does not know: use the version that wrote it") from error


def as_settings(config: DistillConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries; what is unset (None) stays out of a TOML file."""
    return dataclasses.asdict(config)
