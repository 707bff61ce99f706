"""A low-rank symmetric stand-in for the Hessian of the training loss, from Hessian-vector products alone.

    H          d^2 loss / d theta^2 at one recorded step, p x p, never formed; u -> H u is one product of the problem
    Omega      p x l Gaussian, l = min(k + oversample, p)
    Y = H Omega;  `power` times Y <- H qr(Y);  Q = qr(Y);  B = Q^T H Q, symmetrised;  B = V diag(mu) V^T
    H~ = U diag(mu) U^T with U = Q V, the k eigenpairs of largest |mu|, their signs kept

(randomised range finder with power iterations: Halko, Martinsson, Tropp, SIAM Review 2011, algorithms 4.4 and 5.3.) It costs
l (power + 2) Hessian-vector products and p k floats, while the exact sweep needs one product a step and forms no H either: work is saved
only where one sketch serves more steps than it cost products. AT-BPTT (arXiv:2510.04838) puts H~ for H into the inner step's derivative;
with Adam that is the factor d g / d theta alone, the rest of the step's adjoint is exact. rank = 0 takes d g / d theta = 0.

Each product asked for is a joint one, (Hc, Mc), whose Mc is not used. Mc takes the derivative in the first layer's input and the warp
alone: a joint product took 1.07 to 1.09 times as long as Hc alone at width 128, about 1.2 times at width 8 (ConvNet-3, 10 images, one
core).

Refresh, derived here: a sketch made at step t' serves step t while |t - t'| < max_age and ||theta_t - theta_t'|| < max_drift
||theta_t'||. The drift is that of the parameters, since gradients, also their norms, turn with every warp and sub-batch. So does H: a
sketch belongs to its draw, and the drift bounds the change of H only where all steps share one draw. Where each step draws its own warp
or sub-batch, H changes at fixed theta, and a sketch that serves another draw is an approximation of another kind than rank, one that no
rank mends: of full rank and reused at the next draw, it was off by 0.87 of the norm of Hc with flip-rotate warps and by 1.15 with
sub-batches (a tiny fresh network on noise images). max_age = 1 leaves the error of the rank alone. A sketch also belongs to one run: a
sweep starts without one, since another start has other parameters and mostly another eigenspace.

Measured (ConvNet-3 of width 8, p = 2730, one CIFAR-10 image a class with warps, steps 30 to 60; medians of 5 runs from real first images,
Adam at 1e-3 and SGD at 0.1): the error of the meta-gradient over its norm (cosine), Hessian-vector products where the exact one takes 30
products, and the time over that of the exact one (unroll and real batch included, on a shared core).

                             products   Adam                    SGD
    rank 0                          0   1.45 (0.76)             4.59 (0.71)
    rank 32, max_age = 20         288   0.44 (0.94), time 5     1.14 (0.87), time 6     rank and reuse together
    rank 32, max_age = 1         4320   0.25 (0.98), time 86    0.33 (0.97), time 80    rank alone

Without warps, where all steps share one draw, reuse costs less: two runs with Adam had 0.86 and 0.71 with it, 0.65 and 0.64 without. One
run of an earlier measurement, rank and reuse mixed, had 0.54 (0.94) with Adam and 0.90 (0.89) with SGD in 4 and 10 times the time, at
rank 0 5.1 (0.60) and 8.7 (0.56). The exact sweep is the default everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from theory.distill.leaves import Array, Leaves, add, flatten, norm, scale, unflatten


@dataclass(frozen=True, eq=False)
class Sketch:
    """H~ of one step: U (p, k), mu (k,), where it was taken, and the Hessian-vector products it cost."""

    u: Array
    mu: Array
    t: int
    theta: Leaves
    products: int

    def apply(self, c: Leaves) -> Leaves:
        """H~ c."""
        return unflatten(self.u @ (self.mu * (self.u.T @ flatten(c))), c)


@dataclass(frozen=True)
class LowRankHessian:
    """Rank k and accuracy of the sketch, and how long one serves. max_age = 1 makes one at every step, of that step's own draw."""

    rank: int = 32
    oversample: int = 4
    power: int = 2
    max_age: int = 20
    max_drift: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("rank", 0), ("oversample", 0), ("power", 0), ("max_age", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"the low-rank Hessian needs {name} >= {least}: {name}={getattr(self, name)}")
        if not self.max_drift > 0.0:
            raise ValueError(f"the drift that a sketch survives must be positive: max_drift={self.max_drift}")

    def stale(self, sketch: Sketch | None, t: int, theta: Leaves) -> bool:
        """Whether step t, at theta, needs a new sketch."""
        if sketch is None or abs(sketch.t - t) >= self.max_age:
            return True
        drift = norm(add(theta, scale(-1.0, sketch.theta)))
        return drift > 0.0 and drift >= self.max_drift * norm(sketch.theta)

    def sketch(self, hvp: Callable[[Leaves], Leaves], t: int, theta: Leaves, rng: np.random.Generator) -> Sketch:
        """H~ at step t, at theta, from u -> H u."""
        flat = flatten(theta)
        xp, p = array_namespace(flat), flat.shape[0]
        k = min(self.rank, p)
        if k == 0:
            return Sketch(xp.zeros((p, 0), dtype=flat.dtype, device=device_of(flat)), xp.zeros_like(flat[:0]), t, theta, 0)
        width = min(k + self.oversample, p)

        def product(block: Any) -> Any:
            return xp.stack([flatten(hvp(unflatten(block[:, j], theta))) for j in range(width)], axis=1)

        y = product(xp.asarray(rng.standard_normal((p, width)), dtype=flat.dtype, device=device_of(flat)))
        for _ in range(self.power):
            y = product(xp.linalg.qr(y)[0])
        q = xp.linalg.qr(y)[0]
        b = q.T @ product(q)
        mu, v = xp.linalg.eigh(0.5 * (b + b.T))
        kept = xp.argsort(xp.abs(mu), descending=True)[:k]
        return Sketch(q @ xp.take(v, kept, axis=1), xp.take(mu, kept), t, theta, width * (self.power + 2))
