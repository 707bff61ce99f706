"""Directions that climb before they descend: the invariants of SAM, ASAM and GSAM, and what measures flatness.

    SAM    ||e|| = rho                ASAM  ||e / |theta| || = rho where theta != 0          e maximises <g, e> over its ball
    GSAM   d = g_p - alpha g_perp,    <d - g_p, g_p> = 0,   ||g_perp||^2 = ||g||^2 - <g, g_p>^2/||g_p||^2,   alpha = 0 is SAM, rho = 0 is g
    penalty  d = (1 - alpha) g + alpha g_p
    sharpness  0 <= S <= max over the ball, = rho ||g|| for a linear loss;   lambda_max is the largest eigenvalue, residual and all

The directions are stated (FTD, arXiv:2211.11004, equations 12 and 13; GSAM as in its released code); the bounds are derived here.
"""

import math
from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness, refuses
from theory.distill.flatness import Flat, lambda_max, orthogonal_part, perturbation, sharpness
from theory.distill.leaves import Leaves, add, axpy, dot, norm, scale, zip_map
from theory.distill.problem import Diverged

TOLERANCE = 1e-10


def margin(
    rng: np.random.Generator,
    n: int,
    rho: float,
    alpha: float,
    sample: int,
    clean: bool = True,
    unit: bool = True,
    linear: bool = True,
    symmetric: bool = True,
) -> float:
    """clean: the original gradient enters g_perp; unit: e has the ball's radius; linear: the loss whose sharpness is rho ||g||;
    symmetric: H = H^T.
    """
    theta, g, g_p = (zip_map(lambda a: rng.standard_normal(a.shape), (np.zeros(n), np.zeros((2, n)))) for _ in range(3))
    e, stretched = (perturbation(theta, g, rho * (1.0 if unit else 1.5), ball) for ball in ("euclidean", "adaptive"))
    ratio = zip_map(lambda a, w: a / np.abs(w), stretched, theta)
    radii = closeness([norm(e), norm(ratio)], [rho, rho], TOLERANCE, rho or 1.0)
    other = scale(rho / norm(g_p), g_p)
    scaled = zip_map(lambda a, w: a * np.abs(w), other, theta)
    best = at_most([float(dot(g, other)), float(dot(g, scaled))], [float(dot(g, e)), float(dot(g, stretched))], TOLERANCE, norm(g))

    perp = orthogonal_part(g, g_p)
    expected = float(dot(g, g)) - float(dot(g, g_p)) ** 2 / float(dot(g_p, g_p))
    parts = closeness([float(dot(perp, g_p)), float(dot(perp, perp))], [0.0, expected], TOLERANCE, norm(g) * norm(g_p) + expected)
    flat = Flat(rho, alpha)
    d = flat.combine(g if clean else add(g, theta), g_p)
    gsam = closeness(_flat(d), _flat(axpy(-alpha, perp, g_p)), TOLERANCE, norm(g) + norm(g_p) + alpha * norm(theta))
    removed = closeness(dot(axpy(-1.0, g_p, d), g_p), 0.0, TOLERANCE, norm(d) * norm(g_p) + norm(g_p) ** 2)
    penalty = Flat(rho, alpha, combination="penalty").combine(g, g_p)
    mixed = closeness(_flat(penalty), (1.0 - alpha) * _flat(g) + alpha * _flat(g_p), TOLERANCE, norm(penalty) + norm(g))

    frame = np.linalg.qr(rng.standard_normal((3 * n, 3 * n)))[0]
    h = (frame * (-0.8) ** np.arange(3 * n)) @ frame.T  # largest in size 1, gaps that power iterations see
    if not symmetric:
        h = h + np.triu(rng.standard_normal(h.shape), 1)

    def gradient(x: Leaves) -> Leaves:
        return _like(h @ _flat(x), theta)

    ball = "adaptive" if n % 2 else "euclidean"
    step = add(theta, perturbation(theta, gradient(theta), rho, ball))
    whole = closeness(_flat(Flat(rho, 0.0, ball)(gradient, theta)), _flat(gradient(step)), TOLERANCE, norm(gradient(step)))
    return min(radii, best, parts, gsam, removed, mixed, whole, measures(rng, theta, g, rho, h, linear), 1.0 if refusals() else -9.0)


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
        return _like(h @ _flat(v), theta)

    worst = 1.0
    eigenvalues = np.linalg.eigvalsh((h + h.T) / 2.0)
    for sign in (1.0, -1.0):  # one of the two has its largest eigenvalue in size below zero
        found = lambda_max(lambda v, sign=sign: scale(sign, product(v)), theta, rng, tolerance=1e-4, steps=300)
        truth, reach = max(sign * eigenvalues), max(abs(eigenvalues))
        worst = min(worst, closeness(found.value, truth, 1e-3, reach), at_most(found.residual, 2e-4 * reach, 1e-6, reach))
    one = lambda_max(lambda v: scale(-2.0, v), theta, rng)
    slow = np.diag(0.99 ** np.arange(3 * len(theta[0])))
    usual, asked = (
        lambda_max(lambda v: _like(slow @ _flat(v), theta), theta, np.random.default_rng(1), **how)
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


def _flat(x: Leaves) -> np.ndarray:
    return np.concatenate([a.ravel() for a in x])


def _like(v: np.ndarray, x: Leaves) -> Leaves:
    cuts = np.split(v, np.cumsum([a.size for a in x])[:-1])
    return tuple(part.reshape(a.shape) for part, a in zip(cuts, x, strict=True))


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
    source=Source("stated", "Du et al., arXiv:2211.11004, equations 12 and 13, and its released code"),
    assumptions={
        "original_gradient": "g_perp is a part of the unperturbed gradient",
        "radius": "e ends on the ball's surface",
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
        Control("original_gradient", "another gradient", {"clean": st.just(False), "alpha": st.floats(0.5, 2.0)}),
        Control("radius", "1.5 times as far", {"unit": st.just(False)}),
        Control("linear_loss", "a curved loss", {"linear": st.just(False)}),
        Control("symmetric_hessian", "any matrix", {"symmetric": st.just(False), "n": st.integers(2, 4)}),
    ),
    examples=40,
    code=("theory.distill.flatness",),
)
