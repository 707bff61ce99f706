"""The two-phase distillation of a multi-index task by a two-layer network, from real (streamed) samples.

    phase 1   T1 teacher gradient  g_i = (1/N) sum_n y_n x_n 1{w_i.x_n >= 0}, y after preprocessing (mean and linear part removed)
              T2 T3 one matching step moves M1 small random points: x~_m <- -(step) d match / d x~_m, averaged over J initialisations,
                    weight decay 1/step erasing the start; to leading order x~_m is proportional to H x~_m^(0)
              T4 retraining        from a fresh start, w_i^(1) = step a_i (1/M1) sum_m y~_m x~_m 1{w_i.x~_m >= 0}, biases drawn again
    phase 2   T5 teacher head a_T, T6 labels y^_m = f(x^_m) on inputs regenerated from a seed, T7 the student's head (sims.heads)

The working model behind the paper's abstract (Kinoshita et al., arXiv:2603.14830) is our own reconstruction, derived in
theory.predictions; initialisation and erasing weight decay follow Damian, Lee, Soltanolkotabi (COLT 2022). At a symmetric start
f = 0, the rows come in pairs (w, a), (w, -a), so L/2 rows a start are computed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from sims.arrays import GaussianStream, is_cupy
from sims.student import Batch, Student
from theory import two_layer
from theory.distill.adjoint import sweep, unroll
from theory.distill.inner_optim import SGD
from theory.distill.leaves import Array, Leaves, axpy, scale, zeros_like
from theory.distill.matching import DISTANCES, PerformanceMatching, gradient_matching
from theory.distill.problem import Diverged
from theory.distill.truncation import Window
from theory.multi_index import MultiIndexModel

PREPROCESSING = ("ols", "one-shot", "none")
MATCHING = (*DISTANCES, "performance")
BLOCK_BYTES, LEAST_BLOCK = 4 * 2**20, 512  # of one block of pre-activations: its size, and its least number of samples


@dataclass(frozen=True, eq=False)
class Residual:
    """What preprocessing removes from a label: alpha + beta.x."""

    alpha: float
    beta: Float[Any, "d"]

    def __call__(self, x: Float[Any, "n d"], y: Float[Any, "n"]) -> Float[Any, "n"]:
        """y - alpha - beta.x."""
        return y - self.alpha - x @ self.beta


def fit_residual(model: MultiIndexModel, stream: GaussianStream, method: str = "ols") -> Residual:
    """One pass over the stream.

    ols        least squares on (1, x): residuals orthogonal to both on this very sample
    one-shot   alpha = mean y, beta = mean y x (Damian et al., COLT 2022)
    none       nothing removed
    """
    xp, d = stream.xp, stream.d
    if method not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {method!r}; known: {', '.join(PREPROCESSING)}")
    if method == "none":
        return Residual(0.0, xp.zeros(d, dtype=getattr(xp, stream.dtype)))
    if method == "ols" and stream.n <= d + 1:
        raise ValueError(f"least squares needs N > d + 1 samples: N={stream.n}, d={d}")
    gram, moment = xp.zeros((d + 1, d + 1), dtype=xp.float64), xp.zeros(d + 1, dtype=xp.float64)
    for x, xi in stream:
        padded = xp.concat([xp.ones((x.shape[0], 1), dtype=x.dtype), x], axis=1)
        gram += padded.T @ padded
        moment += padded.T @ model.labels(x, xi)
    theta = xp.linalg.solve(gram, moment[:, None])[:, 0] if method == "ols" else moment / stream.n
    return Residual(float(theta[0]), xp.astype(theta[1:], getattr(xp, stream.dtype)))


def teacher_rows(model: MultiIndexModel, stream: GaussianStream, residual: Residual, w: Float[Any, "K d"]) -> Float[Any, "K d"]:
    """g(w_i) for every row of w: two matrix products of size n x d x K for every n samples, accumulated in float64.

    On a processor a chunk is taken in blocks of n samples whose pre-activations (n, K) stay in its cache between the two products.
    """
    xp, block = stream.xp, _samples_in_cache(stream, w)
    rows, z = xp.zeros(w.shape, dtype=xp.float64), xp.empty((block, w.shape[0]), dtype=w.dtype)
    for x, xi in stream:
        y = residual(x, model.labels(x, xi))
        for start in range(0, x.shape[0], block):
            stop = min(start + block, x.shape[0])
            part = x[start:stop, :]
            rows += _gate_weights(xp, part, w, y[start:stop], z[: stop - start, :]).T @ part
    return xp.astype(rows / stream.n, w.dtype)


def _samples_in_cache(stream: GaussianStream, w: Array) -> int:
    """Rows of a block: (n, K) within BLOCK_BYTES, but enough of them that adding up K d sums a block costs little beside 4 n K d."""
    if is_cupy(stream.xp):
        return min(stream.chunk, stream.n)
    return min(stream.chunk, stream.n, max(LEAST_BLOCK, BLOCK_BYTES // (w.shape[0] * np.dtype(stream.dtype).itemsize)))


@cache
def _device_gate() -> Any:
    import cupy  # pyright: ignore[reportMissingImports]

    return cupy.ElementwiseKernel("T z, T y", "T out", "out = z >= 0 ? y : (T)0", "gate_weights")


def _gate_weights(xp: Any, x: Array, w: Array, y: Array, z: Array) -> Array:
    """y_n 1{w_i.x_n >= 0}, in the storage of z (n, K) where the namespace can write into it: one read and one write after the product."""
    if is_cupy(xp):
        z = xp.matmul(x, w.T, out=z)
        return _device_gate()(z, y[:, None], z)
    if isinstance(z, np.ndarray):
        return np.multiply(np.matmul(x, w.T, out=z) >= 0, y[:, None], out=z)
    return xp.where(x @ w.T >= 0, y[:, None], xp.zeros_like(z))


@dataclass(frozen=True, eq=False)
class RowsOnly:
    """A two-layer inner problem of which only the rows W are trained: gradients of a and b are zero. theta = (a, W, b)."""

    problem: Student

    def init(self, rng: np.random.Generator) -> Leaves:
        """The problem's start."""
        return self.problem.init(rng)

    def draw(self, rng: np.random.Generator) -> Batch:
        """The problem's noise."""
        return self.problem.draw(rng)

    def gradient(self, theta: Leaves, s: Leaves, xi: Batch) -> Leaves:
        """(0, d loss / d W, 0)."""
        return rows_part(self.problem.gradient(theta, s, xi))

    def second_order(self, theta: Leaves, s: Leaves, xi: Batch, c: Leaves) -> tuple[Leaves, Leaves]:
        """Transpose products of the masked gradient."""
        return self.problem.second_order(theta, s, xi, rows_part(c))

    def mixed(self, theta: Leaves, s: Leaves, xi: Batch, c: Leaves) -> Leaves:
        """The mixed product of the masked gradient."""
        return self.problem.mixed(theta, s, xi, rows_part(c))


