"""The recipe of both levels of distillation: inner and outer steps, and how experts are trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from theory.distill.flatness import Flat
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.matching import DISTANCES
from theory.distill.stages import StageClock

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
    batch: float = 2.0  # real samples an outer step, or a step of an expert, in units of d^2
    measurements: int = 30  # at-bptt: held-out measurements that its stage clock reads
    experts: int = 4  # mtt, ftd: expert runs on the real sample
    epochs: int = 12  # mtt, ftd: epochs E of an expert, each as many steps as the sample has batches
    starts: int = 4  # mtt, ftd: start epochs T+ of a segment, 0 to starts - 1
    span: int = 8  # mtt, ftd: epochs M that the T inner steps follow
    rho: float = 0.2  # ftd: radius of the ball that its experts are flat over
    alpha: float = 0.0  # ftd: weight of the part of the gradient orthogonal to the perturbed one; 0 is SAM

    def __post_init__(self) -> None:
        for name in ("T", "W", "states", "phases", "K", "J", "measurements", "experts", "epochs", "starts", "span"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1: {name}={getattr(self, name)}")
        for name in ("W", "states", "phases"):
            if getattr(self, name) > self.T:
                raise ValueError(f"{name} cannot exceed the T={self.T} inner steps: {name}={getattr(self, name)}")
        if not 0 <= self.spread < self.W or self.W + self.spread > self.T:
            raise ValueError(f"windows of at-bptt need 1 <= W - spread and W + spread <= T: W={self.W}, spread={self.spread}, T={self.T}")
        if self.starts - 1 + self.span > self.epochs:
            raise ValueError(
                f"the last segment would end at epoch {self.starts - 1 + self.span}: starts={self.starts}, span={self.span}, "
                f"epochs={self.epochs}"
            )
        Flat(self.rho, self.alpha)
        if self.phases > self.K:
            raise ValueError(f"every phase needs an outer step: phases={self.phases}, K={self.K}")
        for name in ("inner_lr", "init_scale", "outer_lr", "start_norm", "batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: {name}={getattr(self, name)}")
        for name, known in (("inner", OPTIMISERS), ("outer", OPTIMISERS), ("distance", DISTANCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(sorted(known))}")

    def clock(self) -> StageClock:
        """The stages of at-bptt."""
        return StageClock(min(self.measurements, self.K))
