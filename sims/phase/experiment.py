"""Phase diagrams of the distilled set: where in the plane of two sizes its risk comes near the teacher's.

    points   (M1/r^2, N/d^2)   head on real samples, so that the points alone decide
    labels   (M2/L, M1/r^2)    fresh network whose head comes from M2 labels, at the largest N/d^2

Lines of the theory (derived here, but for Damian et al.'s threshold): M1 = r, below which directions are missing; M1 = r^2, common mode
at most (pi/2) of the signal; N = kappa^2 r d^2 (Damian, Lee, Soltanolkotabi, COLT 2022, the order at which directions are learned);
the N at which half of a point's energy lies off S* (theory.predictions); M2 = L, labels that carry a head exactly.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sims import costs
from sims.lab.sweep import Sweep
from sims.pipeline import Task
from sims.scaling.trials import risk_trial


@dataclass(frozen=True)
class Phase:
    """Two diagrams of one task. Grids are geometric in the ratios that the theory names."""

    d: int = 32  # input dimension
    r: int = 3  # intrinsic dimension
    L: int = 128  # width
    diversity: float = 8.0  # L J/(r d), J the initialisations that the matching step averages over
    link: str = "cubic"  # link
    noise: float = 0.0  # standard deviation of the label noise
    reflected: bool = False  # use each stored point as x and -x at retraining
    samples: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # N / d^2
    m1_per_r2: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # M1 / r^2
    m2_per_L: tuple[float, ...] = (0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.12, 1.6, 2.24, 3.2)  # M2 / L
    level: float = 0.2  # risk whose contour is drawn
    seeds: int = 7  # seeds of every place
    seed: int = 0  # root seed
    head_samples: int = 4000  # real samples for a head; all of them where there are fewer
    validation: int = 2000  # held-out samples that pick the ridge penalty
    test: int = 4000  # test samples

    def __post_init__(self) -> None:
        for name in ("samples", "m1_per_r2", "m2_per_L"):
            values = getattr(self, name)
            if len(values) < 2 or list(values) != sorted(set(values)) or not 0 < values[0] <= values[-1] < np.inf:
                raise ValueError(f"an axis needs at least two increasing positive values: {name}={list(values)}")
        if self.seeds < 1 or self.seed < 0:
            raise ValueError(f"need seeds >= 1 and a root seed >= 0: seeds={self.seeds}, seed={self.seed}")
        if not 0 < self.level < 1:
            raise ValueError(f"the risk level must lie in (0, 1): level={self.level}")
        for samples in self.samples:
            self.task(samples)

    def task(self, samples: float) -> Task:
        """The task at N = samples d^2."""
        starts = max(1, round(self.diversity * self.r * self.d / self.L))
        head = min(self.head_samples, round(samples * self.d**2))
        setting: dict[str, Any] = {"link": self.link, "noise": self.noise, "reflected": self.reflected, "samples": samples}
        setting |= {"head_samples": head, "validation": self.validation, "test": self.test}
        return Task(self.d, self.r, self.L, starts, **setting)

    @property
    def m1(self) -> list[int]:
        """Numbers of points, at least one, without repeats."""
        return sorted({max(1, round(share * self.r**2)) for share in self.m1_per_r2})

    @property
    def m2(self) -> list[int]:
        """Numbers of labels."""
        return sorted({max(1, round(share * self.L)) for share in self.m2_per_L})


def sweeps(config: Phase, backend: str) -> tuple[Sweep, ...]:
    """One trial a seed and N; labels vary at the largest N alone."""

    def trials(samples: float, m2: list[int]) -> list[dict[str, Any]]:
        shared: Mapping[str, Any] = asdict(config.task(samples)) | {"seed": config.seed, "m1": config.m1, "m2": m2, "backend": backend}
        return [dict(shared) | {"draw": k} for k in range(config.seeds)]

    few = [trial for samples in config.samples[:-1] for trial in trials(samples, config.m2[-1:])]
    full = trials(config.samples[-1], config.m2)
    return Sweep("labels", risk_trial, tuple(full), costs.risk_trial), Sweep("points", risk_trial, tuple(few), costs.risk_trial)
