"""The second layer: ridge heads along a grid of penalties, and the labels that carry a head.

    Phi   features relu(W x + b), (n, L)        a(lambda) = argmin (1/n) |Phi a - y|^2 + lambda t |a|^2,   t = tr(Phi^T Phi)/(n L)

One eigendecomposition gives the whole path. The penalty is relative to the mean eigenvalue t, and is picked on held-out data
from one grid (PENALTIES) for every head: the teacher's, the student's and the baselines'.

Line inputs x_m = t_m v recover a head from labels exactly: along a line each neuron has one kink t = -b_i/(w_i.v), the L features are
linearly independent, and L inputs on different pieces of the line make Phi invertible at M2 = L, unless one lies on a piece where every
neuron is dead. Rows in pairs of opposite sign, which a symmetric start gives, open half to each side: such a piece can only be the middle
one, the one of L + 1 that M2 = L leaves out (derived here; the count of L labels is Chen, Huang, Weng, NeurIPS 2024, theorem 4.2).
"""

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from sims.arrays import to_numpy
from theory.distill.problem import Diverged

PENALTIES = tuple(float(10.0**k) for k in np.arange(-10.0, 1.01, 0.5))
"""The one grid of relative penalties."""


def features(rows: Float[Any, "L d"], biases: Float[Any, "L"], x: Float[Any, "n d"]) -> Float[Any, "n L"]:
    """relu(x W^T + b)."""
    xp = array_namespace(x)
    z = x @ rows.T + biases
    return xp.maximum(z, xp.zeros_like(z[:1, :1]))


def ridge_path(phi: Float[Any, "n L"], y: Float[Any, "n"], penalties: tuple[float, ...] = PENALTIES) -> Float[Any, "L p"]:
    """Heads for every penalty, one column each, in float64."""
    xp = array_namespace(phi)
    phi, y = xp.astype(phi, xp.float64), xp.astype(y, xp.float64)
    n = phi.shape[0]
    eigenvalues, basis = xp.linalg.eigh(phi.T @ phi / n)
    eigenvalues = xp.maximum(eigenvalues, xp.zeros_like(eigenvalues))
    mean = float(xp.mean(eigenvalues))
    if not 0.0 < mean < float("inf"):
        raise Diverged(f"ridge head: mean squared feature is {mean}")
    projected = basis.T @ (phi.T @ y / n)
    shrunk = projected[:, None] / (eigenvalues[:, None] + mean * xp.asarray(penalties, dtype=xp.float64)[None, :])
    return basis @ shrunk


def risks(phi: Float[Any, "n L"], heads: Float[Any, "L p"], y: Float[Any, "n"]) -> Float[np.ndarray, "p"]:
    """Mean squared error of every head over the mean square of y, on the host."""
    xp = array_namespace(phi)
    error = xp.astype(phi, heads.dtype) @ heads - xp.astype(y, heads.dtype)[:, None]
    return to_numpy(xp.mean(error * error, axis=0) / xp.mean(xp.astype(y, heads.dtype) ** 2))


def select(phi: Float[Any, "n L"], heads: Float[Any, "L p"], y: Float[Any, "n"]) -> Float[Any, "L"]:
    """The head with the least error on held-out data."""
    return heads[:, int(np.argmin(risks(phi, heads, y)))]


def line_inputs(rows: Float[Any, "L d"], biases: Float[Any, "L"], v: Float[Any, "d"], m2: int) -> Float[Any, "M2 d"]:
    """M2 inputs t_m v, the t_m spread over the L + 1 intervals between the kinks -b_i/(w_i.v), computed from the network alone.

    For M2 <= L + 1 each input lies alone in its interval (evenly chosen intervals); beyond, intervals are shared.
    """
    xp = array_namespace(rows)
    kinks = xp.sort(-biases / (rows @ v))
    width = kinks.shape[0]
    if m2 < 1:
        raise ValueError(f"need at least one label: M2={m2}")
    spacing = (kinks[-1] - kinks[0]) / width
    edges = xp.concat([kinks[:1] - spacing, kinks, kinks[-1:] + spacing])
    place = xp.asarray((np.arange(m2) + 0.5) * (width + 1) / m2, dtype=rows.dtype)
    interval = xp.astype(xp.floor(place), xp.int64)
    left, right = xp.take(edges, interval), xp.take(edges, interval + 1)
    inside = 0.5 if m2 <= width + 1 else place - xp.floor(place)
    return (left + (right - left) * inside)[:, None] * v[None, :]


def least_norm_head(phi: Float[Any, "M2 L"], y: Float[Any, "M2"]) -> Float[Any, "L"]:
    """The least-norm solution of Phi a = y: where gradient descent from zero ends."""
    xp = array_namespace(phi)
    return xp.linalg.lstsq(phi, y, rcond=None)[0]
