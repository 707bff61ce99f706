"""Flat directions for expert trajectories, and how flat a point is.

    g          gradient of the loss L at theta                   g_p   gradient at theta + e
    SAM        e = rho g / ||g||                                 ||e|| = rho
    ASAM       e = rho theta^2 g / || |theta| g ||, elementwise  ||e / |theta| || = rho where theta != 0
    GSAM       d = g_p - alpha g_perp,   g_perp = g - (<g, g_p> / ||g_p||^2) g_p;   alpha = 0 is SAM
    S_rho      max over ||e|| <= rho of L(theta + e) - L(theta)  the sharpness
    lambda_max largest eigenvalue of the Hessian of L

FTD (Du et al., arXiv:2211.11004, equations 12 and 13) trains its experts for L + alpha S_rho. Its released code takes the GSAM direction
with the adaptive ball; that alpha weighs g_perp and is another quantity than the one of equation 13, whose one-step gradient is
(1 - alpha) g + alpha g_p. Both directions are here, named apart. Where g or g_p vanishes nothing is perturbed or taken off (derived here).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from array_api_compat import array_namespace

from theory.distill.leaves import Leaves, add, axpy, dot, norm, scale, zip_map
from theory.distill.problem import Diverged

Gradient: TypeAlias = Callable[[Leaves], Leaves]
Loss: TypeAlias = Callable[[Leaves], float]

BALLS = ("euclidean", "adaptive")
COMBINATIONS = ("surrogate", "penalty")


def perturbation(theta: Leaves, g: Leaves, rho: float, ball: str = "euclidean") -> Leaves:
    """e: the linear maximiser of the loss over the ball of radius rho about theta; zero where g leaves nothing to climb.

    euclidean   ||e|| = rho                adaptive   the ball stretched by |theta| in every coordinate
    """
    if ball not in BALLS:
        raise ValueError(f"unknown ball {ball!r}; known: {', '.join(BALLS)}")
    scaled = g if ball == "euclidean" else zip_map(lambda w, a: array_namespace(w).abs(w) * a, theta, g)
    length = norm(scaled)
    if not length < float("inf"):
        raise Diverged(f"the norm of the gradient that perturbs is {length}")
    if length == 0.0:
        return scale(0.0, g)
    e = scale(rho / length, scaled)
    return e if ball == "euclidean" else zip_map(lambda w, a: array_namespace(w).abs(w) * a, theta, e)


def orthogonal_part(g: Leaves, g_p: Leaves) -> Leaves:
    """g_perp: g without its component along g_p; zero where g_p = 0."""
    length2 = float(dot(g_p, g_p))
    return axpy(-float(dot(g, g_p)) / length2, g_p, g) if length2 > 0.0 else scale(0.0, g)


@dataclass(frozen=True)
class Flat:
    """A flat training direction: radius, weight and the ball that perturbs.

    surrogate   g_p - alpha g_perp (GSAM; the released FTD code)      penalty   (1 - alpha) g + alpha g_p (FTD, equation 13)
    SAM is the surrogate at alpha = 0 and the penalty at alpha = 1; rho = 0 gives g in both.
    """

    rho: float = 0.01
    alpha: float = 0.0
    ball: str = "euclidean"
    combination: str = "surrogate"

    def __post_init__(self) -> None:
        if not 0.0 <= self.rho < float("inf"):
            raise ValueError(f"the radius must be >= 0 and finite: rho={self.rho}")
        if not 0.0 <= self.alpha < float("inf"):
            raise ValueError(f"the weight must be >= 0 and finite: alpha={self.alpha}")
        if self.ball not in BALLS:
            raise ValueError(f"unknown ball {self.ball!r}; known: {', '.join(BALLS)}")
        if self.combination not in COMBINATIONS:
            raise ValueError(f"unknown combination {self.combination!r}; known: {', '.join(COMBINATIONS)}")

    def combine(self, g: Leaves, g_p: Leaves) -> Leaves:
        """The direction from the plain and the perturbed gradient."""
        if self.combination == "penalty":
            return axpy(self.alpha, g_p, scale(1.0 - self.alpha, g))
        return axpy(-self.alpha, orthogonal_part(g, g_p), g_p)

    def __call__(self, gradient: Gradient, theta: Leaves) -> Leaves:
        """The direction at theta, from two gradients of the same batch; theta itself is not touched."""
        g = gradient(theta)
        return self.combine(g, gradient(add(theta, perturbation(theta, g, self.rho, self.ball))))


def sharpness(loss: Loss, gradient: Gradient, theta: Leaves, rho: float, ball: str = "euclidean", steps: int = 1) -> float:
    """A lower bound of S_rho: the largest L(theta + e) - L(theta) met by `steps` ascents from 0, each to the sphere's point along g at e.

    steps = 1 is the estimate that SAM climbs by; more steps tighten the bound. With e = 0 admitted it is never negative.
    """
    if steps < 1:
        raise ValueError(f"the ascent needs at least one step: steps={steps}")
    base, best, at = loss(theta), 0.0, theta
    for _ in range(steps):
        at = add(theta, perturbation(theta, gradient(at), rho, ball))
        best = max(best, loss(at) - base)
    if not (abs(base) < float("inf") and best < float("inf")):
        raise Diverged(f"sharpness: the loss is {base} at the point and rises by {best} within rho={rho}")
    return best


@dataclass(frozen=True)
class Eigenvalue:
    """An extreme eigenvalue, ||H v - lambda v|| for its unit vector v (some eigenvalue lies within that), and the products spent."""

    value: float
    residual: float
    products: int


def lambda_max(product: Gradient, like: Leaves, rng: np.random.Generator, tolerance: float = 1e-3, steps: int = 200) -> Eigenvalue:
    """The largest eigenvalue of a symmetric H, from u -> H u, by power iterations.

    They find the eigenvalue mu of largest size; where that is negative, those of H - mu I, all >= 0, find the largest. Each ends when the
    residual is <= tolerance |mu| or after `steps` products.
    """
    if not tolerance > 0.0 or steps < 1:
        raise ValueError(f"power iterations need tolerance > 0 and steps >= 1: tolerance={tolerance}, steps={steps}")
    found = _power(product, _direction(like, rng), 0.0, tolerance, steps)
    if found.value >= 0.0:
        return found
    shifted = _power(product, _direction(like, rng), found.value, tolerance, steps)
    return Eigenvalue(shifted.value, shifted.residual, found.products + shifted.products)


def _direction(like: Leaves, rng: np.random.Generator) -> Leaves:
    drawn = tuple(rng.standard_normal(x.shape) for x in like)
    moved = zip_map(lambda x, v: array_namespace(x).asarray(v, dtype=x.dtype, device=getattr(x, "device", None)), like, drawn)
    return scale(1.0 / norm(moved), moved)


def _power(product: Gradient, v: Leaves, shift: float, tolerance: float, steps: int) -> Eigenvalue:
    """The eigenvalue of H for which H - shift I is largest in size."""
    k = 0
    while True:
        k += 1
        h = product(v)
        value = float(dot(v, h))
        residual = norm(axpy(-value, v, h))
        if not residual < float("inf"):
            raise Diverged(f"power iteration {k}: the residual is {residual}")
        moved = axpy(-shift, v, h)
        length = norm(moved)
        if residual <= tolerance * abs(value) or length == 0.0 or k == steps:
            return Eigenvalue(value, residual, k)
        v = scale(1.0 / length, moved)
