"""The two-layer network trained on distilled data, as an inner problem for `theory.distill`, and its loss on real data.

    theta   (a (L,), W (L, d), b (L,))      f(x) = sum_i a_i relu(w_i.x + b_i), formulas in theory.two_layer
    S       (x (M, d), y (M,)), or (x,) where the labels are given once and not learned
    xi      indices of the sub-batch of S that a step sees (drawn without replacement), or None for all of S

Arrays may come from any namespace (NumPy, CuPy, torch); randomness is drawn by NumPy on the host and moved, so that every
namespace sees the same numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy
import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of
from jaxtyping import Float, Int

from theory import two_layer
from theory.distill.leaves import Array, Leaves, zip_map

INITS: dict[str, Callable[[int, int, np.random.Generator], Leaves]] = {
    "symmetric": two_layer.symmetric_init,
    "gaussian": two_layer.gaussian_init,
}
"""Fresh parameters by name, each a function of (d, L, generator)."""

Batch = Int[np.ndarray, "batch"] | None
"""Row indices on the host, or None for all rows."""


def draw_batch(rows: int, batch: int | None, rng: np.random.Generator) -> Batch:
    """`batch` distinct row indices below `rows`, or None (all rows) where no batch size is given."""
    return None if batch is None else rng.choice(rows, size=batch, replace=False)


def check_batch(rows: int, batch: int | None) -> None:
    """Refuses a batch size that cannot be drawn."""
    if batch is not None and not 1 <= batch <= rows:
        raise ValueError(f"a batch needs between 1 and {rows} points: batch={batch}")


def _take(x: Array, rows: Batch) -> Array:
    if rows is None:
        return x
    xp = array_namespace(x)
    return xp.take(x, xp.asarray(rows, device=device_of(x)), axis=0)


def _spread(part: Array, rows: Batch, count: int) -> Array:
    """The transpose of `_take`: the rows of `part` at their places among `count` rows, zeros elsewhere.

    A gather from [part; 0] through the inverse index, because array namespaces share no scatter.
    """
    if rows is None:
        return part
    xp = array_namespace(part)
    inverse = np.full(count, rows.shape[0])
    inverse[rows] = np.arange(rows.shape[0])
    padded = xp.concat([part, xp.zeros_like(part[:1, ...])], axis=0)
    return xp.take(padded, xp.asarray(inverse, device=device_of(part)), axis=0)


@dataclass(frozen=True, eq=False)
class Student:
    """The inner problem: one training run of the two-layer network on S.

    `points` is the number M of distilled points and is needed only with a `batch`. With `labels` given, S = (x,). `init_scale` multiplies
    the whole start: the output's scale is its square, and a small start lets the rows turn before the head has fitted.
    """

    d: int
    width: int
    init_kind: str = "symmetric"
    init_scale: float = 1.0
    points: int | None = None
    batch: int | None = None
    labels: Float[Any, "M"] | None = None
    xp: Any = array_api_compat.numpy
    dtype: str = "float64"
    device: Any = None

    def __post_init__(self) -> None:
        if self.init_kind not in INITS:
            raise ValueError(f"unknown initialisation {self.init_kind!r}; known: {', '.join(sorted(INITS))}")
        if not 0 < self.init_scale < math.inf:
            raise ValueError(f"the scale of the start must be positive and finite: init_scale={self.init_scale}")
        if self.d < 1 or self.width < 1:
            raise ValueError(f"width and input dimension must be >= 1: L={self.width}, d={self.d}")
        if self.init_kind == "symmetric" and self.width % 2:
            raise ValueError(f"a symmetric start needs an even width: L={self.width}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64: dtype={self.dtype!r}")
        if self.batch is not None and self.points is None:
            raise ValueError(f"sub-batches need the number of distilled points: batch={self.batch}, points=None")
        check_batch(self.points or 0, self.batch)

    def init(self, rng: np.random.Generator) -> Leaves:
        """A fresh theta_0 in this problem's namespace, dtype and device."""
        return zip_map(lambda x: self.asarray(self.init_scale * x), INITS[self.init_kind](self.d, self.width, rng))

    def asarray(self, x: np.ndarray) -> Array:
        """A host array in this problem's namespace, dtype and device."""
        return self.xp.asarray(x, dtype=getattr(self.xp, self.dtype), device=self.device)

    def draw(self, rng: np.random.Generator) -> Batch:
        """The rows of S that one step sees."""
        return draw_batch(self.points or 0, self.batch, rng)

    def _seen(self, s: Leaves, xi: Batch) -> Leaves:
        full = s if self.labels is None else (s[0], self.labels)
        return zip_map(lambda x: _take(x, xi), full)

    def _unseen(self, s: Leaves, xi: Batch, m_c: Leaves) -> Leaves:
        """Cotangents of the seen rows as cotangents of S; a fixed label has none."""
        return tuple(_spread(part, xi, s[0].shape[0]) for part in m_c[: len(s)])

    def loss(self, theta: Leaves, s: Leaves, xi: Batch) -> float:
        """(1/2M) sum_m (f(x_m) - y_m)^2 over the seen rows."""
        return two_layer.loss(theta, self._seen(s, xi))

    def gradient(self, theta: Leaves, s: Leaves, xi: Batch) -> Leaves:
        """d loss / d theta."""
        return two_layer.gradient(theta, self._seen(s, xi))

    def second_order(self, theta: Leaves, s: Leaves, xi: Batch, c: Leaves) -> tuple[Leaves, Leaves]:
        """((d gradient / d theta)^T c, (d gradient / d s)^T c)."""
        h_c, m_c = two_layer.second_order(theta, self._seen(s, xi), c)
        return h_c, self._unseen(s, xi, m_c)

    def mixed(self, theta: Leaves, s: Leaves, xi: Batch, c: Leaves) -> Leaves:
        """(d gradient / d s)^T c."""
        return self._unseen(s, xi, two_layer.mixed(theta, self._seen(s, xi), c))


@dataclass(frozen=True, eq=False)
class RealSample:
    """The real loss of theory.distill.matching.PerformanceMatching: (1/2N) sum_n (f(x_n) - y_n)^2 over all or `batch` rows."""

    x: Float[Any, "N d"]
    y: Float[Any, "N"]
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.x.shape[0] < 1:
            raise ValueError("a real sample needs at least one point: N=0")
        if self.y.shape[0] != self.x.shape[0]:
            raise ValueError(f"inputs and labels must have equal length: {self.x.shape[0]} inputs, {self.y.shape[0]} labels")
        check_batch(self.x.shape[0], self.batch)

    def draw(self, rng: np.random.Generator) -> Batch:
        """The rows of one evaluation."""
        return draw_batch(self.x.shape[0], self.batch, rng)

    def loss_and_gradient(self, theta: Leaves, xi: Batch) -> tuple[float, Leaves]:
        """(loss, d loss / d theta) over the drawn rows."""
        return two_layer.loss_and_gradient(theta, (_take(self.x, xi), _take(self.y, xi)))
