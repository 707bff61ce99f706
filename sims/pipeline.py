"""One task from teacher to test risk: the two-phase distillation as a configuration and a run.

    Task -> Encoded (teacher rows and distilled points) -> Network (rows, biases, head) -> risk

A network predicts alpha + beta.x + a^T relu(W x + b); alpha, beta come from preprocessing (T1) and are shared by the teacher, the
student and the baselines. Risk is E (f - f*)^2 / Var f* on fresh inputs, without label noise. Every random object has its own child of
one root seed (ROLES), so training, retraining, held-out and test draws are disjoint.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from sims import heads, two_phase
from sims.arrays import DTYPES, GaussianStream, child, draws_on_device, namespace
from sims.student import Student
from theory.distill.leaves import Array, Leaves
from theory.distill.problem import Diverged
from theory.multi_index import LINKS, MultiIndexModel, as_backend, draw_model

ROLES = ("model", "train", "validation", "test", "starts", "points", "retrain", "retrain-again", "label-inputs", "baselines")


@dataclass(frozen=True)
class Task:
    """A multi-index task and how it is distilled. Counts are samples, rows, starts or points."""

    d: int = 64  # input dimension
    r: int = 2  # intrinsic dimension
    L: int = 300  # width of the network, even
    J: int = 16  # initialisations that the matching step averages over
    link: str = "cubic"  # named link function of the teacher
    noise: float = 0.0  # standard deviation of the label noise
    samples: float = 32.0  # training samples N in units of d^2
    preprocessing: str = "ols"  # what is removed from the labels: ols, one-shot or none
    matching: str = "squared"  # squared, inner_product, cosine, or performance (through one inner step)
    inner_lr: float = 0.01  # size of the inner step of performance matching
    start_norm: float = 1e-3  # norm of the points before the step, in units of 1/d
    reflected: bool = False  # use each stored point as x and -x at retraining
    row_norm: float = 1.0  # root-mean-square norm of the first-layer rows after their step
    head_samples: int = 20000  # real samples for a head
    validation: int = 10000  # held-out samples that pick the ridge penalty
    test: int = 20000  # test samples
    dtype: str = "float32"  # precision of the streamed passes
    chunk: int = 8192  # samples held at a time

    def __post_init__(self) -> None:
        for name in ("d", "r", "J", "head_samples", "validation", "test", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1: {name}={getattr(self, name)}")
        if self.r > self.d:
            raise ValueError(f"the intrinsic dimension cannot exceed the input dimension: r={self.r} > d={self.d}")
        if self.L < 2 or self.L % 2:
            raise ValueError(f"the symmetric start needs an even width: L={self.L}")
        if not math.isfinite(self.samples):
            raise ValueError(f"the number of samples must be finite: samples={self.samples}")
        if self.N < 1:
            raise ValueError(f"need at least one training sample: N={self.N} (samples={self.samples} in units of d^2={self.d**2})")
        if self.preprocessing == "ols" and self.d + 1 >= self.N:
            raise ValueError(f"least squares needs N > d + 1 samples: N={self.N} (samples={self.samples} in units of d^2), d={self.d}")
        if self.head_samples > self.N:
            raise ValueError(f"heads are fitted on training samples: head_samples={self.head_samples} > N={self.N}")
        for name, known in (
            ("link", LINKS),
            ("preprocessing", two_phase.PREPROCESSING),
            ("matching", two_phase.MATCHING),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(sorted(known))}")
        for name in ("inner_lr", "start_norm", "row_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: {name}={getattr(self, name)}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"the noise standard deviation must be >= 0 and finite: noise={self.noise}")

    @property
    def N(self) -> int:
        """Number of training samples."""
        return round(self.samples * self.d**2)


def task_of(config: Mapping[str, Any]) -> Task:
    """The task in a flat trial configuration; entries that are no field of Task are left alone."""
    return Task(**{f.name: config[f.name] for f in fields(Task)})


def trial_seed(config: Mapping[str, Any], *size: int) -> np.random.SeedSequence:
    """The root seed's own child for a draw (`seed` and `draw` in config) at a size."""
    return np.random.SeedSequence(config["seed"], spawn_key=(*size, config["draw"]))


@dataclass(frozen=True, eq=False)
class Network:
    """The predictor a^T relu(W x + b) of residual labels: rows W (L, d), biases b (L,), head a (L,)."""

    rows: Array
    biases: Array
    head: Array

    def __call__(self, x: Float[Any, "n d"]) -> Float[Any, "n"]:
        """The values at the rows of x, in the head's precision."""
        phi = heads.features(self.rows, self.biases, x)
        return array_namespace(phi).astype(phi, self.head.dtype) @ self.head


@dataclass(frozen=True, eq=False)
class Encoded:
    """What T1 leaves: the teacher's rows g(w_i), L/2 for each of the J starts, and everything that later phases draw on."""

    task: Task
    seeds: dict[str, np.random.SeedSequence]
    xp: Any
    model: MultiIndexModel
    stream: GaussianStream
    residual: two_phase.Residual
    student: Student
    starts: tuple[Leaves, ...]
    rows: Float[Any, "K d"]

    def rng(self, role: str) -> np.random.Generator:
        """A generator for one role; every call gives the same draws."""
        return np.random.default_rng(self.seeds[role])