def rows_part(theta: Leaves) -> Leaves:
    """(0, W, 0)."""
    xp = array_namespace(*theta)
    return xp.zeros_like(theta[0]), theta[1], xp.zeros_like(theta[2])


@dataclass(frozen=True, eq=False)
class StreamedLoss:
    """The real loss (1/2N) sum_n (f(x_n) - y_n)^2 over a stream, as performance matching needs it."""

    model: MultiIndexModel
    stream: GaussianStream
    residual: Residual

    def draw(self, rng: np.random.Generator) -> None:
        """The whole stream: no noise."""
        return

    def loss_and_gradient(self, theta: Leaves, xi: None) -> tuple[float, Leaves]:
        """(loss, d loss / d theta), one pass."""
        total, grad = 0.0, zeros_like(theta)
        for x, noise in self.stream:
            value, part = two_layer.loss_and_gradient(theta, (x, self.residual(x, self.model.labels(x, noise))))
            total, grad = total + value * x.shape[0], axpy(x.shape[0], part, grad)
        return total / self.stream.n, scale(1.0 / self.stream.n, grad)


def matching_gradient(student: Student, starts: Sequence[Leaves], rows: Float[Any, "K d"], x: Float[Any, "M1 d"], distance: str) -> Array:
    """T3 by gradient matching: d/dx~ of the mean over starts of dist(student gradient, teacher gradient), labels y~ = 1.

    `rows` stacks g(w_i) of each start's L/2 distinct rows (K = J L/2), in the order of `starts`. At a symmetric start the teacher's
    gradient of row i is -a_i g(w_i).
    """
    problem, xp = RowsOnly(student), array_namespace(x)
    half = student.width // 2
    total = xp.zeros_like(x)
    for j, theta in enumerate(starts):
        g = rows[j * half : (j + 1) * half, :]
        g_t = (xp.zeros_like(theta[0]), -theta[0][:, None] * xp.concat([g, g], axis=0), xp.zeros_like(theta[2]))
        s = (x, xp.ones(x.shape[0], dtype=x.dtype))
        total = total + gradient_matching(problem, DISTANCES[distance], theta, s, None, g_t)[1][0]
    return total / len(starts)


