"""Hermite expansions under the standard Gaussian, one variable at a time.

    He_k    probabilists' Hermite polynomials, He_{k+1}(z) = z He_k(z) - k He_{k-1}(z)
    he_k    He_k / sqrt(k!), orthonormal for z ~ N(0, 1)
    c_k     E[f(z) He_k(z)], the (unnormalised) Hermite coefficient of f; f = sum_k c_k He_k / k!

Quadrature and polynomial algebra are NumPy's; the array-API recurrence exists because evaluation runs on any backend.
"""

import math
from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace
from numpy.polynomial import hermite_e

from theory.distill.leaves import Array


def gate_coefficient(k: int) -> float:
    """c_k of the gate 1{z >= 0}: c_0 = 1/2 and c_k = He_{k-1}(0) phi(0), phi the standard normal density.

    Integration by parts: int_0^inf He_k phi = He_{k-1}(0) phi(0). So c_1 = 1/sqrt(2 pi), c_2 = 0, c_3 = -1/sqrt(2 pi), c_5 = 3/sqrt(2 pi).
    """
    if k < 0:
        raise ValueError(f"Hermite order must be >= 0: k={k}")
    if k == 0:
        return 0.5
    return float(hermite_e.hermeval(0.0, [0.0] * (k - 1) + [1.0])) / math.sqrt(2.0 * math.pi)


def relu_coefficient(k: int) -> float:
    """c_k of relu(z) = z 1{z >= 0}: 1/sqrt(2 pi), 1/2, then c_k = gate_coefficient(k - 1) for k >= 1 (Stein)."""
    if k < 0:
        raise ValueError(f"Hermite order must be >= 0: k={k}")
    return 1.0 / math.sqrt(2.0 * math.pi) if k == 0 else gate_coefficient(k - 1)


def coefficients(f: Callable[[np.ndarray], np.ndarray], k_max: int, nodes: int) -> np.ndarray:
    """c_0 .. c_{k_max} of f by Gauss-Hermite quadrature; exact for polynomials of degree <= 2 nodes - 1 - k_max.

    Kinks cost accuracy (error O(1/nodes) for a jump); use the closed forms for the gate and relu.
    """
    if k_max < 0 or nodes <= k_max:
        raise ValueError(f"need 0 <= k_max < nodes: k_max={k_max}, nodes={nodes}")
    z, weights = hermite_e.hermegauss(nodes)
    weights = weights / math.sqrt(2.0 * math.pi)
    values = np.asarray(f(z), dtype=np.float64)
    return np.array([np.sum(weights * values * hermite_e.hermeval(z, [0.0] * k + [1.0])) for k in range(k_max + 1)])


def orthonormal(z: Array, k_max: int) -> list[Array]:
    """[he_0(z), ..., he_{k_max}(z)] elementwise, by the recurrence sqrt(k+1) he_{k+1} = z he_k - sqrt(k) he_{k-1}."""
    xp = array_namespace(z)
    values = [xp.ones_like(z)]
    if k_max >= 1:
        values.append(z)
    for k in range(1, k_max):
        values.append((z * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return values
