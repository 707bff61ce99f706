"""One task in depth: what a distilled set encodes, and how well it trains a fresh network, beside baselines at equal floats.

distilled       M1 points and M2 labels; risk with a fresh start (and with the start that made the labels)
random subset   as many real samples as fit in the same floats, used for both layers
k-means         as many cluster centres of the inputs with the mean label of their cluster
H alone         an orthonormal basis of the estimated expected Hessian's top r eigenvectors, random rows in it, M2 labels
labels alone    random rows, head from as many labels of the teacher on random inputs as fit in the same floats
random features random rows, head on real samples: L floats and a seed
weights         the full-data teacher itself
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from tyro.conf import arg

from sims import heads, two_phase
from sims.arrays import to_numpy
from sims.assumptions_table import margins, of_encoded
from sims.lab.subspace import leading_subspace, principal_angles, singular_values
from sims.pipeline import (
    Bench,
    Encoded,
    Network,
    Task,
    distil_points,
    encode,
    fresh_network,
    label_inputs,
    task_of,
    teacher_network,
    trial_seed,
)
from theory import memory


@dataclass(frozen=True)
class Encode:
    """A task, the size of its distilled set, and the number of seeds."""

    task: Annotated[Task, arg(name="")]
    M1: int = 32  # distilled points
    m2_per_L: float = 2.0  # labels M2 / L
    seeds: int = 8  # seeds
    seed: int = 0  # root seed
    within: float = 1.5  # the distilled set passes when its median risk is within this factor of the teacher's

    def __post_init__(self) -> None:
        if not math.isfinite(self.m2_per_L) or self.M1 < 1 or self.M2 < 1:
            raise ValueError(f"need M1 >= 1 points and M2 >= 1 labels: M1={self.M1}, m2_per_L={self.m2_per_L}, L={self.task.L}")
        if self.seeds < 1 or self.seed < 0:
            raise ValueError(f"need seeds >= 1 and a root seed >= 0: seeds={self.seeds}, seed={self.seed}")
        if not 0 < self.within < math.inf:
            raise ValueError(f"within must be positive and finite: within={self.within}")
        if not 2 <= self.raw_points <= self.task.head_samples:
            raise ValueError(
                f"the baselines take as many real samples as fit in {self.floats} floats, at least 2 and at most "
                f"head_samples={self.task.head_samples}: {self.raw_points} fit; change M1, m2_per_L or head_samples"
            )

    @property
    def M2(self) -> int:
        """Number of labels."""
        return round(self.m2_per_L * self.task.L)

    @property
    def floats(self) -> int:
        """Stored floats of the distilled set."""
        return memory.distilled(self.M1, self.task.d, self.M2).floats

    @property
    def raw_points(self) -> int:
        """Real samples that fit in the same floats."""
        return memory.raw_points_for(self.floats, self.task.d)

    def settings(self) -> dict[str, Any]:
        """Every setting by the name that its option has."""
        own = asdict(self)
        return own.pop("task") | own

    def configs(self, backend: str) -> list[dict[str, Any]]:
        """One trial a seed."""
        shared = asdict(self.task) | {"M1": self.M1, "M2": self.M2, "seed": self.seed, "backend": backend}
        return [shared | {"draw": k} for k in range(self.seeds)]


def encode_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Risks by representation, floats by representation, principal angles (radians), singular values and off-subspace energy, and the
    margin of every assumption on this very experiment.
    """
    task = task_of(config)
    encoded = encode(task, trial_seed(config, task.d, task.r, task.L), config["backend"])
    bench, m1, m2 = Bench.of(encoded), config["M1"], config["M2"]
    points = distil_points(encoded, m1)
    first = bench.fit_real(*fresh_network(encoded, points, "retrain"))
    student = bench.fit_labels(first, *fresh_network(encoded, points, "retrain-again"), m2)
    teacher = teacher_network(bench)
    budget = memory.distilled(m1, task.d, m2).floats
    count = memory.raw_points_for(budget, task.d)
    risks = {
        "teacher": bench.risk(teacher),
        "distilled": bench.risk(student),
        "distilled_same_start": bench.risk(bench.fit_labels(first, first.rows, first.biases, m2)),
        "distilled_real_head": bench.risk(first),
        "random_subset": _subset_risk(bench, count),
        "k_means": _kmeans_risk(bench, count),
        "H_alone": _hessian_risk(bench, teacher, m2),
        "labels_alone": _labels_alone_risk(bench, teacher, budget),
        "random_features": _random_feature_risk(bench),
    }
    floats = {
        "teacher": memory.weights(task.L, task.d).floats,
        "distilled": budget,
        "distilled_same_start": budget,
        "distilled_real_head": memory.distilled(m1, task.d, task.L).floats,
        "random_subset": memory.raw_subset(count, task.d).floats,
        "k_means": memory.raw_subset(count, task.d).floats,
        "H_alone": memory.subspace(task.r, task.d).floats + m2,
        "labels_alone": budget,
        "random_features": task.L,
    }
    judged = _judged(bench, points, first, student, m2, risks["distilled"])
    return {f"risk_{k}": v for k, v in risks.items()} | {f"floats_{k}": v for k, v in floats.items()} | _geometry(encoded, points) | judged


