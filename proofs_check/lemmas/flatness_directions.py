"""Directions that climb before they descend: the invariants of SAM, ASAM and GSAM, and what measures flatness.

    SAM    ||e|| = rho,   <g, e> = rho ||g||             ASAM   ||e / |theta| || = rho where theta != 0,   <g, e> = rho || |theta| g ||
           (no point of the ball has a larger <g, e>: Cauchy and Schwarz)
    GSAM   d = g_p - alpha g_perp,    <d - g_p, g_p> = 0,   ||g_perp||^2 = ||g||^2 - <g, g_p>^2/||g_p||^2,   alpha = 0 is SAM, rho = 0 is g
    penalty  d = (1 - alpha) g + alpha g_p
    sharpness  0 <= S <= max over the ball, = rho ||g|| for a linear loss;   lambda_max is the largest eigenvalue, residual and all

SAM's ball and the penalty are stated (FTD, arXiv:2211.11004, equations 12 and 13); ASAM and GSAM are those of its released code; the
equalities are derived here.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness, refuses
from theory.distill.flatness import BALLS, COMBINATIONS, Flat, lambda_max, orthogonal_part, perturbation, sharpness
from theory.distill.leaves import Leaves, axpy, dot, flatten, norm, scale, unflatten, zip_map
from theory.distill.problem import Diverged

TOLERANCE = 1e-10


def margin(
    rng: np.random.Generator,
    n: int,
    rho: float,
    alpha: float,
    sample: int,
    steep: bool = True,
    one_batch: bool = True,
    linear: bool = True,
    symmetric: bool = True,
) -> float:
    """steep: the gradient does not vanish; one_batch: both gradients of a step see one batch; linear: the loss whose sharpness is
    rho ||g||; symmetric: H = H^T.
    """
    theta, g, g_p = (zip_map(lambda a: rng.standard_normal(a.shape), (np.zeros(n), np.zeros((2, n)))) for _ in range(3))
    g = g if steep else scale(0.0, g)
    e, stretched = (perturbation(theta, g, rho, ball) for ball in ("euclidean", "adaptive"))
    ratio = zip_map(lambda a, w: a / np.abs(w), stretched, theta)
    radii = closeness([norm(e), norm(ratio)], [rho, rho], TOLERANCE, rho)
    climbs = np.array([rho * norm(g), rho * norm(zip_map(lambda a, w: a * np.abs(w), g, theta))])
    best = closeness([float(dot(g, e)), float(dot(g, stretched))], climbs, TOLERANCE, climbs)

    perp = orthogonal_part(g, g_p)
    expected = float(dot(g, g)) - float(dot(g, g_p)) ** 2 / float(dot(g_p, g_p))
    parts = closeness([float(dot(perp, g_p)), float(dot(perp, perp))], [0.0, expected], TOLERANCE, norm(g) * norm(g_p) + expected)
    d = Flat(rho, alpha).combine(g, g_p)
    removed = closeness(dot(axpy(-1.0, g_p, d), g_p), 0.0, TOLERANCE, norm(d) * norm(g_p) + norm(g_p) ** 2)

    frame = np.linalg.qr(rng.standard_normal((3 * n, 3 * n)))[0]
    h = (frame * (-0.8) ** np.arange(3 * n)) @ frame.T  # largest in size 1, gaps that power iterations see
    if not symmetric:
        h = h + np.triu(rng.standard_normal(h.shape), 1)
    whole = min(step(rng, theta, h, Flat(rho, alpha, ball, how), one_batch) for ball in BALLS for how in COMBINATIONS)
    return min(radii, best, parts, removed, whole, measures(rng, theta, g, rho, h, linear), 1.0 if refusals() and corners() else -9.0)


def step(rng: np.random.Generator, theta: Leaves, h: np.ndarray, flat: Flat, one_batch: bool) -> float:
    """The direction of one step against its formula: loss x.H x/2 + b.x, where b is that of the step's batch."""
    batches = rng.standard_normal((2, len(h)))
    used = iter(batches[[0, 0] if one_batch else [0, 1]])
    d = flat(lambda x: unflatten(h @ flatten(x) + next(used), theta), theta)
    weight, x = np.abs(flatten(theta)) if flat.ball == "adaptive" else np.ones(len(h)), flatten(theta)
    g = h @ x + batches[0]
    g_p = h @ (x + flat.rho * weight**2 * g / np.linalg.norm(weight * g)) + batches[0]
    claims = {"penalty": g + flat.alpha * (g_p - g), "surrogate": g_p - flat.alpha * (g - (g @ g_p) / (g_p @ g_p) * g_p)}
    return closeness(flatten(d), claims[flat.combination], TOLERANCE, (1.0 + flat.alpha) * (np.linalg.norm(g) + np.linalg.norm(g_p)))


