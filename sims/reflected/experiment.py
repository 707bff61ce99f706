"""Plain against reflected distilled sets at equal stored floats: which trials are run.

    plain       the M1 points as they are               rows  (1/M1) sum_m x_m 1{w.x_m >= 0}
    reflected   each point as x and as -x               rows  (1/2M1) sum_m x_m sign(w.x_m)

    comparison  links over r, and from the base task one axis at a time: width L, diversity L J/(r d), N/d^2, label noise, matching rule
    least M1    over r: where the risk first comes within `ratio` of the full-data teacher's

Both sets are retrained from the same fresh start with the same biases, head samples and test inputs, so the pair differs in nothing else.

Conjecture (derived here from the common mode of theory.spectrum; stated in no paper): reflected sets need M1 of order r, plain ones of
order r^2. Expected before any trial was run:
  1. log(reflected / plain risk) < 0 from about M1 = 4 r on wherever the common mode binds: large r, small L J; 0 where it does not.
  2. Reflection loses at M1 = r (theory.ridge_forms: r - 1 quadratic forms are missing) and recovers from M1 = r + 1 on.
  3. Odd parts of the target, label noise, links and matching rules change nothing: points come from H alone, and heads see both signs.
  4. At N <= d^2 points leave S*; both sets fail together, and the ratio goes to 1.
  5. A finite L J leaves a common part that reflection shrinks and does not remove: it needs L J >> r d, the plain set L J >> r^2 d.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sims import costs
from sims.lab.sweep import Sweep
from sims.pipeline import Bench, Task, distil_points, encode, task_of, teacher_network, trial_seed
from sims.population import encoded_criteria, log_grid
from sims.two_phase import retrained_rows

ENOUGH = 4  # M1 / r from which reflection is expected to help, and which stands for order r: at r = 8 it is half of r^2


@dataclass(frozen=True)
class Reflected:
    """A comparison of plain and reflected sets. Every threshold, grid and seed count is fixed here, before anything is run."""

    d: int = 32  # input dimension
    r: int = 4  # intrinsic dimension of the base task
    L: int = 128  # least width; wider where r asks for it
    width_per_r2: float = 6.0  # width of a task in units of r^2 where that is more than L
    diversity: float = 4.0  # L J/(r d), J the initialisations that the matching step averages over
    link: str = "cubic"  # link of the base task
    samples: float = 16.0  # N / d^2
    noise: float = 0.0  # standard deviation of the label noise
    links: tuple[str, ...] = ("cubic", "quadratic-plus", "cross")  # links compared at every r
    r_over: tuple[int, ...] = (2, 4, 8)  # intrinsic dimensions of the comparison
    L_over: tuple[int, ...] = (256,)  # further widths of the base task
    diversity_over: tuple[float, ...] = (1.0, 16.0)  # further diversities of the base task
    samples_over: tuple[float, ...] = (1.0, 4.0)  # further N / d^2 of the base task
    noise_over: tuple[float, ...] = (0.5,)  # further label noise of the base task
    matching_over: tuple[str, ...] = ("performance",)  # further matching rules of the base task
    shares: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)  # M1 / r of the comparison, beside M1 = r + 1
    r_least: tuple[int, ...] = (3, 4, 6, 8)  # intrinsic dimensions of the least M1
    least_diversity: float = 16.0  # L J/(r d) of the least M1
    ratio: float = 1.25  # the level of the least M1: this times the full-data teacher's median risk
    seeds: int = 16  # seeds of every task
    seed: int = 0  # root seed
    head_samples: int = 4000  # real samples for a head
    validation: int = 2000  # held-out samples that pick the ridge penalty
    test: int = 4000  # test samples

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.seed < 0:
            raise ValueError(f"an interval needs seeds >= 2 and a root seed >= 0: seeds={self.seeds}, seed={self.seed}")
        if len(self.r_least) < 3 or list(self.r_least) != sorted(set(self.r_least)):
            raise ValueError(f"an exponent needs at least three increasing r: r_least={list(self.r_least)}")
        if not self.shares or min(self.shares) < 1:
            raise ValueError(f"fewer points than r cannot span S*: shares={list(self.shares)}")
        if 1 not in self.shares or max(self.shares) < ENOUGH:
            raise ValueError(
                f"the expectations compare M1 = r and M1 >= {ENOUGH} r: give shares 1 and at least {ENOUGH}: shares={list(self.shares)}"
            )
        if not 1 < self.ratio < np.inf:
            raise ValueError(f"the level must lie above the teacher's risk: ratio={self.ratio}")
        for cell in [*self.cells(), *self.least_cells()]:
            Task(**cell)
        if not any(cell["samples"] > 1 and cell["r"] > 1 for cell in self.cells()):
            raise ValueError(
                f"the expectations need a task with N > d^2 and r > 1: samples={self.samples:g}, samples_over={list(self.samples_over)}, "
                f"r={self.r}, r_over={list(self.r_over)}"
            )

    def cell(self, r: int, **changed: Any) -> dict[str, Any]:
        """The fields of the Task at r; `changed` overrides link, samples, noise, matching, L or diversity."""
        wide = max(self.L, 2 * round(self.width_per_r2 * r * r / 2))
        setting = {"L": wide, "diversity": self.diversity, "link": self.link, "samples": self.samples, "noise": self.noise} | changed
        width, diversity = setting["L"], setting.pop("diversity")
        counts = {"head_samples": min(self.head_samples, round(setting["samples"] * self.d**2)), "validation": self.validation}
        return asdict(Task(self.d, r, J=max(1, round(diversity * r * self.d / width)), test=self.test, **counts, **setting))

    def cells(self) -> list[dict[str, Any]]:
        """Tasks of the comparison without repeats."""
        crossed = [self.cell(r, link=link) for r in self.r_over for link in self.links]
        axes = {"L": self.L_over, "diversity": self.diversity_over, "samples": self.samples_over}
        axes |= {"noise": self.noise_over, "matching": self.matching_over}
        star = [self.cell(self.r, **{name: value}) for name, values in axes.items() for value in values]
        every = [*crossed, *star]
        return [cell for k, cell in enumerate(every) if cell not in every[:k]]

    def least_cells(self) -> list[dict[str, Any]]:
        """Tasks of the least M1, one an r."""
        return [self.cell(r, diversity=self.least_diversity) for r in self.r_least]

    def grid(self, r: int) -> list[int]:
        """M1 of the comparison."""
        return sorted({round(share * r) for share in self.shares} | {r + 1})


def sweeps(config: Reflected, backend: str) -> tuple[Sweep, ...]:
    """Every trial: the comparison and the least M1, large tasks first."""

    def trials(cells: list[dict[str, Any]], grid: Any) -> tuple[dict[str, Any], ...]:
        shared = {"seed": config.seed, "backend": backend}
        ordered = sorted(cells, key=lambda cell: -cell["r"])
        return tuple(cell | shared | {"draw": k, "m1": list(grid(cell["r"]))} for cell in ordered for k in range(config.seeds))

    return (
        Sweep("least", paired_trial, trials(config.least_cells(), least_grid), paired_cost),
        Sweep("pair", paired_trial, trials(config.cells(), config.grid), paired_cost),
    )


def paired_cost(config: Mapping[str, Any]) -> costs.Cost:
    """Of `paired_trial`: teacher passes (one more a start for performance matching), the step, two heads at each M1 and the teacher's."""
    task, heads = task_of(config), 2 * len(config["m1"]) + 1
    total = costs.encoding(task) + costs.samples(task) + costs.matching(task, config["m1"][-1])
    total += heads * costs.head(task, task.head_samples)
    return total + costs.Cost(8.0 * task.N * task.d * task.L * task.J) if task.matching == "performance" else total


