"""The scaling law of the distilled set's memory, measured: which trials are run, and which exponents come out of them.

    risk sweep      real samples; r = base_r over d, then over L, then r at base_d. L J/(r d) is held near `diversity`, N/d^2 at `samples`
    head sweep      labels that recover a head on line inputs, over L
    spectrum sweep  population mode, L -> infinity: the least M1 of three conditioning criteria, over r
    risk in r       population mode: the least M1 at which the risk is within `risk_ratio` of the teacher's, over r
    rows sweep      real samples: the conditioning criteria of rows retrained on real distilled points, over r
    baselines       the tasks of the risk sweep at M1 = 4 r^2, M2 = 2 L (sims.encode) beside what else fits in the same floats

The paper (Kinoshita et al., arXiv:2603.14830, abstract) states memory Theta~(r^2 d + L). Which measurement stands for which term, and the
finite-size predictions, are derived here (theory.predictions, theory.spectrum).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sims import costs, population
from sims.arrays import namespace
from sims.encode.experiment import Encode, encode_trial
from sims.lab.sweep import Cost, Sweep
from sims.pipeline import Task, task_of
from sims.scaling import trials

CRITERIA = tuple(population.THRESHOLDS)
LEAST_R = 2  # at r = 1 the spectrum is one number; below r = 5 some criteria have no prediction (met at M1 = 2 r already)


@dataclass(frozen=True)
class Scaling:
    """A scaling experiment. Every threshold, grid and seed count is fixed here, before anything is run."""

    d: tuple[int, ...] = (16, 32, 64, 128)  # input dimensions of the d sweep
    L: tuple[int, ...] = (64, 96, 128, 256)  # widths of the L sweep
    r: tuple[int, ...] = (8, 16, 32, 64, 128)  # intrinsic dimensions of the spectrum sweep
    r_risk: tuple[int, ...] = (4, 6, 8, 12, 16)  # intrinsic dimensions of the population risk
    r_real: tuple[int, ...] = (3, 4)  # further intrinsic dimensions with real samples, for the additive fit
    r_rows: tuple[int, ...] = (6, 8, 12)  # intrinsic dimensions of the conditioning of real rows
    rows_d: int = 32  # input dimension of the real rows
    rows_L: int = 1024  # width of the network that the points of the real rows are matched to
    rows_samples: float = 64.0  # N / d^2 of the real rows
    rows_diversity: float = 32.0  # L J/(r d) of the real rows; the plain set needs L J >> r^2 d
    rows_seeds: int = 8  # seeds of the real rows at each r
    baseline_seeds: int = 2  # seeds of the baselines at each task of the risk sweep
    seeds: int = 16  # seeds of each real-sample task
    spectrum_draws: int = 1280  # draws of the spectrum sweep times r: the standard error of M1* is then about the same at every r
    risk_draws: int = 1280  # draws of the population risk times r^2, at least 6
    head_seeds: int = 5  # seeds of the head sweep
    seed: int = 0  # root seed
    base_d: int = 32  # input dimension of the L and r sweeps
    base_r: int = 2  # intrinsic dimension of the d and L sweeps
    base_L: int = 128  # width of the d sweep
    L_real: int = 256  # width of the tasks in r_real
    link: str = "cubic"  # link of the real-sample tasks
    samples: float = 16.0  # N / d^2
    diversity: float = 8.0  # L J / (r d), J the initialisations that the matching step averages over
    level: float = 0.1  # absolute risk that a distilled set has to reach, the same for all d, r and L
    m1_low: float = 0.75  # start of the grid of M1, in units of r^2
    m1_high: float = 10.5  # end of the grid of M1, in units of r^2; neighbours differ by a factor 1.4 at most where integers allow
    m2_shares: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # grid of M2 / L
    functional_ratio: float = 1.5  # labels suffice when the risk is within this factor of a head on real samples
    tolerance: float = 1e-6  # relative head error that counts as recovered
    head_L: tuple[int, ...] = (32, 64, 128, 256, 512)  # widths of the head sweep
    head_shares: tuple[float, ...] = (0.5, 0.7, 0.9, 1.1, 1.4, 2.0)  # grid of M2 / L of the head sweep, beside L - 1, L, L + 1
    head_samples: int = 4000  # real samples for a head
    validation: int = 2000  # held-out samples that pick the ridge penalty
    test: int = 4000  # test samples
    risk_ratio: float = 1.25  # population risk over the teacher's

    def __post_init__(self) -> None:
        for name in ("d", "L", "r", "r_risk", "r_rows", "head_L"):
            values = getattr(self, name)
            if len(values) < 3 or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"an exponent in {name} needs at least three increasing values >= 1: {name}={list(values)}")
        if self.r[0] < LEAST_R:
            raise ValueError(f"the spectrum sweep needs r >= {LEAST_R}: r={list(self.r)}")
        draws = {"seeds": 2, "head_seeds": 2, "rows_seeds": 2, "baseline_seeds": 1, "spectrum_draws": 2 * self.r[-1], "risk_draws": 1}
        for name, least in (draws | {"base_L": 2, "L_real": 2, "seed": 0}).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}: {name}={getattr(self, name)}")
        sizes = ("samples", "diversity", "m1_low", "m1_high", "functional_ratio", "tolerance", "risk_ratio")
        sizes += ("m2_shares", "head_shares", "rows_samples", "rows_diversity")
        for name in sizes:
            values = np.atleast_1d(getattr(self, name))
            if not (values.size and np.all((values > 0) & (values < math.inf))):
                raise ValueError(f"{name} must be positive and finite: {name}={getattr(self, name)}")
        if not self.m1_low < self.m1_high:
            raise ValueError(f"the grid of M1 must increase: m1_low={self.m1_low}, m1_high={self.m1_high}")
        if not 0 < self.level < 1:
            raise ValueError(f"the risk level must lie in (0, 1): level={self.level}")
        for d, r, width in [*self.tasks(), *((self.base_d, self.base_r, width) for width in self.head_L)]:
            Task(**self.task(d, r, width))
        for r in self.r_rows:
            self.rows_task(r)
        for place in self.tasks():
            self.baseline(*place)

    def tasks(self) -> list[tuple[int, int, int]]:
        """(d, r, L) of the risk sweep, without repeats."""
        along_d = [(d, self.base_r, self.base_L) for d in self.d]
        along_l = [(self.base_d, self.base_r, width) for width in self.L]
        along_r = [(self.base_d, r, self.L_real) for r in self.r_real]
        return list(dict.fromkeys(along_d + along_l + along_r))

    def task(self, d: int, r: int, width: int) -> dict[str, Any]:
        """The fields of the Task at (d, r, L); heads use all samples where there are fewer than head_samples."""
        starts = max(1, round(self.diversity * r * d / width))
        counts = {
            "head_samples": min(self.head_samples, round(self.samples * d * d)),
            "validation": self.validation,
            "test": self.test,
        }
        return {"d": d, "r": r, "L": width, "J": starts, "link": self.link, "samples": self.samples, **counts}

    def rows_task(self, r: int) -> Task:
        """The task whose distilled points give the real rows at r; no head is fitted."""
        starts = max(1, round(self.rows_diversity * r * self.rows_d / self.rows_L))
        return Task(self.rows_d, r, self.rows_L, starts, self.link, samples=self.rows_samples, head_samples=1, validation=1, test=1)

    def rows_grid(self, r: int) -> tuple[int, ...]:
        """M1 of the real rows: from 2 r to 6 r^2 (40 r where that is more)."""
        return population.log_grid(2 * r, max(40 * r, 6 * r * r), 1.3)

    def baseline(self, d: int, r: int, width: int) -> Encode:
        """The look at one task beside its baselines; the set is large enough to reach the level at every size."""
        return Encode(Task(**self.task(d, r, width)), M1=4 * r * r, m2_per_L=2.0, seeds=self.baseline_seeds, seed=self.seed)

    def m1_grid(self, r: int) -> list[int]:
        """Integers from about m1_low r^2 to m1_high r^2, each the next one or at most 1.4 times the one before."""
        grid = [max(1, int(self.m1_low * r * r))]
        while grid[-1] < self.m1_high * r * r:
            grid.append(max(grid[-1] + 1, int(1.4 * grid[-1])))
        return grid

    def m2_grid(self, width: int) -> list[int]:
        """Label counts of the risk sweep."""
        return sorted({max(1, round(share * width)) for share in self.m2_shares})


def sweeps(scaling: Scaling, backend: str) -> tuple[Sweep, ...]:
    """Every trial of the experiment, the expensive ones first (they fill the workers best)."""
    device = {} if backend == "numpy" else {"backend": backend}
    spectrum = [
        _plain(asdict(population.SpectrumTrial(r=r, draw=k, grid=grid, seed=scaling.seed))) | device
        for r, grid in ((r, population.spectrum_grid(r)) for r in reversed(scaling.r))
        for k in range(scaling.spectrum_draws // r)
    ]
    risk = [
        asdict(Task(**scaling.task(d, r, width)))
        | {"seed": scaling.seed, "draw": k, "m1": scaling.m1_grid(r), "m2": scaling.m2_grid(width), "backend": backend}
        for d, r, width in sorted(scaling.tasks(), reverse=True)
        for k in range(scaling.seeds)
    ]
    risk_in_r = [
        _plain(asdict(population.RiskTrial(r=r, draw=k, grid=population.risk_grid(r), seed=scaling.seed)))
        for r in reversed(scaling.r_risk)
        for k in range(max(6, scaling.risk_draws // r**2))
    ]
    head = [
        {"d": scaling.base_d, "r": scaling.base_r, "L": width, "seed": scaling.seed, "draw": k}
        | {"tolerance": scaling.tolerance, "shares": list(scaling.head_shares)}
        for width in reversed(scaling.head_L)
        for k in range(scaling.head_seeds)
    ]
    rows = [
        asdict(scaling.rows_task(r)) | {"seed": scaling.seed, "draw": k, "grid": list(scaling.rows_grid(r)), "backend": backend}
        for r in reversed(scaling.r_rows)
        for k in range(scaling.rows_seeds)
    ]
    baselines = [config for place in sorted(scaling.tasks(), reverse=True) for config in scaling.baseline(*place).configs(backend)]
    return (
        Sweep("spectrum", spectrum_trial, tuple(spectrum), costs.spectrum_trial),
        Sweep("risk", trials.risk_trial, tuple(risk), costs.risk_trial),
        Sweep("population-risk", population_risk_trial, tuple(risk_in_r), costs.population_risk_trial),
        Sweep("rows", trials.rows_trial, tuple(rows), rows_cost),
        Sweep("baselines", encode_trial, tuple(baselines), costs.encode_trial),
        Sweep("head", trials.head_trial, tuple(head), costs.head_trial),
    )


def rows_cost(config: Mapping[str, Any]) -> Cost:
    """Of `trials.rows_trial`: teacher passes, matching step at the largest M1, half of M1^2 pairs of points."""
    task, m1 = task_of(config), config["grid"][-1]
    pairs = 0.5 * m1 * m1
    return costs.encoding(task) + costs.matching(task, m1) + Cost(2.0 * 4.0 * pairs * task.d, 0.0, 2.0 * costs.ARCSIN * pairs)


def spectrum_trial(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """The three criteria over the grid of one draw. Keys: the fields of SpectrumTrial, and `backend` where it is not NumPy."""
    own = {name: value for name, value in config.items() if name != "backend"}
    found = population.SpectrumTrial(**own).run(namespace(config.get("backend", "numpy")))
    return {name: curve.tolist() for name, curve in found.items()}


def population_risk_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Population risks over the grid of one draw."""
    return dict(population.RiskTrial(**config).run())


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that a stored configuration equals the one asked for."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
