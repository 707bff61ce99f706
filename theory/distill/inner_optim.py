"""First-order optimisers as pure maps on (theta, slots), each with its adjoint.

A step maps (theta_t, slots_t, g_t) to (theta_{t+1}, slots_{t+1}); t counts from 0 over the whole run, also when only a window of it
is differentiated (an int, or a 0-d array where it is to be data for a compiler). The adjoint takes cotangents (lam, mu) of the outputs
to cotangents of the inputs:

    lam'    cotangent of theta_t, the path through g_t left out (the caller adds (d g / d theta)^T c)
    mu'     cotangents of slots_t
    c       cotangent of g_t
    d_lr    cotangent of the step size, a 0-d array

Formulas derived here by the chain rule; tests/theory/distill holds them against autograd and central differences.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from array_api_compat import array_namespace

from theory.distill.leaves import Array, Leaves, add, axpy, dot, scale, zeros_like, zip_map

Slots: TypeAlias = tuple[Leaves, ...]
Count: TypeAlias = int | Array


class Cotangents(NamedTuple):
    """What an optimiser's adjoint returns."""

    lam: Leaves
    slots: Slots
    c: Leaves
    d_lr: Any


@runtime_checkable
class InnerOptimiser(Protocol):
    """A first-order optimiser and its adjoint."""

    @property
    def lr(self) -> float:
        """The step size."""
        ...

    def init(self, theta: Leaves) -> Slots:
        """The slots before the first step."""
        ...

    def step(self, theta: Leaves, slots: Slots, t: Count, g: Leaves) -> tuple[Leaves, Slots]:
        """(theta_{t+1}, slots_{t+1})."""
        ...

    def recovered(self, theta: Leaves, slots: Slots, slots_next: Slots) -> Leaves | None:
        """g_t from the state before step t and the slots after it; None where they do not tell it and a tape must store it.

        Exact to rounding of the slots: relative to g_t the error is that of |m|/|g_t|, and as small as it is where the adjoint weighs g_t.
        """
        ...

    def adjoint(self, theta: Leaves, slots: Slots, t: Count, g: Leaves, lam: Leaves, mu: Slots) -> Cotangents:
        """Cotangents at step t from those at step t + 1."""
        ...


def _require_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name} must be positive: {name}={value}")


def _require_unit(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1): {name}={value}")


@dataclass(frozen=True)
class SGD:
    """theta' = theta - lr (g + wd theta)."""

    lr: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require_positive("lr", self.lr)

    def init(self, theta: Leaves) -> Slots:
        return ()

    def step(self, theta: Leaves, slots: Slots, t: Count, g: Leaves) -> tuple[Leaves, Slots]:
        return axpy(-self.lr, axpy(self.weight_decay, theta, g), theta), ()

    def recovered(self, theta: Leaves, slots: Slots, slots_next: Slots) -> None:
        return None  # lr g is the small difference of two theta: too much of it would be rounding

    def adjoint(self, theta: Leaves, slots: Slots, t: Count, g: Leaves, lam: Leaves, mu: Slots) -> Cotangents:
        d_lr = -dot(lam, axpy(self.weight_decay, theta, g))
        return Cotangents(scale(1.0 - self.lr * self.weight_decay, lam), (), scale(-self.lr, lam), d_lr)


