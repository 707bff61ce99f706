"""Independent derivatives to hold the closed forms against: central differences, and one autograd graph through a whole run.

Nothing here calls the code under test for a derivative. The one-graph unroll writes SGD, momentum and Adam anew with torch and
create_graph; the derivative of sqrt at 0 is taken as 0, the convention of the adjoints (a dead unit would otherwise give NaN).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.leaves import Leaves, axpy

Tensors = tuple[torch.Tensor, ...]


def to_numpy(x: Any) -> np.ndarray:
    """An array of any namespace on the host."""
    if isinstance(x, torch.Tensor):
        return x.detach().cpu().numpy()
    return np.asarray(x.get() if hasattr(x, "get") else x)


def to_torch(x: Leaves) -> Tensors:
    """Leaves of any namespace as fresh float64 tensors."""
    return tuple(torch.tensor(to_numpy(a), dtype=torch.float64) for a in x)


def relative_error(x: Leaves, reference: Leaves) -> float:
    """||x - reference|| / ||reference|| over all leaves (the absolute error where the reference vanishes)."""
    pairs = [(to_numpy(a).astype(np.float64), to_numpy(b).astype(np.float64)) for a, b in zip(x, reference, strict=True)]
    assert all(a.shape == b.shape for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    error = sum(float(np.sum((a - b) ** 2)) for a, b in pairs) ** 0.5
    size = sum(float(np.sum(b**2)) for _, b in pairs) ** 0.5
    return error / size if size > 0 else error


def dense_gradient(f: Callable[[Leaves], float], x: Leaves, step: float = 1e-6) -> Leaves:
    """Central differences of a scalar function, one coordinate of NumPy leaves at a time."""
    out = []
    for i, leaf in enumerate(x):
        grad = np.zeros_like(leaf)
        for place in np.ndindex(*leaf.shape):
            shift = np.zeros_like(leaf)
            shift[place] = step
            up, down = (f((*x[:i], leaf + sign * shift, *x[i + 1 :])) for sign in (1.0, -1.0))
            grad[place] = (up - down) / (2.0 * step)
        out.append(grad)
    return tuple(out)


def difference_along(f: Callable[[Leaves], Leaves], x: Leaves, v: Leaves, step: float = 1e-6) -> Leaves:
    """J v by one central difference, J the Jacobian of a map between leaves of any namespace."""
    up, down = f(axpy(step, v, x)), f(axpy(-step, v, x))
    return tuple((a - b) / (2.0 * step) for a, b in zip(up, down, strict=True))


def two_layer_loss(theta: Tensors, s: Tensors) -> torch.Tensor:
    """(1/2M) sum_m (sum_i a_i relu(w_i.x_m + b_i) - y_m)^2, written with torch's own layers."""
    a, w, b = theta
    x, y = s
    hidden = torch.nn.functional.linear(x, w, b).relu()
    return 0.5 * torch.nn.functional.mse_loss(hidden.mv(a), y)


def safe_sqrt(v: torch.Tensor) -> torch.Tensor:
    """sqrt with derivative 0 at 0."""
    live = v > 0
    return torch.where(live, torch.where(live, v, torch.ones_like(v)).sqrt(), torch.zeros_like(v))


def optimiser_step(
    optimiser: InnerOptimiser, lr: torch.Tensor, theta: Tensors, slots: tuple[Tensors, ...], t: int, g: Tensors
) -> tuple[Tensors, tuple[Tensors, ...]]:
    """One differentiable step, written from the textbook formulas coordinate by coordinate."""
    match optimiser:
        case SGD(weight_decay=wd):
            return tuple(p - lr * (q + wd * p) for p, q in zip(theta, g, strict=True)), ()
        case Momentum(momentum=mu, weight_decay=wd):
            buffers = tuple(mu * v + (q + wd * p) for p, q, v in zip(theta, g, slots[0], strict=True))
            return tuple(p - lr * v for p, v in zip(theta, buffers, strict=True)), (buffers,)
        case Adam(b1=b1, b2=b2, eps=eps):
            first = tuple(m.mul(b1) + q.mul(1 - b1) for m, q in zip(slots[0], g, strict=True))
            second = tuple(v.mul(b2) + q.pow(2).mul(1 - b2) for v, q in zip(slots[1], g, strict=True))
            parts = zip(theta, first, second, strict=True)
            correction = (1 - b1 ** (t + 1), 1 - b2 ** (t + 1))
            return tuple(p - lr * (m / correction[0]) / (safe_sqrt(v / correction[1]) + eps) for p, m, v in parts), (first, second)
    raise NotImplementedError(f"no oracle for {type(optimiser).__name__}")


def detached(x: Tensors) -> Tensors:
    """The same numbers as leaves of a new graph."""
    return tuple(p.detach().requires_grad_() for p in x)


class OneGraph(NamedTuple):
    """What an autograd unroll gives: the objective, its gradients in S and log(lr), and in theta at the window's start."""

    value: float
    grad_s: Leaves
    grad_log_lr: float
    lam: Leaves


def one_graph(
    loss: Callable[[Tensors, Tensors, Any], torch.Tensor],
    objective: Callable[[Tensors, Tensors], torch.Tensor],
    optimiser: InnerOptimiser,
    s: Leaves,
    theta: Leaves,
    noises: Sequence[Any],
    start: int,
    stop: int,
    *,
    curvature: bool = True,
) -> OneGraph:
    """Runs `start` steps, detaches the state, then differentiates objective(theta_stop, S) through one graph of the rest.

    The run starts with zero slots; `noises` are the same draws that the sweep replays. Without `curvature` g is taken at a theta cut off
    from the graph, a function of S alone.
    """
    s_leaf = detached(to_torch(s))
    log_lr = torch.tensor(float(optimiser.lr), dtype=torch.float64).log().requires_grad_()
    state = detached(to_torch(theta))
    slots = tuple(tuple(torch.zeros_like(p) for p in state) for _ in range({SGD: 0, Momentum: 1, Adam: 2}[type(optimiser)]))
    window_start = state
    for t in range(stop):
        if t <= start:
            window_start = state = detached(state)
            slots = tuple(detached(slot) for slot in slots)
        at = state if curvature else detached(state)
        g = torch.autograd.grad(loss(at, s_leaf, noises[t]), at, create_graph=True)
        state, slots = optimiser_step(optimiser, log_lr.exp(), state, slots, t, g)
    value = objective(state, s_leaf)
    grads = torch.autograd.grad(value, (*s_leaf, log_lr, *window_start))
    n = len(s_leaf)
    return OneGraph(
        float(value.detach()), tuple(to_numpy(q) for q in grads[:n]), float(grads[n].detach()), tuple(to_numpy(q) for q in grads[n + 1 :])
    )
