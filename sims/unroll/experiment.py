"""`sims unroll`: which tasks the practical algorithms are run on, with how many points, and how often.

Cells are (d, r): every d at the first r, and every r at the middle d. In each cell every method distils sets of M1 points, M1 on one grid
for all, from `seeds` independent tasks; a sweep of three or more d or r and a grid of M1 gives exponents (sims.unroll.laws).

What to expect of the recipe, derived here. At a small inner step the outer gradient moves a point with label y along y H x~/||x~||, to
leading order in 1/d. One such step from a forgotten start leaves x~ proportional to H z. Many steps are a power iteration: points of
label +1 keep the positive eigenvalues of H, points of label -1 the negative ones, each the largest first. So constant labels lose
directions that one step keeps where H is indefinite, and learned labels of both signs do not. Along a whole training run the rows'
increment is a combination of the points: it can lie in S* where the points do not, when their parts off S* cancel.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from tyro.conf import arg

from sims.lab.sweep import Sweep
from sims.pipeline import Task
from sims.unroll import costs
from sims.unroll.methods import METHODS, Loop
from sims.unroll.recipe import Recipe
from sims.unroll.trial import unroll_trial


@dataclass(frozen=True)
class Unroll:
    """Methods, tasks, sizes, and the recipe of both levels."""

    recipe: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)
    method: tuple[str, ...] = tuple(METHODS)  # algorithms, of the table in sims/unroll/methods.py
    d: tuple[int, ...] = (16,)  # input dimensions, at the first r
    r: tuple[int, ...] = (2,)  # intrinsic dimensions, at the middle d
    M1: tuple[int, ...] = (8,)  # distilled points
    L: int = 64  # width of the network, even
    link: str = "quadratic"  # named link function of the teacher
    noise: float = 0.0  # standard deviation of the label noise
    samples: float = 16.0  # training samples N in units of d^2
    diversity: float = 8.0  # L J / (r d) of the idealised step alone
    seeds: int = 5  # independent tasks a cell
    seed: int = 0  # root seed
    networks: int = 3  # fresh networks that every set is tested on
    checkpoints: int = 8  # sets on the way that are measured; 1 is the last one only
    probes: int = 4  # runs that meta-gradients are compared on
    head_samples: int = 4000  # real samples for a head
    validation: int = 2000  # held-out samples that pick the ridge penalty
    test: int = 4000  # test samples
    level_head: float = 0.15  # test risk that a head on the erased rows has to reach
    level_alone: float = 0.3  # test risk that a network trained on the set alone has to reach
    level_angle: float = 20.0  # largest principal angle, in degrees, that the increment of the rows has to reach

    def __post_init__(self) -> None:
        for name in ("method", "d", "r", "M1"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} needs at least one value and none twice: {name}={list(values)}")
        for name in ("d", "r", "M1"):
            values = getattr(self, name)
            if list(values) != sorted(values) or values[0] < 1:
                raise ValueError(f"{name} must be increasing and >= 1: {name}={list(values)}")
        unknown = [name for name in self.method if name not in METHODS]
        if unknown:
            raise ValueError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
        if any(isinstance(method, Loop) and method.staged for method in (METHODS[name] for name in self.method)):
            self.recipe.clock()
        for name, least in (("seeds", 1), ("seed", 0), ("networks", 1), ("checkpoints", 1), ("probes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}: {name}={getattr(self, name)}")
        for name in ("samples", "diversity", "level_head", "level_alone", "level_angle"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: {name}={getattr(self, name)}")
        for d, r in self.cells():
            Task(**{name: value for name, value in self._task(d, r).items() if name != "task_J"})
            if self.M1[-1] > self.samples * d * d:
                raise ValueError(
                    f"a subset of M1={self.M1[-1]} points needs as many real samples: N={round(self.samples * d * d)} at d={d}"
                )

    @property
    def base_d(self) -> int:
        """The middle d, where the r sweep is."""
        return self.d[len(self.d) // 2]

    def cells(self) -> list[tuple[int, int]]:
        """(d, r) without repeats."""
        return list(dict.fromkeys([(d, self.r[0]) for d in self.d] + [(self.base_d, r) for r in self.r]))

    def _task(self, d: int, r: int) -> dict[str, Any]:
        starts = max(1, round(self.diversity * r * d / self.L))
        counts = {"head_samples": min(self.head_samples, round(self.samples * d * d)), "validation": self.validation, "test": self.test}
        return {"d": d, "r": r, "L": self.L, "task_J": starts, "link": self.link, "noise": self.noise, "samples": self.samples} | counts

    def settings(self) -> dict[str, Any]:
        """Every setting by the name that its option has."""
        own: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        recipe: dict[str, Any] = own.pop("recipe")
        return recipe | own

    def configs(self, backend: str) -> list[dict[str, Any]]:
        """Every trial, the expensive ones first; draws are shared by the methods, so that they are compared on the same tasks."""
        shared = asdict(self.recipe) | {"seed": self.seed, "networks": self.networks, "checkpoints": self.checkpoints}
        shared |= {"probes": self.probes, "backend": backend}
        return [
            self._task(d, r) | shared | {"method": method, "M1": m1, "draw": k}
            for d, r in sorted(self.cells(), reverse=True)
            for m1 in reversed(self.M1)
            for method in self.method
            for k in range(self.seeds)
        ]


def sweeps(config: Unroll, backend: str) -> tuple[Sweep, ...]:
    """One trial a method, cell, number of points and draw."""
    return (Sweep("unroll", unroll_trial, tuple(config.configs(backend)), costs.unroll_trial),)
