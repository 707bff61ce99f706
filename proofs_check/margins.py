"""Margins: errors against tolerances, and sampled means against standard errors.

    closeness   1 - max |value - reference| / (tolerance * scale)
    at_most     1 - max (value - bound)^+ / (tolerance * scale), for inequalities that hold exactly
    sampled     1 - max |estimate - claim| / (Z_LIMIT * standard error)
    refuses     whether bad input is met with an error
    frequency   the same for a binomial count, through its exact tail

Z_LIMIT is fixed: with COMPARISONS comparisons of a true statement about normal means the chance that any one fails is FALSE_ALARM (a union
bound, so it holds however the instances are searched, because each instance has its own noise). A deep run makes fewer comparisons.

A mean of squares of Gaussians, measured in its own standard error, has a far heavier tail on the low side: at Z_LIMIT a true one fails
with probability 1e-5 for 100 squares, SKEWED_ALARM for 200, 1e-9 for 1000, 1e-10 for 2000 (importance sampling; for normal means 1e-13).
Where the smallest samples in use are 200 squares, compared 5 times in each of 60 instances, a run of the ci profile fails by chance with
probability 2e-4 and a deep one with 2e-2: these comparisons bound the whole, not FALSE_ALARM.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

FALSE_ALARM = 1e-6
COMPARISONS = 10**7
LOWEST = -float(np.finfo(np.float64).max)
Z_LIMIT = float(norm.isf(FALSE_ALARM / COMPARISONS / 2.0))
SKEWED_ALARM = 6.2e-7
"""Chance that `sampled_mean` refuses the true mean of 200 squares of Gaussians; simulated in the tests."""


def closeness(value: object, reference: object, tolerance: float, scale: object = 1.0) -> float:
    """1 - max |value - reference| / (tolerance * scale), elementwise; where the scale is zero only equality will do."""
    error, unit = np.broadcast_arrays(np.abs(np.asarray(value) - np.asarray(reference)), tolerance * np.abs(np.asarray(scale)))
    if error.size == 0:
        raise ValueError("nothing to compare: the arrays are empty")
    zero = unit == 0.0
    if np.any(zero & (error > 0.0)):
        return LOWEST
    with np.errstate(over="ignore"):  # an error beyond the float range is still only a failure
        worst = float(np.max(error / np.where(zero, 1.0, unit)))
    return LOWEST if np.isnan(worst) else max(1.0 - worst, LOWEST)  # a NaN would slip through the `min` of several margins


def at_most(value: object, bound: object, tolerance: float, scale: object = 1.0) -> float:
    """1 where value <= bound everywhere, less 1 for each tolerance * scale of excess."""
    return closeness(np.maximum(np.asarray(value) - np.asarray(bound), 0.0), 0.0, tolerance, scale)


def refuses(call: Callable[..., object], *arguments: Any, kind: type[Exception] = ValueError, **named: Any) -> bool:
    """Whether the call raises that kind of error."""
    try:
        call(*arguments, **named)
    except kind:
        return True
    return False


def log_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def sampled(estimate: np.ndarray, claim: np.ndarray | float, standard_error: np.ndarray | float) -> float:
    """1 - max |estimate - claim| / (Z_LIMIT * standard error), with room for rounding in the sum behind the estimate."""
    rounding = 64.0 * np.finfo(np.float64).eps * (np.abs(estimate) + np.abs(claim))
    return closeness(estimate, claim, Z_LIMIT, np.asarray(standard_error) + rounding)


def sampled_mean(samples: np.ndarray, claim: np.ndarray | float) -> float:
    """`sampled` for the mean over the first axis, with its empirical standard error."""
    n = samples.shape[0]
    if n < 100:
        raise ValueError(f"a standard error needs at least 100 samples: n={n}")
    return sampled(np.mean(samples, axis=0), claim, np.std(samples, axis=0, ddof=1) / np.sqrt(n))


def frequency(hits: int, n: int, p: float) -> float:
    """1 - z / Z_LIMIT, z the normal deviate whose two-sided tail is the exact binomial p-value of `hits` in n trials of chance p."""
    pvalue = binomtest(hits, n, min(max(p, 0.0), 1.0)).pvalue
    # The smallest positive float stands for a p-value that underflows: z is then about 38.
    return 1.0 - float(norm.isf(max(pvalue, np.finfo(np.float64).tiny) / 2.0)) / Z_LIMIT
