"""The typical spectrum of the retrained first layer at r index directions, M1 stored points and infinite width: no sampling.

    x_m = s_m n_m    stored points, m <= M, independent N(0, I_r) (so H proportional to the identity); s_m = |x_m|
    xbar             their mean                                        gamma = r / M
    row of a neuron  plain F(u) = (1/M) sum_m x_m 1{u.x_m >= 0},  reflected (each point used as x and -x) (1/2M) sum_m x_m sign(u.x_m)
    A                E_u[F F^T] over isotropic u (L -> infinity):
                     A_reflected = (1/(2 pi M^2)) sum_mk arcsin(n_m.n_k) x_m x_k^T,     A_plain = A_reflected + xbar xbar^T / 4

Derived here, in five steps. Each is checked by itself in the tests.

1. Harmonics. arcsin(n.n') = (pi/2) E_w[sign(w.n) sign(w.n')], and sign(w.n) has degree-one part r E|n_1| w.n on the sphere. So the
   degree-one part of arcsin(rho) is a_1 rho with a_1 = (pi/2) r (E|n_1|)^2 = (r/2) [Gamma(r/2) / Gamma((r+1)/2)]^2 = 1 + 1/(2r) + ...
   The rest R(rho) has degrees 3, 5, ...: E[R(n.n') n'] = 0. With C = (1/M) sum_m s_m n_m n_m^T and W = (1/M) sum_m x_m x_m^T,
       A_reflected = (1/(2 pi)) [ a_1 C^2 + ((pi/2 - a_1)/M) W ] + remainder;
   the middle term is R at m = k. The remainder (m != k) has mean zero, entries of variance E R^2 ~ 1/(6 r^3) times 1/(2 pi M)^2 and
   operator norm O(1/(M r)), against 1/r for the first term and 1/M for the second: dropped.
2. W is a white Wishart matrix. Its typical eigenvalues w_i are the quantiles (i - 1/2)/r of the Marchenko-Pastur law; the first and the
   last are the medians of the extreme eigenvalues, by the Tracy-Widom law of order one with centring and scaling for M - 1/2 and
   r - 1/2, and log-transformed at the lower end (Ma, Bernoulli 18, 2012: error O(r^(-2/3))).
3. C has the same directions n_m and less spread weights: Var s^2 / (E s^2)^2 = 2/r, but Var s / (E s)^2 = r/(E s)^2 - 1 ~ 1/(2r). Noise of
   relative variance v in the weights moves w_i by (v/M) sum_{j != i} w_i w_j / (w_i - w_j) (second-order perturbation; the squared
   matrix element of n_m n_m^T between directions i and j sums to w_i w_j / M). Taking the difference dv of the two variances out,
       c_i = (E s / r) w_i exp[ -(dv/M) sum_{j != i} w_j / (w_i - w_j) ].
   A_reflected then has the eigenvalues mu_i = [a_1 c_i^2 + ((pi/2 - a_1)/M) w_i] / (2 pi).
4. Common mode. A_reflected does not change when points change sign, so given {+-x_m} the mean is xbar = (1/M) sum_m eps_m x_m with free
   signs: covariance W/M. Its typical square along direction i is (q/M) w_i, with q r the median of chi^2_r (|xbar|^2 M ~ chi^2_r), and
   A_plain has the spectrum of diag(mu) + v v^T, v_i^2 = q w_i / (4M): the secular equation 1 = sum_i v_i^2 / (lambda - mu_i).
5. The least M of a criterion solves criterion(M) = threshold, M continuous.
6. Common part. Matching against a finite number K of first-layer directions gives points x_m = c + z_m, c the same for all m and
   |c|^2 = common r, common = rho/(1 + rho), rho = pi d/(2K) (theory.predictions.diversity_ratio without its 1/M1). For |u| = 1, t = u.c,
       E_z[x sign(u.x)] = c (2 Phi(t) - 1) + 2 phi(t) u,
   so that averaging over u leaves one eigenvalue along c and one across it (`common_part_moments`). At finite M the bulk mu takes the
   second one's factor, c has overlap 1/r with every eigendirection, and the mean point is c/2 + v, v of step 4 with alternating signs
   (no overlap with c). Both sets feel c: the reflected one through (1 + common r)^2, the plain one through (pi/2) r^2 (common + 1/M),
   which more points do not lower. Against medians of 60 draws at M >= 12 r and common <= 0.4: within 10 %.
7. Map noise. Real points are x = T z with T = I + Delta, Delta symmetric with entries of variance `spread` (theory.retrained). To first
   order the second moment of the points becomes T W T = I + (W - I) + 2 Delta: the bulk is that of M' points, 1/M' = 1/M + 4 spread,
   while the diagonal part of step 1 and the mean keep 1/M. Many points no longer make the rows isotropic.

As r -> infinity: mu -> 1/(2 pi r) and |v|^2 -> r/(4M), so largest / median -> 1 + pi r^2/(2M): common mode and plain conditioning need
M = (pi/2) r^2 / (threshold - 1). Reflected, mu is a function of gamma alone at both edges (1 +- sqrt(gamma))^2: M proportional to r.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.integrate import cumulative_trapezoid
from scipy.optimize import root_scalar
from scipy.special import airy, gammaln, ndtr
from scipy.stats import chi2

MANY_POINTS = 1e4  # M1 / r^2 beyond which a common part, not the number of points, keeps a criterion from being met
ASYMPTOTIC_EXPONENT = {"common_mode": 2.0, "conditioning": 2.0, "reflected": 1.0}
"""The criteria, and the exponent in r of the least M1 of each as r -> infinity."""


class Spectrum(NamedTuple):
    """Eigenvalues in ascending order (last axis) of the second moment of the retrained rows."""

    plain: Float[Any, "... r"]
    reflected: Float[Any, "... r"]


def criteria(spectrum: Spectrum) -> dict[str, Any]:
    """common_mode: largest / median eigenvalue, plain.  conditioning: largest / smallest, plain.  reflected: largest / smallest.

    The median of an even number of eigenvalues is the mean of the middle two.
    """
    plain, reflected = spectrum
    r = plain.shape[-1]
    median = 0.5 * (plain[..., (r - 1) // 2] + plain[..., r // 2])
    return {
        "common_mode": plain[..., -1] / median,
        "conditioning": plain[..., -1] / plain[..., 0],
        "reflected": reflected[..., -1] / reflected[..., 0],
    }


def mean_norm(r: int) -> float:
    """E|x| for x ~ N(0, I_r): sqrt(2) Gamma((r+1)/2) / Gamma(r/2)."""
    return math.sqrt(2.0) * math.exp(gammaln((r + 1) / 2) - gammaln(r / 2))


def arcsine_degree_one(r: int) -> float:
    """a_1 = r E[rho arcsin rho], rho = n.n' on the sphere of R^r: the linear part of arcsin (step 1). Equals r / (E|x|)^2."""
    return r / mean_norm(r) ** 2


