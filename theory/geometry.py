"""The geometry of a distilled set, from the energies of `theory.predictions`: alignment, diversity, angles, retrained rows, risk floors.

    g(w), D(u), K   rows, points and number of directions, as in theory.predictions       m1   E|u_1| on the sphere of R^d
    A, Sigma        expected Hessian in S* and covariance of the points, there A^2
    F(w)            (1/M1) sum_m x_m 1{w.x_m >= 0}, a row retrained on M1 points

All of it is derived here; expectations are of numerator and denominator apart (pooled over rows, points and draws).

Diversity. Given data and directions the points are independent draws over u with mean (1/2K) sum_i g_i, of energy
C = (1/4)[(1 - 1/K) E_even + E(g)/K]. With V = E_K(D) - C their spread, the mean of M1 points has C + V/M1 and the deviations
(1 - 1/M1) V:  ratio = (C/V + 1/M1)/(1 - 1/M1). Leading order: rho/(1 + rho) + 1/M1, rho = pi d/(2K).

Angles. X = X_on + X_off, rows x_m. To first order the leading r right singular vectors of X turn by X_off^T X_on (X_on^T X_on)^-1. The
noise of D(u) is linear in u: a matrix whose entry (off, j) has variance c_j = E[y^2 z_j^2] where entries off S* have sigma^2 (and one
diagonal entry 3 sigma^2), in all sigma^2 d' with d' = d + 2 + sum_j (c_j/sigma^2 - 1). The part met by z turns every row alike, the rest
(and the population part, along u itself) is independent of z, with E tr (A Z^T Z A)^-1 = tr A^-2/(M1 - r - 1). At K = infinity, with
q = E_off/E_on of the points, q_n and q_p its noise and population parts and c'_j = c_j/(sigma^2 d'):
    sum tan^2 = tr A^2 { [q_p (1 - r/d) + q_n (1 - sum_j c'_j)] tr A^-2/(M1 - r - 1) + q_n sum_j c'_j (A^-2)_jj }.

Retrained rows. For points linear in a uniform u with covariance Sigma, E F(w) = (sqrt(d) m1/2) Sigma w/|Sigma^(1/2) w|, |F|^2 sums to
tr Sigma/2 over points, so the relative noise is [2 tr Sigma/(d m1^2 R) - 1]/M1 with R = E[w^T Sigma^2 w / w^T Sigma w]; for isotropic
points on r directions and d -> infinity this is (pi r - 1)/M1.

Risk floor. A network whose rows span V, dim V = k, explains at most E Var E[f*|V^T x]; the degree-p Hermite tensor T_p is projected in
every slot, so at most tr P_V G with G = sum_p T_p(1) T_p(1)^T (T_p(1) its r x r^(p-1) unfolding): at most the k largest eigenvalues of G.
Equality where the Hermite tensors share an orthogonal basis (no cross terms).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.integrate import quad

from theory import predictions
from theory.multi_index import HermiteLink
from theory.predictions import Energy, mean_abs_coordinate


def alignment(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> float:
    """E<g(w), H w> / (E|g(w)|^2 E|H w|^2)^(1/2): the pooled cosine between teacher rows and H w."""
    a = link.hessian
    h2 = float(np.sum(a * a))
    square = (2.0 * h2 + float(np.trace(a)) ** 2) / (d * (d + 2))
    inner = (h2 / d - 0.5 * square - 0.5 * link.quartic_traces[0] / (d * (d + 2))) / math.sqrt(2.0 * math.pi)
    rows = predictions.teacher_rows(link, noise, d, n, preprocessing)
    return inner * predictions.signal_shrinkage(d, n, preprocessing) / math.sqrt((rows.on + rows.off) * h2 / d)


def moved_points(link: HermiteLink, noise: float, d: int, n: int, k: int | None, kept: float, preprocessing: str = "ols") -> Energy:
    """Energies of x0 + D(x0), x0 isotropic with |x0|^2 = kept^2 E|D|^2: points whose step did not erase their start."""
    r, trace = link.r, float(np.trace(link.hessian))
    points = predictions.distilled_points(link, noise, d, n, k, preprocessing)
    size = kept * math.sqrt(points.on + points.off)
    amplitude = predictions.signal_shrinkage(d, n, preprocessing) * mean_abs_coordinate(d) / (2.0 * math.sqrt(2.0 * math.pi) * (d + 1))
    on = amplitude * trace * (1.0 + 0.5 * ((r + 2) / (d * (d + 2)) - r / d))
    off = amplitude * trace * 0.5 * ((d - r) / (d * (d + 2)) - (d - r) / d)
    return points + Energy(size**2 * r / d + 2.0 * size * on, size**2 * (d - r) / d + 2.0 * size * off)


def diversity(link: HermiteLink, noise: float, d: int, n: int, k: int | None, m1: int, preprocessing: str = "ols") -> float:
    """E|mean x|^2 / E|x - mean x|^2 of M1 > 1 distilled points at finite d, N and K (None: K = infinity)."""
    if m1 < 2:
        raise ValueError(f"the diversity of points needs at least two: M1={m1}")
    points = predictions.distilled_points(link, noise, d, n, k, preprocessing)
    mean = predictions.even_part(link, noise, d, n, preprocessing) * 0.25
    if k is not None:
        mean = mean * (1.0 - 1.0 / k) + predictions.teacher_rows(link, noise, d, n, preprocessing) * (0.25 / k)
    common = mean.on + mean.off
    return (common / (points.on + points.off - common) + 1.0 / m1) / (1.0 - 1.0 / m1)


def angle_tangents(link: HermiteLink, noise: float, d: int, n: int, m1: int, preprocessing: str = "ols") -> float:
    """sum of tan^2 of the r principal angles between S* and the leading right singular space of M1 points, K = infinity; relative error
    of order q + 1/d.
    """
    r, a = link.r, link.hessian
    singular = np.abs(np.linalg.eigvalsh(a))
    if m1 <= r + 1 or not singular.min() > 1e-9 * singular.max():
        raise ValueError(f"angles need M1 > r + 1 points and an expected Hessian of full rank: M1={m1}, r={r}")
    points = predictions.distilled_points(link, noise, d, n, None, preprocessing)
    still = predictions.point_population(link, d).off * predictions.signal_shrinkage(d, n, preprocessing) ** 2
    sigma2 = link.residual.variance + noise**2
    weights = (link.residual.square_moments + noise**2) / sigma2
    weights = weights / (d + 2 + float(np.sum(weights - 1.0)))
    inverse = np.linalg.inv(a @ a)
    apart = (still * (1.0 - r / d) + (points.off - still) * (1.0 - float(np.sum(weights)))) * float(np.trace(inverse)) / (m1 - r - 1)
    along = (points.off - still) * float(weights @ np.diag(inverse))
    return float(np.sum(a * a)) * (apart + along) / points.on


def rayleigh_mean(eigenvalues: Float[np.ndarray, "r"]) -> float:
    """R = E[w^T Sigma^2 w / w^T Sigma w] for isotropic w, from E[s/t] = int E[s exp(-x t)] dx with Gaussian w."""
    scaled = eigenvalues / eigenvalues.max()
    if len(scaled) == 1:
        return float(eigenvalues[0])

    def integrand(p: float) -> float:
        x = p / (1.0 - p)
        inner = 1.0 + 2.0 * x * scaled
        return float(np.sum(scaled**2 / inner) * np.exp(-0.5 * np.sum(np.log(inner)))) / (1.0 - p) ** 2

    return float(eigenvalues.max()) * quad(integrand, 0.0, 1.0, epsrel=1e-9, limit=200)[0]


def retrained_noise(eigenvalues: Float[np.ndarray, "n"], d: int, m1: int) -> float:
    """E|F - E F|^2 / |E F|^2 for M1 points linear in a uniform direction of R^d with the given (non-zero) eigenvalues of Sigma."""
    spread = 2.0 * float(np.sum(eigenvalues)) / (d * mean_abs_coordinate(d) ** 2 * rayleigh_mean(eigenvalues))
    return (spread - 1.0) / m1


def point_spectrum(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Float[np.ndarray, "d"]:
    """Eigenvalues of the points' covariance at K = infinity: A^2 scaled to E_on on S*, E_off spread evenly off it."""
    points = predictions.distilled_points(link, noise, d, n, None, preprocessing)
    squares = np.linalg.eigvalsh(link.hessian) ** 2
    return np.concatenate([points.on * squares / np.sum(squares), np.full(d - link.r, points.off / (d - link.r))])


