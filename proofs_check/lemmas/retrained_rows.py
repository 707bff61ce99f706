"""Mean and noise of the first-layer rows retrained on a distilled set of Gaussian points with constant labels.

    F(u) = (1/M1) sum_m x_m 1{u.x_m >= 0},   x_m ~ N(0, Sigma) independent          the row a fresh neuron with direction u learns
    E F(u) = Sigma u / sqrt(2 pi u^T Sigma u)
    E ||F - E F||^2 / ||E F||^2 = (pi r - 1) / M1                                   for Sigma = I_r

Derivation: x = Cov(x, z) z + (part independent of z) with z = u.x / sqrt(u^T Sigma u), and E[z 1{z >= 0}] = 1/sqrt(2 pi). For Sigma = I,
E ||x 1{u.x >= 0}||^2 = r/2 and ||E F||^2 = 1/(2 pi); independence divides the variance r/2 - 1/(2 pi) by M1.
"""

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, sampled, sampled_mean
from theory.predictions import retrained_noise
from theory.two_layer import gradient

DRAWS, REPEATS = 4000, 2000
TOLERANCE = 1e-12


def mean_row(sigma: np.ndarray, u: np.ndarray, m: ModuleType = math) -> np.ndarray:
    """E F(u), in the functions of `m`: math for floats, sympy for arrays of expressions."""
    return sigma @ u / m.sqrt(2 * m.pi * (u @ sigma @ u))