def measures(rng: np.random.Generator, theta: Leaves, g: Leaves, rho: float, h: np.ndarray, linear: bool) -> float:
    """Sharpness and the largest eigenvalue."""
    bend = 0.0 if linear else 1.0

    def loss(x: Leaves) -> float:
        away = axpy(-1.0, theta, x)
        return float(dot(g, x)) + bend * float(dot(away, away)) * (1.0 + norm(g))

    def gradient(x: Leaves) -> Leaves:
        return axpy(2.0 * bend * (1.0 + norm(g)), axpy(-1.0, theta, x), g)

    climbed = closeness(sharpness(loss, gradient, theta, rho), rho * norm(g), 1e-9, rho * norm(g) + norm(theta) * norm(g))
    more = at_most(sharpness(loss, gradient, theta, rho), sharpness(loss, gradient, theta, rho, steps=3), 1e-9, 1.0 + norm(g))
    low = at_most(0.0, sharpness(lambda x: -float(dot(x, x)), lambda x: scale(-2.0, x), scale(0.0, theta), rho), TOLERANCE)

    def product(v: Leaves) -> Leaves:
        return unflatten(h @ flatten(v), theta)

    worst = 1.0
    eigenvalues = np.linalg.eigvals(h)
    for sign in (1.0, -1.0):  # one of the two has its largest eigenvalue in size below zero
        found = lambda_max(lambda v, sign=sign: scale(sign, product(v)), theta, rng, tolerance=1e-4, steps=300)
        truth, reach = np.max((sign * eigenvalues).real), np.max(np.abs(eigenvalues))
        worst = min(worst, closeness(found.value, truth, 1e-3, reach), at_most(found.residual, 2e-4 * reach, 1e-6, reach))
    one = lambda_max(lambda v: scale(-2.0, v), theta, rng)
    slow = np.diag(0.99 ** np.arange(3 * len(theta[0])))
    usual, asked = (
        lambda_max(lambda v: unflatten(slow @ flatten(v), theta), theta, np.random.default_rng(1), **how)
        for how in ({}, {"tolerance": 1e-3, "steps": 200})
    )
    if usual != asked or sharpness(loss, gradient, theta, rho) != sharpness(loss, gradient, theta, rho, "euclidean", 1):
        return -9.0
    # Every vector is an eigenvector: one product finds it, and one more that nothing lies above.
    return min(worst, climbed, more, low, closeness([one.value, one.residual, one.products], [-2.0, 0.0, 2.0], 1e-9))


def refusals() -> bool:
    """What is refused, what is just accepted, and what a vanishing gradient does."""
    zero, ones = (np.zeros(2),), (np.ones(2),)
    rng = np.random.default_rng(0)
    rejected = [
        *(refuses(Flat, bad) for bad in (-1.0, math.inf)),
        *(refuses(Flat, 0.1, bad) for bad in (-1.0, math.inf)),
        refuses(Flat, ball="cube"),
        refuses(Flat, combination="sum"),
        refuses(perturbation, ones, ones, 1.0, "cube"),
        refuses(perturbation, ones, (np.array([np.inf, 1.0]),), 1.0, kind=Diverged),
        *(refuses(sharpness, lambda x: 0.0, lambda x: x, ones, 1.0, steps=n) for n in (0, -1)),
        refuses(sharpness, lambda x: math.inf, lambda x: x, ones, 1.0, kind=Diverged),
        refuses(sharpness, lambda x: 0.0 if x[0][0] == 1 else math.inf, lambda x: x, ones, 1.0, kind=Diverged),
        refuses(lambda_max, lambda v: v, ones, rng, tolerance=0.0),
        refuses(lambda_max, lambda v: v, ones, rng, steps=0),
    ]
    with np.errstate(invalid="ignore"):
        rejected.append(refuses(lambda_max, lambda v: scale(math.inf, v), ones, rng, kind=Diverged))
    lambda_max(lambda v: v, ones, rng, steps=1)
    still = norm(perturbation(ones, zero, 1.0)) == norm(orthogonal_part(ones, zero)) == 0.0
    return still and Flat(0.0, 0.0).rho == 0.0 and Flat() == Flat(0.01, 0.0) and all(rejected)


