"""Two-layer ReLU network and its loss gradient, with that gradient's transpose products, in closed form.

    f(x) = sum_i a_i relu(w_i.x + b_i)             theta = (a (L,), W (L, d), b (L,))
    loss = (1/2M) sum_m (f(x_m) - y_m)^2           s     = (x (M, d), y (M,))

With gates G_mi = 1{w_i.x_m + b_i >= 0}, errors e_m = f(x_m) - y_m, and a direction c = (c_a, c_W, c_b) in theta-space, the
directional derivative t_m = D_theta f(x_m)[c] gives <c, grad loss> = (1/M) sum_m e_m t_m, whose gradients in theta and s are the
two transpose products. Gates are locally constant, so every formula is exact off the kinks; 1{0} = 1. Derived here.
"""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from theory.distill.leaves import Leaves


class Forward(NamedTuple):
    """Gates (M, L), features relu(z) (M, L) and outputs (M,)."""

    gate: Any
    features: Any
    f: Any


def forward(theta: Leaves, x: Float[Any, "M d"]) -> Forward:
    """Gates, features and values at the rows of x."""
    a, w, b = theta
    xp = array_namespace(x)
    z = x @ w.T + b
    gate = xp.astype(z >= 0, z.dtype)
    features = z * gate
    return Forward(gate, features, features @ a)


def value(theta: Leaves, x: Float[Any, "M d"]) -> Float[Any, "M"]:
    """f at the rows of x."""
    return forward(theta, x).f


def loss(theta: Leaves, s: Leaves) -> float:
    """(1/2M) sum_m (f(x_m) - y_m)^2."""
    e = value(theta, s[0]) - s[1]
    return 0.5 * float(array_namespace(e).mean(e * e))


def _gradient(theta: Leaves, x: Any, parts: Forward, e: Any) -> Leaves:
    """The three parts from e = (f - y)/M."""
    a = theta[0]
    rows = e[:, None] * parts.gate
    return e @ parts.features, a[:, None] * (rows.T @ x), a * array_namespace(x).sum(rows, axis=0)


def gradient(theta: Leaves, s: Leaves) -> Leaves:
    """(d loss / d a, d loss / d W, d loss / d b)."""
    x, y = s
    parts = forward(theta, x)
    return _gradient(theta, x, parts, (parts.f - y) / x.shape[0])


def loss_and_gradient(theta: Leaves, s: Leaves) -> tuple[float, Leaves]:
    """(loss, its gradient in theta) from one forward pass."""
    x, y = s
    parts = forward(theta, x)
    e = parts.f - y
    return 0.5 * float(array_namespace(e).mean(e * e)), _gradient(theta, x, parts, e / x.shape[0])


class _Directional(NamedTuple):
    """Shared parts of both products: scaled errors e/M and tangents t/M, gates, and c's inner products with each point."""

    gate: Any
    features: Any
    e: Any
    t: Any
    gated_shift: Any


def _directional(theta: Leaves, s: Leaves, c: Leaves) -> _Directional:
    a, _, _ = theta
    c_a, c_w, c_b = c
    x, y = s
    gate, features, f = forward(theta, x)
    gated_shift = gate * (x @ c_w.T + c_b)
    count = x.shape[0]
    return _Directional(gate, features, (f - y) / count, (features @ c_a + gated_shift @ a) / count, gated_shift)


def _mixed(theta: Leaves, c: Leaves, parts: _Directional) -> Leaves:
    a, w, _ = theta
    c_a, c_w, _ = c
    d_f = parts.gate @ (a[:, None] * w)
    d_t = parts.gate @ (c_a[:, None] * w + a[:, None] * c_w)
    return parts.t[:, None] * d_f + parts.e[:, None] * d_t, -parts.t


def second_order(theta: Leaves, s: Leaves, c: Leaves) -> tuple[Leaves, Leaves]:
    """((d gradient / d theta)^T c, (d gradient / d s)^T c)."""
    a, _, _ = theta
    c_a = c[0]
    x = s[0]
    xp = array_namespace(x)
    parts = _directional(theta, s, c)
    weight = (parts.t[:, None] * a + parts.e[:, None] * c_a) * parts.gate
    h_a = parts.t @ parts.features + parts.e @ parts.gated_shift
    return (h_a, weight.T @ x, xp.sum(weight, axis=0)), _mixed(theta, c, parts)


def mixed(theta: Leaves, s: Leaves, c: Leaves) -> Leaves:
    """(d gradient / d s)^T c alone."""
    return _mixed(theta, c, _directional(theta, s, c))


def symmetric_init(d: int, width: int, rng: np.random.Generator) -> Leaves:
    """Symmetric start (Damian et al., COLT 2022): a_i = +-1, w_i uniform on the unit sphere, b = 0, the second half of the neurons
    repeating the first with opposite a, so that f is identically zero. float64 NumPy; `width` must be even.
    """
    if width < 2 or width % 2:
        raise ValueError(f"a symmetric start needs an even width >= 2: L={width}")
    if d < 1:
        raise ValueError(f"input dimension must be >= 1: d={d}")
    half = rng.standard_normal((width // 2, d))
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    a = np.where(rng.integers(0, 2, width // 2) == 1, 1.0, -1.0)
    return np.concatenate([a, -a]), np.concatenate([half, half]), np.zeros(width)


def gaussian_init(d: int, width: int, rng: np.random.Generator) -> Leaves:
    """Standard start: a_i ~ N(0, 1/L), w_i ~ N(0, I_d / d), b = 0. float64 NumPy."""
    if width < 1 or d < 1:
        raise ValueError(f"width and input dimension must be >= 1: L={width}, d={d}")
    return rng.standard_normal(width) / np.sqrt(width), rng.standard_normal((width, d)) / np.sqrt(d), np.zeros(width)
