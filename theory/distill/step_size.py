"""A learned inner step size: S carries its logarithm as one more leaf, the last, which the inner problem does not see.

    S = (data .., log alpha)                       alpha = exp(log alpha) > 0, whatever the outer optimiser does to the leaf
    theta_{t+1} = theta_t - alpha u_t              u_t: the inner optimiser's direction, g_t for plain SGD
    dL / d log alpha = -alpha sum_t <lam_{t+1}, u_t>

Derived here: alpha enters step t directly, by d theta_{t+1} / d log alpha = -alpha u_t, and through theta_t and the slots. The chain rule
sums the direct parts, each against the cotangent lam_{t+1} that the reverse sweep has anyway. Exact for every optimiser of `inner_optim`;
batches and augmentation enter as the replayed noise of u_t.

MTT (arXiv:2203.11932, released code) steps in alpha itself and lets it turn negative; `StepSizeMomentum` is that step, bounded. Momentum
on log alpha at a fixed rate is no substitute: a step of size l on alpha is, to first order, one of size l / alpha^2 on log alpha (derived
here), a rate that has to fall as alpha grows. A running average of S holds the geometric mean of the step sizes; FTD's released code
averages the images alone, so it is to be read with S's own.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from theory.distill.inner_optim import InnerOptimiser, Slots
from theory.distill.leaves import Leaves, zeros_like
from theory.distill.problem import Diverged


@dataclass(frozen=True)
class StepSizeMomentum:
    """Momentum in alpha for the leaf log alpha.

    v' = momentum v + dL / d alpha, alpha' = alpha clip(1 - lr v' / alpha, 1/2, 2),
    dL / d alpha = (dL / d log alpha) / alpha. The rule of MTT's released code but for the bound, which keeps alpha positive (derived here).
    """

    lr: float
    momentum: float = 0.5

    def init(self, theta: Leaves) -> Slots:
        return (zeros_like(theta),)

    def step(self, theta: Leaves, slots: Slots, t: int, g: Leaves) -> tuple[Leaves, Slots]:
        (log_alpha,), (slope,) = theta, g
        xp = array_namespace(log_alpha)
        alpha = xp.exp(log_alpha)
        v = self.momentum * slots[0][0] + slope / alpha
        return (log_alpha + xp.log(xp.clip(1.0 - self.lr * v / alpha, 0.5, 2.0)),), ((v,),)


def with_step_size(data: Leaves, alpha: float) -> Leaves:
    """S: the data and log alpha, a 0-d array like the first leaf."""
    if not 0.0 < alpha < float("inf"):
        raise ValueError(f"an inner step size must be positive and finite: alpha={alpha}")
    log_alpha = array_namespace(data[0]).asarray(float(np.log(alpha)), dtype=data[0].dtype, device=device_of(data[0]))
    return (*data, log_alpha)


@np.errstate(over="ignore")
def split(s: Leaves, inner: InnerOptimiser) -> tuple[Leaves, InnerOptimiser]:
    """(data, `inner` at the step size of S); Diverged where that size has left the positive numbers."""
    if s[-1].shape != ():
        raise ValueError(f"a learned step size is one number, S's last leaf has shape {tuple(s[-1].shape)}: make S by with_step_size")
    alpha = float(np.exp(float(s[-1])))
    if not 0.0 < alpha < float("inf"):
        raise Diverged(f"the learned inner step size is exp({float(s[-1])}) = {alpha}: lower the outer step size of its logarithm")
    return s[:-1], replace(cast(Any, inner), lr=alpha)