@dataclass(frozen=True)
class Momentum:
    """v' = momentum v + g + wd theta;  theta' = theta - lr v'   (no dampening, no Nesterov)."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require_positive("lr", self.lr)
        _require_unit("momentum", self.momentum)

    def init(self, theta: Leaves) -> Slots:
        return (zeros_like(theta),)

    def _velocity(self, theta: Leaves, slots: Slots, g: Leaves) -> Leaves:
        return axpy(self.momentum, slots[0], axpy(self.weight_decay, theta, g))

    def step(self, theta: Leaves, slots: Slots, t: Count, g: Leaves) -> tuple[Leaves, Slots]:
        v = self._velocity(theta, slots, g)
        return axpy(-self.lr, v, theta), (v,)

    def recovered(self, theta: Leaves, slots: Slots, slots_next: Slots) -> Leaves:
        return axpy(-self.weight_decay, theta, axpy(-self.momentum, slots[0], slots_next[0]))

    def adjoint(self, theta: Leaves, slots: Slots, t: Count, g: Leaves, lam: Leaves, mu: Slots) -> Cotangents:
        c = axpy(-self.lr, lam, mu[0])
        d_lr = -dot(lam, self._velocity(theta, slots, g))
        return Cotangents(axpy(self.weight_decay, c, lam), (scale(self.momentum, c),), c, d_lr)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1), no weight decay.

    m' = b1 m + (1 - b1) g;  v' = b2 v + (1 - b2) g^2;  theta' = theta - lr mhat / (sqrt(vhat) + eps),
    mhat = m' / (1 - b1^(t+1)), vhat = v' / (1 - b2^(t+1)). The derivative of sqrt at 0 is taken as 0.
    """

    lr: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _require_positive("lr", self.lr)
        _require_unit("b1", self.b1)
        _require_unit("b2", self.b2)
        _require_positive("eps", self.eps)

    def init(self, theta: Leaves) -> Slots:
        return zeros_like(theta), zeros_like(theta)

    def _moments(self, slots: Slots, g: Leaves) -> Slots:
        m = zip_map(lambda m, x: self.b1 * m + (1.0 - self.b1) * x, slots[0], g)
        v = zip_map(lambda v, x: self.b2 * v + (1.0 - self.b2) * x * x, slots[1], g)
        return m, v

    def _direction(self, moments: Slots, t: Count) -> tuple[Leaves, Leaves, Leaves]:
        """(mhat, sqrt(vhat), mhat / (sqrt(vhat) + eps))."""
        mhat = scale(1.0 / (1.0 - self.b1 ** (t + 1)), moments[0])
        root = zip_map(lambda v: array_namespace(v).sqrt(v / (1.0 - self.b2 ** (t + 1))), moments[1])
        return mhat, root, zip_map(lambda a, b: a / (b + self.eps), mhat, root)

    def step(self, theta: Leaves, slots: Slots, t: Count, g: Leaves) -> tuple[Leaves, Slots]:
        moments = self._moments(slots, g)
        return axpy(-self.lr, self._direction(moments, t)[2], theta), moments

    def recovered(self, theta: Leaves, slots: Slots, slots_next: Slots) -> Leaves:
        return scale(1.0 / (1.0 - self.b1), axpy(-self.b1, slots[0], slots_next[0]))

    def adjoint(self, theta: Leaves, slots: Slots, t: Count, g: Leaves, lam: Leaves, mu: Slots) -> Cotangents:
        moments = self._moments(slots, g)
        mhat, root, direction = self._direction(moments, t)
        m_bar = zip_map(lambda a, q, b: a - self.lr * q / ((1.0 - self.b1 ** (t + 1)) * (b + self.eps)), mu[0], lam, root)

        def second_moment(a: Any, q: Any, mh: Any, b: Any) -> Any:
            xp = array_namespace(b)
            half_inverse_root = xp.where(b > 0.0, 0.5 / xp.where(b > 0.0, b, xp.ones_like(b)), xp.zeros_like(b))
            return a + self.lr * q * mh * half_inverse_root / ((b + self.eps) ** 2 * (1.0 - self.b2 ** (t + 1)))

        v_bar = zip_map(second_moment, mu[1], lam, mhat, root)
        c = add(scale(1.0 - self.b1, m_bar), zip_map(lambda a, x: 2.0 * (1.0 - self.b2) * a * x, v_bar, g))
        return Cotangents(lam, (scale(self.b1, m_bar), scale(self.b2, v_bar)), c, -dot(lam, direction))