@cache
def tracy_widom_median() -> float:
    """Median of the Tracy-Widom law of order one, -1.2686, from F_1(s) = det(1 - K_s), K_s(x, y) = Ai(x + y + s) on (0, inf).

    Determinant: Ferrari and Spohn, J. Phys. A 38 (2005); by Gauss-Legendre quadrature on (0, 14), where Ai is below 1e-15 beyond.
    """
    x, weight = np.polynomial.legendre.leggauss(60)
    x, root = 7.0 * (x + 1.0), np.sqrt(7.0 * weight)

    def excess(s: float) -> float:
        kernel = root[:, None] * airy(x[:, None] + x + s)[0] * root
        return float(np.linalg.det(np.eye(len(x)) - kernel)) - 0.5

    return float(root_scalar(excess, bracket=(-3.0, 1.0)).root)


def marchenko_pastur_quantiles(gamma: float, p: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Quantiles of the Marchenko-Pastur law of ratio 0 < gamma < 1 and mean 1.

    In the angle phi of t = 1 + gamma - 2 sqrt(gamma) cos(phi) the density is (2/pi) sin(phi)^2 / t, smooth up to both edges.
    """
    phi = np.linspace(0.0, math.pi, 4001)
    t = 1.0 + gamma - 2.0 * math.sqrt(gamma) * np.cos(phi)
    mass = cumulative_trapezoid(np.sin(phi) ** 2 / t, phi, initial=0.0)
    return np.interp(p, mass / mass[-1], t)


def wishart_edges(r: int, m: float) -> tuple[float, float]:
    """Medians of the smallest and the largest eigenvalue of W = (1/M) sum_m x_m x_m^T, x_m ~ N(0, I_r), M > r (step 2)."""
    a, b = math.sqrt(m - 0.5), math.sqrt(r - 0.5)
    tw = tracy_widom_median()
    top = (a + b) ** 2 + tw * (a + b) * (1.0 / a + 1.0 / b) ** (1.0 / 3.0)
    bottom = (a - b) ** 2
    tau = (a - b) * (1.0 / b - 1.0 / a) ** (1.0 / 3.0) / bottom
    return bottom * math.exp(tau * tau / 8.0 - tau * tw) / m, top / m


def wishart_spectrum(r: int, m: float) -> Float[np.ndarray, "r"]:
    """Typical eigenvalues of W, ascending (step 2). Refuses M < 2r, where the log-transformed lower edge is out of its range."""
    if r < 2 or not m >= 2 * r:
        raise ValueError(f"the typical spectrum needs r >= 2 and M >= 2 r: r={r}, M={m:g}")
    w = marchenko_pastur_quantiles(r / m, (np.arange(r) + 0.5) / r)
    w[0], w[-1] = wishart_edges(r, m)
    return w


def weighted_spectrum(r: int, m: float) -> Float[np.ndarray, "r"]:
    """Typical eigenvalues of C = (1/M) sum_m |x_m| n_m n_m^T, ascending (step 3)."""
    w = wishart_spectrum(r, m)
    dv = 2.0 / r - (arcsine_degree_one(r) - 1.0)
    gap = w[:, None] - w
    np.fill_diagonal(gap, np.inf)
    return mean_norm(r) / r * w * np.exp(-dv / m * np.sum(w / gap, axis=1))


@cache
def common_part_moments(r: int, common: float) -> tuple[float, float]:
    """(along c, across c): the two eigenvalues of A_reflected at M = infinity for points c + z, z ~ N(0, I_r), |c|^2 = common r (step 6).

    Both are 1/(2 pi r) at common = 0. The plain set adds |c|^2/4 along c.
    """
    if r < 2 or not 0 <= common < math.inf:
        raise ValueError(f"the common part needs r >= 2 and a finite energy >= 0: r={r}, common={common}")
    node, weight = np.polynomial.legendre.leggauss(200)
    angle = 0.5 * math.pi * (node + 1.0)  # between u and c; u uniform on the sphere
    density = weight * np.sin(angle) ** (r - 2)
    density /= density.sum()
    size = math.sqrt(common * r)
    t = size * np.cos(angle)
    phi = np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
    along = float(density @ (0.5 * size * (2.0 * ndtr(t) - 1.0) + phi * np.cos(angle)) ** 2)
    return along, float(density @ (phi * np.sin(angle)) ** 2) / (r - 1)


def typical_spectrum(r: int, m: float, common: float = 0.0, spread: float = 0.0) -> Spectrum:
    """Typical eigenvalues of A_plain and A_reflected at M stored points. O(r^3).

    Steps 1 to 4; 6 where the points have a common part, 7 where the map that made them is noisy. Needs 1/M + 4 spread <= 1/(2r).
    """
    bulk = 1.0 / (1.0 / m + 4.0 * spread)
    w, c, a_1 = wishart_spectrum(r, bulk), weighted_spectrum(r, bulk), arcsine_degree_one(r)
    mu = (a_1 * c**2 + (0.5 * math.pi - a_1) / m * w) / (2.0 * math.pi)
    along, across = common_part_moments(r, common)
    direction = np.full(r, 1.0 / math.sqrt(r))
    reflected = np.diag(mu * (2.0 * math.pi * r * across)) + (along - across) * np.outer(direction, direction)
    q = float(chi2.ppf(0.5, r)) / r
    signs = np.where(np.arange(r) % 2 == 0, 1.0, -1.0)
    v = np.sqrt(0.25 * q / m * w * r / np.sum(w)) * signs + 0.5 * math.sqrt(common * r) * direction
    return Spectrum(np.linalg.eigvalsh(reflected + np.outer(v, v)), np.linalg.eigvalsh(reflected))


def least_points(r: int, criterion: str, threshold: float, common: float = 0.0, spread: float = 0.0) -> float:
    """The M1 at which the typical spectrum meets the criterion (step 5); a real number >= 2r, or inf where no M1 meets it.

    Against medians over many draws (80 to 4000), thresholds 3 (common mode) and 10 (both others), no common part: within 2 % for r = 8
    to 64; at r = 128 within the 2 % that 10 draws resolve. Raises ValueError where the criterion is met already at the least M1 of the
    expansion, 1/M1 + 4 spread = 1/(2r), or where there is none.
    """
    _require_criterion(criterion, threshold)
    room = 0.5 / r - 4.0 * spread
    if room <= 0:
        raise ValueError(f"the map noise leaves no M1 for the expansion: r={r}, spread={spread:g}, at most {0.125 / r:g}")

    def excess(log_m: float) -> float:
        return math.log(criteria(typical_spectrum(r, math.exp(log_m), common, spread))[criterion] / threshold)

    low = -math.log(room) + 1e-9
    if excess(low) <= 0:
        raise ValueError(f"{criterion} <= {threshold:g} is met already at M1 = {1.0 / room:.3g}: lower the threshold")
    high = low + math.log(2.0)
    while excess(high) > 0:
        low, high = high, high + math.log(2.0)
        if high > math.log(MANY_POINTS * r * r):
            return math.inf
    return math.exp(root_scalar(excess, bracket=(low, high), xtol=1e-6).root)


def asymptotic_points(r: int, criterion: str, threshold: float) -> float:
    """The leading order of `least_points` as r -> infinity (last paragraph of the derivation)."""
    _require_criterion(criterion, threshold)
    if criterion != "reflected":
        return 0.5 * math.pi * r * r / (threshold - 1.0)

    def edge(gamma: float, sign: float) -> float:
        t = (1.0 + sign * math.sqrt(gamma)) ** 2
        return t * t + (0.5 * math.pi - 1.0) * gamma * t

    def excess(gamma: float) -> float:
        return edge(gamma, 1.0) - threshold * edge(gamma, -1.0)

    return r / root_scalar(excess, bracket=(0.0, 1.0 - 1e-9)).root


def _require_criterion(criterion: str, threshold: float) -> None:
    if criterion not in ASYMPTOTIC_EXPONENT:
        raise ValueError(f"unknown criterion {criterion!r}; known: {', '.join(ASYMPTOTIC_EXPONENT)}")
    if not 1.0 < threshold < math.inf:
        raise ValueError(f"a ratio of eigenvalues needs a threshold > 1: {criterion} <= {threshold}")