def performance_gradient(student: Student, starts: Sequence[Leaves], loss: StreamedLoss, x: Float[Any, "M1 d"], lr: float) -> Array:
    """T3 by performance matching: d/dx~ of the mean over starts of the real loss after one inner step of size lr on (x~, 1)."""
    problem, xp, objective, optimiser = RowsOnly(student), array_namespace(x), PerformanceMatching(loss), SGD(lr)
    s = (x, xp.ones(x.shape[0], dtype=x.dtype))
    total = xp.zeros_like(x)
    for theta in starts:
        tape = unroll(problem, optimiser, s, theta, [None], Window(0, 1))
        _, lam, _ = objective.value_and_grad(tape.end.theta, s, None)
        total = total + sweep(problem, optimiser, s, tape, lam).grad_s[0]
    return total / len(starts)


def erased_step(gradient: Float[Any, "M1 d"]) -> Float[Any, "M1 d"]:
    """The points after x~ - step (gradient + x~/step) = -step gradient, step set so that the root-mean-square norm is one.

    The common scale of the points is free: retraining fixes its own step size.
    """
    return -unit_rms(gradient, "distilled points")


def first_layer(student: Student, theta: Leaves, s: Leaves, row_norm: float) -> Float[Any, "L d"]:
    """T1, T4: rows after one step from a symmetric start on s = (x, y) whose weight decay erases the start, w_i = step a_i (1/M) sum_m
    y_m x_m 1{w_i.x_m >= 0}; the step set so that their root-mean-square norm is `row_norm`.
    """
    return -row_norm * unit_rms(RowsOnly(student).gradient(theta, s, None)[1], "rows of the first layer")


def retrained_rows(student: Student, theta: Leaves, points: Float[Any, "M1 d"], row_norm: float, reflected: bool) -> Float[Any, "L d"]:
    """T4: the first layer trained on (x~, 1).

    `reflected` uses each stored point as x~ and as -x~, so that the gate acts as half a sign and the mean point cancels.
    """
    xp = array_namespace(points)
    x = xp.concat([points, -points], axis=0) if reflected else points
    return first_layer(student, theta, (x, xp.ones(x.shape[0], dtype=x.dtype)), row_norm)


def unit_rms(x: Float[Any, "n d"], what: str) -> Float[Any, "n d"]:
    """x over the root-mean-square norm of its rows; Diverged, naming `what`, where that is 0 or not finite."""
    xp = array_namespace(x)
    rms = float(xp.sqrt(xp.mean(xp.sum(x * x, axis=1))))
    if not 0.0 < rms < math.inf:
        raise Diverged(f"{what}: root-mean-square norm is {rms}")
    return x / rms
