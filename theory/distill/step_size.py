"""A learned inner step size: S carries its logarithm as one more leaf, the last, which the inner problem does not see.

    S = (data .., log alpha)                       alpha = exp(log alpha) > 0, whatever the outer optimiser does to the leaf
    theta_{t+1} = theta_t - alpha u_t              u_t: the inner optimiser's direction, g_t for plain SGD
    dL / d log alpha = -alpha sum_t <lam_{t+1}, u_t>

Derived here: alpha enters step t directly, by d theta_{t+1} / d log alpha = -alpha u_t, and through theta_t and the slots. The chain rule
sums the direct parts, each against the cotangent lam_{t+1} that the reverse sweep has anyway. Exact for every optimiser of `inner_optim`;
batches and augmentation enter as the replayed noise of u_t.

MTT (arXiv:2203.11932, released code) steps in alpha itself and lets it turn negative. A step of size l on alpha is, to first order, one of
size l / alpha^2 on log alpha (derived here, from d log alpha = d alpha / alpha and dL / d alpha = (dL / d log alpha) / alpha). A running
average of S holds the geometric mean of the step sizes; FTD's released code averages the images alone, so it is to be read with S's own.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import Leaves
from theory.distill.problem import Diverged


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