def _judged(bench: Bench, points: Any, source: Network, student: Network, m2: int, risk: float) -> dict[str, float | None]:
    """The assumptions on what was carried out; the width is asked for the accuracy that the distilled set has reached (A20)."""
    encoded = bench.encoded
    x = label_inputs(encoded, m2)
    fitted = heads.features(student.rows, student.biases, x), source(x), student.head
    return margins(of_encoded(encoded, points, fitted, source.head, accuracy=risk * encoded.model.link.variance))


def _geometry(encoded: Encoded, points: Any) -> dict[str, Any]:
    x, index = to_numpy(points).astype(np.float64), to_numpy(encoded.model.B).astype(np.float64)
    inside = float(np.sum((x @ index) ** 2) / np.sum(x**2))
    angles = principal_angles(index, leading_subspace(x, min(encoded.task.r, *x.shape)))
    return {
        "off_energy": 1.0 - inside,
        "angles": angles.tolist(),
        "singular_values": singular_values(x)[: 4 * encoded.task.r].tolist(),
    }


def _small_set_risk(bench: Bench, x: Any, y: Any, rng: np.random.Generator) -> float:
    """Both layers trained on a small labelled set (x, y) from a fresh start, as the teacher is on all of it."""
    encoded, task = bench.encoded, bench.encoded.task
    theta = encoded.student.init(rng)
    rows = two_phase.first_layer(encoded.student, theta, (x, y - encoded.xp.mean(y)), task.row_norm)
    return bench.risk(bench.fit(rows, encoded.student.asarray(rng.standard_normal(task.L)), x, y))


def _subset_risk(bench: Bench, count: int) -> float:
    rng = bench.encoded.rng("baselines")
    index = bench.encoded.xp.asarray(rng.choice(bench.encoded.task.head_samples, count, replace=False))
    return _small_set_risk(bench, bench.train.x[index, :], bench.train.label[index], rng)


def _kmeans_risk(bench: Bench, count: int) -> float:
    x, y = to_numpy(bench.train.x).astype(np.float64), to_numpy(bench.train.label).astype(np.float64)
    rng, asarray = bench.encoded.rng("baselines"), bench.encoded.student.asarray
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty clusters, which are left out
        centres, member = kmeans2(x, count, minit="points", rng=rng, iter=20)
    sizes = np.bincount(member, minlength=count)
    kept = sizes > 0
    means = np.bincount(member, weights=y, minlength=count)[kept] / sizes[kept]
    return _small_set_risk(bench, asarray(centres[kept]), asarray(means), rng)


def _hessian_risk(bench: Bench, teacher: Network, m2: int) -> float:
    """Rows uniform in the top-r eigenspace of the estimated E[y (x x^T - I)], head from M2 labels of the teacher."""
    encoded, task = bench.encoded, bench.encoded.task
    estimate = encoded.xp.zeros((task.d, task.d), dtype=encoded.xp.float64)
    for chunk, xi in encoded.stream:
        label = encoded.residual(chunk, encoded.model.labels(chunk, xi))
        estimate += (chunk * label[:, None]).T @ chunk
    values, vectors = np.linalg.eigh(to_numpy(estimate) / encoded.stream.n)
    basis = vectors[:, np.argsort(-np.abs(values))[: task.r]]
    rng, asarray = encoded.rng("retrain-again"), encoded.student.asarray
    rows = asarray(_random_rows(task, task.r, rng) @ basis.T)
    return bench.risk(bench.fit_labels(teacher, rows, asarray(rng.standard_normal(task.L)), m2))


def _random_feature_risk(bench: Bench) -> float:
    return bench.risk(bench.fit_real(*_random_features(bench)))


def _labels_alone_risk(bench: Bench, teacher: Network, count: int) -> float:
    return bench.risk(bench.fit_labels(teacher, *_random_features(bench), count))


def _random_features(bench: Bench) -> tuple[Any, Any]:
    """Rows uniform on the sphere of R^d, and biases."""
    task, rng, asarray = bench.encoded.task, bench.encoded.rng("baselines"), bench.encoded.student.asarray
    return asarray(_random_rows(task, task.d, rng)), asarray(rng.standard_normal(task.L))


def _random_rows(task: Task, k: int, rng: np.random.Generator) -> Float[np.ndarray, "L k"]:
    """Uniform on the sphere of R^k, at the norm of every first layer."""
    rows = rng.standard_normal((task.L, k))
    return rows * (task.row_norm / np.linalg.norm(rows, axis=1, keepdims=True))