def corners() -> bool:
    """Defaults where they matter, points at which nothing climbs, and power iterations product by product."""
    zero, ones, at = (np.zeros(2),), (np.ones(2),), (np.array([0.6, 0.8]),)
    h = np.diag([1.5, 0.2])
    bowl = (lambda x: float(x[0] @ h @ x[0]), lambda x: (2.0 * h @ x[0],))
    risen = [sharpness(*bowl, at, 0.5, steps=n) for n in (1, 2)]
    usual = sharpness(*bowl, at, 0.5) == sharpness(*bowl, at, 0.5, "euclidean", 1) == risen[0] < risen[1]
    held = norm(perturbation(zero, ones, 1.0, "adaptive")) == 0.0
    nothing = lambda_max(lambda v: scale(0.0, v), ones, np.random.default_rng(0)).products == 1
    top = closeness(lambda_max(lambda v: (h @ v[0],), ones, np.random.default_rng(0)).value, 1.5, 1e-3) > 0
    exact = True
    ways: list[tuple[float, dict[str, Any]]] = [(1.3, {}), (1.4, {"tolerance": 1e-12}), (1.3, {"tolerance": 1e-9, "steps": 5})]
    for second, how in ways:
        found = lambda_max(lambda v, m=second: (np.array([1.5, m]) * v[0],), ones, np.random.default_rng(2), **how)
        expected = power(np.diag([1.5, second]), np.random.default_rng(2).standard_normal(2), **{"tolerance": 1e-3, "steps": 200, **how})
        exact = exact and closeness([found.value, found.residual, found.products], expected, 1e-9) > 0
    along = closeness(norm(orthogonal_part(ones, (np.array([0.5, 0.0]),))), 1.0, 1e-12) > 0  # a short gradient has a direction too
    return usual and held and nothing and top and exact and along


def power(h: np.ndarray, v: np.ndarray, tolerance: float, steps: int) -> tuple[float, float, int]:
    """(value, residual, products) of plain power iterations."""
    k, v = 1, v / np.linalg.norm(v)
    while True:
        value = float(v @ h @ v)
        residual = float(np.linalg.norm(h @ v - value * v))
        if residual <= tolerance * abs(value) or k == steps:
            return value, residual, k
        k, v = k + 1, h @ v / np.linalg.norm(h @ v)


def symbolic() -> Iterator[Identity]:
    g, p = (sp.Matrix(sp.symbols(f"{name}0:3", real=True)) for name in "gp")
    alpha, rho = sp.symbols("alpha rho", positive=True)
    perp = g - (g.dot(p) / p.dot(p)) * p
    yield Identity("<g_perp, g_p> = 0", sp.cancel(perp.dot(p)), 0)
    yield Identity("|g_perp|^2", sp.cancel(perp.dot(perp) - g.dot(g) + g.dot(p) ** 2 / p.dot(p)), 0)
    d = p - alpha * perp
    yield Identity("<d - g_p, g_p> = 0", sp.cancel((d - p).dot(p)), 0)
    size = sp.sqrt(g.dot(g))
    yield Identity("|rho g/|g|| = rho", sp.simplify((rho * g / size).dot(rho * g / size)), rho**2)


LEMMA = Lemma(
    number=16,
    name="flatness-directions",
    latex=(
        r"\|e\|_2 = \rho\ (\mathrm{SAM}),\quad \|e/|\theta|\|_2 = \rho\ (\mathrm{ASAM}),\quad d = g_p - \alpha\,g_\perp,\ "
        r"\langle d - g_p,\, g_p\rangle = 0\ (\mathrm{GSAM})"
    ),
    plain="SAM and ASAM perturb by rho in their own norm; GSAM takes away only what is orthogonal to the perturbed gradient.",
    source=Source(
        "stated",
        "Du et al., arXiv:2211.11004: SAM's ball and the penalty, equations 12 and 13; ASAM and GSAM as in the released code; equalities "
        "derived here",
    ),
    assumptions={
        "steep_point": "the gradient does not vanish at theta",
        "one_batch": "both gradients of a step are those of one batch",
        "linear_loss": "for S = rho |g|: the loss is linear over the ball",
        "symmetric_hessian": "for lambda_max: H is symmetric",
    },
    instances={
        "n": st.integers(1, 4),
        "rho": st.integers(1, 50).map(lambda n: n / 100),
        "alpha": st.integers(0, 20).map(lambda n: n / 10),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("steep_point", "a stationary point", {"steep": st.just(False)}),
        Control("one_batch", "another batch at the perturbed point", {"one_batch": st.just(False)}),
        Control("linear_loss", "a curved loss", {"linear": st.just(False)}),
        Control("symmetric_hessian", "another upper triangle", {"symmetric": st.just(False), "n": st.integers(2, 4)}),
    ),
    examples=40,
    code=("theory.distill.flatness",),
)