def head_error(m2: int, width: int) -> float:
    """(E|a_S - a_T|^2 / |a_T|^2)^(1/2) = (1 - M2/L)^(1/2) for M2 <= L labels of a head a_T of isotropic direction: the least-norm head is
    the projection of a_T on the row space of Phi, of dimension M2; 0 from M2 = L on.
    """
    return math.sqrt(max(0.0, 1.0 - m2 / width))


def least_unexplained(link: HermiteLink, k: int) -> float:
    """Lower bound on E (f - f*)^2 / Var f* of every network whose rows span k directions (plus a linear function), k >= 0."""
    gram = np.zeros((link.r, link.r))
    for degree in range(2, link.degree + 1):
        unfolded = link.degree_tensor(degree).reshape(link.r, -1)
        gram += unfolded @ unfolded.T
    eigenvalues = np.linalg.eigvalsh(gram)[::-1]
    return max(0.0, float(np.sum(eigenvalues[k:])) / link.variance)


class DirectionEnergies(NamedTuple):
    """Energy along each index direction: of teacher rows, and of distilled points at K = infinity."""

    rows: Float[np.ndarray, "r"]
    points: Float[np.ndarray, "r"]


def direction_energies(link: HermiteLink, noise: float, d: int, n: int) -> DirectionEnergies:
    """E g_j^2 and E D_j^2 for every index direction j after least squares; links of degree <= 3. Their sums are the energies on S*.

    The sphere's moments again: E (w^T A w) w_j^2 = (2 A_jj + tr A)/(d(d+2)), E (A w)_j w_j w^T A w = (2 (A^2)_jj + A_jj tr A)/(d(d+2)),
    E (w^T A w)^2 w_j^2 = (2 |A|^2 + (tr A)^2 + 4 A_jj tr A + 8 (A^2)_jj)/(d(d+2)(d+4)).
    """
    a = link.hessian
    own, square, trace = np.diag(a), np.diag(a @ a), float(np.trace(a))
    second = d * (d + 2)
    sixth = (2.0 * float(np.sum(square)) + trace**2 + 4.0 * trace * own + 8.0 * square) / (second * (d + 4))
    mixed = (2.0 * square + trace * own) / second
    rows = (square / d - mixed + 0.25 * sixth) / (2.0 * math.pi)
    bent = 0.25 * (sixth - 2.0 * trace * (2.0 * own + trace) / second + trace**2 / d)
    points = (d * square + d * mixed - trace * own + bent) * ((mean_abs_coordinate(d) / (d + 1)) ** 2 / (8.0 * math.pi))
    moments, sigma2 = link.residual.square_moments + noise**2, link.residual.variance + noise**2
    shrinkage, factor = predictions.signal_shrinkage(d, n, "ols") ** 2, (1.0 - (d + 1) / n) / n
    kernel, explained = predictions.kernel_moments(d)
    row_noise = (moments / 4 - (2.0 * moments - sigma2) / (2.0 * math.pi * d)) * factor
    return DirectionEnergies(
        rows * shrinkage + row_noise, points * shrinkage + (moments * kernel - (2.0 * moments - sigma2) * explained) * factor
    )


def finite_width(eigenvalues: Float[np.ndarray, "r"], width: float) -> Float[np.ndarray, "r"]:
    """Mean eigenvalues of the second moment of L rows, from those at L = infinity (ascending, distinct).

    Second-order perturbation: the sample's element (i, j) has variance (r/(r+2)) l_i l_j/L for rows of isotropic direction and one norm,
    so l_i moves by (l_i/L')  sum_{j != i} l_j/(l_i - l_j), L' = L (r+2)/r (for Gaussian rows L' = L: Lawley, Biometrika 43, 1956).
    """
    r = len(eigenvalues)
    gap = eigenvalues[:, None] - eigenvalues
    np.fill_diagonal(gap, np.inf)
    return eigenvalues * (1.0 + r / (r + 2) / width * np.sum(eigenvalues / gap, axis=1))