def encode(task: Task, seed: np.random.SeedSequence, backend: str = "numpy") -> Encoded:
    """T1: draws the task, runs the two streamed passes, and returns the teacher rows of all J starts."""
    xp = namespace(backend)
    children = {role: child(seed, k) for k, role in enumerate(ROLES)}
    dtype = getattr(xp, task.dtype)
    model = as_backend(draw_model(task.d, task.r, task.link, np.random.default_rng(children["model"]), task.noise), xp, dtype)
    stream = GaussianStream(children["train"], task.N, task.d, xp, task.dtype, task.chunk, draws_on_device(backend))
    residual = two_phase.fit_residual(model, stream, task.preprocessing)
    student = Student(task.d, task.L, xp=xp, dtype=task.dtype)
    rng = np.random.default_rng(children["starts"])
    starts = tuple(student.init(rng) for _ in range(task.J))
    rows = two_phase.teacher_rows(model, stream, residual, xp.concat([theta[1][: task.L // 2, :] for theta in starts], axis=0))
    return Encoded(task, children, xp, model, stream, residual, student, starts, rows)


def random_points(encoded: Encoded, m1: int) -> Float[np.ndarray, "M1 d"]:
    """T2: the points before their step, on the host. The first points of a larger set are those of a smaller one."""
    task = encoded.task
    if m1 < 1:
        raise ValueError(f"need at least one distilled point: M1={m1}")
    x0 = encoded.rng("points").standard_normal((m1, task.d))
    return x0 * (task.start_norm / task.d / np.linalg.norm(x0, axis=1, keepdims=True))


def distil_points(encoded: Encoded, m1: int) -> Float[Any, "M1 d"]:
    """T3: M1 distilled points, one erasing step from `random_points`."""
    task, x = encoded.task, encoded.student.asarray(random_points(encoded, m1))
    if task.matching == "performance":
        loss = two_phase.StreamedLoss(encoded.model, encoded.stream, encoded.residual)
        gradient = two_phase.performance_gradient(encoded.student, encoded.starts, loss, x, task.inner_lr)
    else:
        gradient = two_phase.matching_gradient(encoded.student, encoded.starts, encoded.rows, x, task.matching)
    return two_phase.erased_step(gradient)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs with the residual of the clean target (risk) and of the label (fitting)."""

    x: Array
    clean: Array
    label: Array


def draw_samples(encoded: Encoded, role: str) -> Samples:
    """Head samples (the first of the training stream), held-out samples, or test samples."""
    task = encoded.task
    count = {"train": task.head_samples, "validation": task.validation, "test": task.test}[role]
    stream = encoded.stream if role == "train" else replace(encoded.stream, seed=encoded.seeds[role], n=count)
    x, xi = stream.head(count)
    return Samples(x, encoded.residual(x, encoded.model.clean(x)), encoded.residual(x, encoded.model.labels(x, xi)))


@dataclass(frozen=True, eq=False)
class Bench:
    """The samples that heads are fitted, picked and tested on."""

    encoded: Encoded
    train: Samples
    validation: Samples
    test: Samples

    @staticmethod
    def of(encoded: Encoded) -> "Bench":
        """Draws all three."""
        return Bench(encoded, *(draw_samples(encoded, role) for role in ("train", "validation", "test")))

    def fit(self, rows: Array, biases: Array, x: Array, y: Array) -> Network:
        """A ridge head on (x, y), its penalty picked on held-out labels."""
        path = heads.ridge_path(heads.features(rows, biases, x), y)
        return Network(rows, biases, heads.select(heads.features(rows, biases, self.validation.x), path, self.validation.label))

    def fit_real(self, rows: Array, biases: Array) -> Network:
        """T5: a head on real samples."""
        return self.fit(rows, biases, self.train.x, self.train.label)

    def fit_labels(self, source: Network, rows: Array, biases: Array, m2: int) -> Network:
        """T6, T7: a head on the first M2 labels y^ = source(x^)."""
        x = label_inputs(self.encoded, m2)
        return self.fit(rows, biases, x, source(x))

    def risk(self, network: Network) -> float:
        """E (f - f*)^2 / Var f* on the test samples."""
        error = network(self.test.x) - self.encoded.xp.astype(self.test.clean, network.head.dtype)
        value = float(self.encoded.xp.mean(error * error)) / self.encoded.model.link.variance
        if not value < float("inf"):
            raise Diverged(f"test risk is {value}")
        return value


def fresh_network(encoded: Encoded, points: Float[Any, "M1 d"], role: str) -> tuple[Array, Array]:
    """T4: (rows, biases) retrained on the points from the fresh start of a role."""
    rng = encoded.rng(role)
    theta = encoded.student.init(rng)
    rows = two_phase.retrained_rows(encoded.student, theta, points, encoded.task.row_norm, encoded.task.reflected)
    return rows, encoded.student.asarray(rng.standard_normal(encoded.task.L))


def teacher_network(bench: Bench) -> Network:
    """The full-data teacher of the first start: rows step a_i g(w_i) at the same norm, fresh biases, head on real samples."""
    encoded = bench.encoded
    a, g = encoded.starts[0][0], encoded.rows[: encoded.task.L // 2, :]
    rows = encoded.task.row_norm * two_phase.unit_rms(encoded.xp.concat([g, g], axis=0) * a[:, None], "rows of the teacher")
    return bench.fit_real(rows, encoded.student.asarray(encoded.rng("baselines").standard_normal(encoded.task.L)))


def label_inputs(encoded: Encoded, m2: int) -> Float[Any, "M2 d"]:
    """T6: the Gaussian inputs of M2 labels, regenerated from their seed; prefixes agree."""
    return encoded.student.asarray(encoded.rng("label-inputs").standard_normal((m2, encoded.task.d)))