def retrained_row(u: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """F(u) as the network learns it: minus the loss gradient of the first neuron of a symmetric pair, head +1, labels y."""
    theta = np.array([1.0, -1.0]), np.stack([u, u]), np.zeros(2)
    return -gradient(theta, (x, y))[1][0]


def margin(
    rng: np.random.Generator,
    r: int,
    m1: int,
    tilt: float,
    sample: int,
    shift: float = 0.0,
    on_sphere: bool = False,
    signs: bool = False,
    mirrored: bool = False,
    isotropic: bool = True,
) -> float:
    """Both claims in standard errors: the mean for a Sigma of condition number exp(2 tilt), the noise for Sigma = I.

    shift: mean of the first coordinate; on_sphere: points of length sqrt(r); signs: labels +-1; mirrored: points come as x, -x;
    isotropic: where False, the noise is measured at the tilted Sigma too.
    """
    axes = np.linalg.qr(rng.standard_normal((r, r)))[0]
    root = (axes * np.exp(np.linspace(-tilt, tilt, r) / 2.0)) @ axes.T
    u = rng.standard_normal(r)
    u /= np.linalg.norm(u)

    def points(n: int, m: int, half_power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = rng.standard_normal((n, m, r))
        if on_sphere:
            z *= math.sqrt(r) / np.linalg.norm(z, axis=-1, keepdims=True)
        if mirrored:
            z[:, m - m // 2 :] = -z[:, : m // 2]
        labels = np.where(rng.random((n, m)) < 0.5, -1.0, 1.0) if signs else np.ones((n, m))
        return shift * np.eye(r)[0] + z @ half_power, labels

    x, y = (part[0] for part in points(1, DRAWS, root))
    gated = y[:, None] * x * (x @ u >= 0)[:, None]
    spread = np.std(gated, axis=0, ddof=1) / math.sqrt(DRAWS)
    mean = sampled(retrained_row(u, x, y), mean_row(root @ root, u), spread)

    half_power = np.eye(r) if isotropic else root
    x, y = points(REPEATS, m1, half_power)
    f = np.mean((y * (x @ u >= 0))[..., None] * x, axis=1)
    expected = mean_row(half_power @ half_power, u)
    energy = np.sum((f - expected) ** 2, axis=1) / np.sum(expected**2)
    one = closeness(retrained_row(u, x[0], y[0]), f[0], TOLERANCE, np.mean(np.abs(x[0])))
    return min(mean, one, sampled_mean(energy, retrained_noise(r, m1)))


def symbolic() -> Iterator[Identity]:
    z, r, m1 = sp.Symbol("z", real=True), sp.Symbol("r", positive=True), sp.Symbol("M", positive=True)
    angle, radius = sp.Symbol("theta", real=True), sp.Symbol("rho", positive=True)

    # r = 2 in polar coordinates: x = A (rho cos, rho sin) with A A^T = Sigma; the gate is open within pi/2 of (p, q) = A^T u.
    a = np.array([[sp.Symbol(f"A{i}{j}", positive=True) for j in range(2)] for i in range(2)], dtype=object)
    u = np.array([sp.Symbol(f"u{i}", positive=True) for i in range(2)], dtype=object)
    p, q = a.T @ u
    radial = sp.integrate(radius**2 * sp.exp(-(radius**2) / 2), (radius, 0, sp.oo)) / (2 * sp.pi)
    arc = [sp.integrate(f(angle), (angle, -sp.pi / 2, sp.pi / 2)) for f in (sp.cos, sp.sin)]
    towards = np.array([arc[0] * p - arc[1] * q, arc[0] * q + arc[1] * p], dtype=object) / sp.sqrt(p**2 + q**2)
    for left, right in zip(radial * (a @ towards), mean_row(a @ a.T, u, sp), strict=True):
        yield Identity("E F(u) = Sigma u / sqrt(2 pi u^T Sigma u), any Sigma and u at r = 2", sp.simplify(left / right), 1)

    phi = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi)
    half = [sp.integrate(z**k * phi, (z, 0, sp.oo)) for k in range(3)]
    along = mean_row(np.array([[sp.Integer(1)]], dtype=object), np.array([sp.Integer(1)], dtype=object), sp)[0]
    yield Identity("E[z 1{z >= 0}] is the mean row at r = 1", half[1], along)
    second = half[2] + (r - 1) * half[0]  # along u, and r - 1 directions independent of the gate
    noise = (second - half[1] ** 2) / m1 / half[1] ** 2
    yield Identity("E ||F - E F||^2 / ||E F||^2 = (pi r - 1)/M1 at Sigma = I", noise, (sp.pi * r - 1) / m1)
    for size, count in ((1, 1), (2, 7), (8, 64), (128, 3)):
        exact = noise.subs({r: size, m1: count})
        yield Identity(f"the noise at r = {size}, M1 = {count} in the code", retrained_noise(size, count), exact)


LEMMA = Lemma(
    number=9,
    name="retrained-rows",
    latex=(
        r"\mathbb E F(u) = \frac{\Sigma u}{\sqrt{2\pi\,u^\top\Sigma u}},\qquad "
        r"\frac{\mathbb E\|F - \mathbb E F\|^2}{\|\mathbb E F\|^2} = \frac{\pi r - 1}{M_1}\ \text{ for } \Sigma = I_r"
    ),
    plain="A fresh neuron retrained on M1 Gaussian points learns Sigma u up to scale; relative noise energy (pi r - 1)/M1 when isotropic.",
    source=Source("derived", "Gaussian regression on u.x, and the second moment over a half space"),
    assumptions={
        "centred_points": "the points have mean zero",
        "gaussian_points": "the points are Gaussian",
        "constant_labels": "all labels of the distilled set are equal",
        "independent_points": "the points are drawn independently",
        "isotropic_points": "Sigma = I (for the noise)",
    },
    instances={
        "r": st.integers(1, 6),
        "m1": st.integers(1, 32),
        "tilt": st.integers(0, 15).map(lambda n: n / 10),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("centred_points", "mean 0.5 to 1 in one coordinate", {"shift": st.floats(0.5, 1.0)}),
        Control("gaussian_points", "points on a sphere", {"on_sphere": st.just(True), "r": st.integers(1, 2)}),
        Control("constant_labels", "labels +1 or -1 at random", {"signs": st.just(True)}),
        Control("independent_points", "points in pairs x, -x", {"mirrored": st.just(True), "m1": st.integers(2, 32)}),
        Control(
            "isotropic_points",
            "the noise at a tilted Sigma",
            {"isotropic": st.just(False), "r": st.integers(2, 6), "tilt": st.integers(10, 15).map(lambda n: n / 10)},
        ),
    ),
    examples=60,
    code=("theory.predictions.retrained_noise", "theory.two_layer.gradient"),
)