def least_grid(r: int) -> tuple[int, ...]:
    """M1 from r + 1 to 3 r^2 (24 r where that is more), neighbours a factor of about 1.4 apart."""
    return log_grid(r + 1, max(24 * r, 3 * r * r), 1.4)


def paired_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys: the fields of Task, `seed` and `draw`, `m1` (increasing), `backend`. Over the grid of M1, for nested sets of points:

    risk_plain, risk_reflected       with a head on real samples; teacher: the full-data teacher's, one number
    common_mode, conditioning_plain, conditioning_reflected   criteria of the retrained rows on S*, at infinite retraining width
    off_plain, off_reflected         share of the retrained rows' energy off S*
    """
    task = task_of(config)
    encoded = encode(task, trial_seed(config, task.d, task.r, task.L), config["backend"])
    bench, points = Bench.of(encoded), distil_points(encoded, config["m1"][-1])
    rng = encoded.rng("retrain")
    theta = encoded.student.init(rng)
    biases = encoded.student.asarray(rng.standard_normal(task.L))
    found: dict[str, list[float]] = {name: [] for name in ("risk_plain", "risk_reflected", "off_plain", "off_reflected")}
    for m1 in config["m1"]:
        for name, reflected in (("plain", False), ("reflected", True)):
            rows = retrained_rows(encoded.student, theta, points[:m1, :], task.row_norm, reflected)
            found[f"risk_{name}"].append(bench.risk(bench.fit_real(rows, biases)))
            found[f"off_{name}"].append(1.0 - float(encoded.xp.sum((rows @ encoded.model.B) ** 2) / encoded.xp.sum(rows**2)))
    criteria = encoded_criteria(points, encoded.model.B, config["m1"])
    names = {"common_mode": "common_mode", "conditioning": "conditioning_plain", "reflected": "conditioning_reflected"}
    curves = {names[name]: values.tolist() for name, values in criteria.items()}
    return {"teacher": bench.risk(teacher_network(bench))} | found | curves
