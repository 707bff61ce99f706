"""Closed-form predictions of the two-phase distillation at finite N, d, width and number of points, one function each.

    y        f*(x) + noise after preprocessing: mean and linear part removed        sigma^2   E[y^2]
    H        E[Hess f*], squared Frobenius norm |H|^2, tau = (tr H)^2/|H|^2           chi       E[y^2 |z|^2], z = B^T x
    g(w)     (1/N) sum_n y_n x_n 1{w.x_n >= 0}, |w| = 1: a teacher row               K         number of distinct first-layer directions
    D(u)     (1/K) sum_i g(w_i) 1{w_i.u >= 0}, |u| = 1: a distilled point            (L/2 times J initialisations for symmetric starts)

The paper (Kinoshita et al., arXiv:2603.14830, abstract) states the bound Theta~(r^2 d + L); everything in this module is derived here.

Population. For links of degree <= 3, Stein's lemma and the gate's Hermite coefficients give exactly
    g(w) = (2 pi)^(-1/2) [H w - (1/2)(w^T H w) w].
Averaging over w on the sphere with 1{w.u >= 0}, m1 = E|w_1|:
    D(u) = m1 / (2 sqrt(2 pi) (d+1)) [d H u + (1/2)(u^T H u - tr H) u].
Energies on and off S* follow from the sphere's moments, for A of size r and E over the sphere of R^d:
    E u^T H u = tr H/d,  E (u^T H u)^2 = (2+tau)|H|^2/(d(d+2)),  and |P u|^2 multiplies these by (r+2)/(d+2) and (r+4)/(d+4).
Links of degree 4 add terms of relative size 1/d inside S* (amplitude) that are left out.

Noise. Exact least squares makes sum_n y_n = sum_n y_n x_n = 0, so each weight k(x) (the gate, or its average) may be replaced by its
part orthogonal to {1, x}: for the gate x(G - 1/2) - w/sqrt(2 pi) with (G - 1/2)^2 = 1/4; for the averaged gate kappa_0 = 1/4 + h,
h = arcsin(cos(x, u))/(2 pi), x h - eta u with eta = E[(x.u) h]. Fitting d + 1 coefficients takes the factor 1 - (d+1)/N. Directions
off S* carry sigma^2 each, those on S* carry chi together (the subtracted part meets x G once and itself once: 2 chi - sigma^2 r where
directions off S* have sigma^2 (d - r)). For uniform u the cosine is independent of x, so E h^2 multiplies both.
The signal shrinks too: a residual drops its own leverage, (1 + |x|^2)/N, and for a quadratic target E[|x|^2 y x (G - 1/2)] is d + 4
times the signal (homogeneous parts of degree 3 and 1 weigh 3/2 and -1/2), so its amplitude takes the factor 1 - (d+5)/N.
Without preprocessing the gate has mean square 1/2 and kappa_0 mean square 1/16 + E h^2: the constant makes the d^3/N law.

Finite K. Given the data the w_i are independent and |g|^2 is even in w, so for energies on or off S* alike
    E_K(D) = (1 - 1/K) E_inf(D) + (1/2K) E(g).
"""

import math
from dataclasses import dataclass

from scipy.integrate import quad
from scipy.special import beta as beta_function
from scipy.special import gammaln

from theory.multi_index import HermiteLink, residual_second_moment

PREPROCESSING = ("ols", "none")


@dataclass(frozen=True)
class Energy:
    """Expected squared norms on S* and off it."""

    on: float
    off: float

    def __add__(self, other: "Energy") -> "Energy":
        return Energy(self.on + other.on, self.off + other.off)

    def __mul__(self, factor: float) -> "Energy":
        return Energy(self.on * factor, self.off * factor)

    @property
    def fraction(self) -> float:
        """E_off / E_total."""
        return self.off / (self.on + self.off)

    @property
    def ratio(self) -> float:
        """q = E_off / E_on, which does not saturate."""
        return self.off / self.on


def mean_abs_coordinate(d: int) -> float:
    """m1 = E|w_1| for w uniform on the unit sphere of R^d, about sqrt(2/(pi d))."""
    return math.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / math.sqrt(math.pi)


def cosine_moment(d: int, power: int) -> float:
    """E[cos^(2 - power) arcsin(cos)^power], power in {1, 2}, for the cosine between independent uniform directions of R^d, d >= 2."""
    density = 1.0 / beta_function(0.5, (d - 1) / 2)

    def integrand(t: float) -> float:
        return math.sin(t) ** (2 - power) * t**power * math.cos(t) ** (d - 2)

    return 2.0 * density * quad(integrand, 0.0, math.pi / 2, epsabs=0.0, epsrel=1e-10, limit=200)[0]


def _check(link: HermiteLink, d: int, n: int, preprocessing: str) -> None:
    if preprocessing not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {preprocessing!r}; known: {', '.join(PREPROCESSING)}")
    if not 1 <= link.r <= d or d < 2:
        raise ValueError(f"need 1 <= r <= d and d >= 2: r={link.r}, d={d}")
    if n <= d + 1:
        raise ValueError(f"least squares needs N > d + 1 samples: N={n}, d={d}")


def _hessian_sums(link: HermiteLink) -> tuple[float, float]:
    """(|H|^2, (tr H)^2)."""
    a = link.hessian
    return float((a * a).sum()), float(a.trace()) ** 2


def _signal_shrinkage(d: int, n: int, preprocessing: str) -> float:
    """Energy factor that exact least squares on the same N samples takes from the signal."""
    return (1.0 - (d + 5) / n) ** 2 if preprocessing == "ols" else 1.0


def row_population(link: HermiteLink, d: int) -> Energy:
    """Energy of E g(w), averaged over w on the sphere; exact for degree <= 3."""
    r, (h2, t2) = link.r, _hessian_sums(link)
    fourth = (2 * h2 + t2) / (d * (d + 2))
    on = h2 / d - fourth + 0.25 * fourth * (r + 4) / (d + 4)
    off = 0.25 * fourth * (d - r) / (d + 4)
    return Energy(on, off) * (1.0 / (2.0 * math.pi))


def row_noise(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """Energy of the fluctuation of g(w) over samples; leading order in 1/N, next order in 1/d."""
    _check(link, d, n, preprocessing)
    r, sigma2 = link.r, residual_second_moment(link, noise)
    chi = link.radial_moment + noise**2 * r
    if preprocessing == "none":
        return Energy(chi / 2, sigma2 * (d - r) / 2) * (1.0 / n)
    explained = 1.0 / (2.0 * math.pi * d)
    on = chi / 4 - (2.0 * chi - sigma2 * r) * explained
    return Energy(on, sigma2 * (d - r) * (0.25 - explained)) * ((1.0 - (d + 1) / n) / n)


def teacher_rows(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """E|P g|^2 and E|(I - P) g|^2 of the rows of the teacher's first gradient."""
    return row_population(link, d) * _signal_shrinkage(d, n, preprocessing) + row_noise(link, noise, d, n, preprocessing)


def point_population(link: HermiteLink, d: int) -> Energy:
    """Energy of E D(u) at K = infinity, averaged over u on the sphere; exact for degree <= 3."""
    r, (h2, t2) = link.r, _hessian_sums(link)
    first, fourth = t2 / d, (2 * h2 + t2) / (d * (d + 2))
    on = d * h2 + d * (fourth - first) + 0.25 * (fourth * (r + 4) / (d + 4) - 2 * first * (r + 2) / (d + 2) + t2 * r / d)
    off = 0.25 * (fourth * (d - r) / (d + 4) - 2 * first * (d - r) / (d + 2) + t2 * (d - r) / d)
    return Energy(on, off) * ((mean_abs_coordinate(d) / (d + 1)) ** 2 / (8.0 * math.pi))


def point_noise(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """Energy of the fluctuation of D(u) over samples at K = infinity."""
    _check(link, d, n, preprocessing)
    r, sigma2 = link.r, residual_second_moment(link, noise)
    chi = link.radial_moment + noise**2 * r
    h2 = cosine_moment(d, 2) / (4.0 * math.pi**2)
    if preprocessing == "none":
        return Energy(chi, sigma2 * (d - r)) * ((1.0 / 16.0 + h2) / n)
    eta = math.sqrt(2.0) * math.exp(gammaln((d + 1) / 2) - gammaln(d / 2)) * cosine_moment(d, 1) / (2.0 * math.pi)
    explained = eta**2 / d
    on = chi * h2 - (2.0 * chi - sigma2 * r) * explained
    return Energy(on, sigma2 * (d - r) * (h2 - explained)) * ((1.0 - (d + 1) / n) / n)


def distilled_points(link: HermiteLink, noise: float, d: int, n: int, k: int | None = None, preprocessing: str = "ols") -> Energy:
    """E|P D|^2 and E|(I - P) D|^2 of the distilled points; k distinct first-layer directions, None for the kernel limit."""
    limit = point_population(link, d) * _signal_shrinkage(d, n, preprocessing) + point_noise(link, noise, d, n, preprocessing)
    if k is None:
        return limit
    if k < 1:
        raise ValueError(f"need at least one first-layer direction: K={k}")
    return limit * (1.0 - 1.0 / k) + teacher_rows(link, noise, d, n, preprocessing) * (0.5 / k)


def row_ratio_leading(link: HermiteLink, noise: float, d: int, n: int) -> float:
    """q_T = (pi/2)(sigma^2/|H|^2) d^2/N + (tau+2)/(4d): leading order of teacher_rows(...).ratio."""
    h2, t2 = _hessian_sums(link)
    return 0.5 * math.pi * residual_second_moment(link, noise) / h2 * d * d / n + (t2 / h2 + 2) / (4 * d)


def point_ratio_leading(link: HermiteLink, noise: float, d: int, n: int, k: float = math.inf, preprocessing: str = "ols") -> float:
    """q_D at leading order. With rho = pi d/(2K):

    ols    (sigma^2/|H|^2)(d^2/N)(1 + pi rho)/(1 + 2 rho) + [tau + 2 rho (tau + 2)]/(4d (1 + 2 rho))
    none   K = infinity only: (sigma^2/|H|^2)[(pi^2/4) d^3/N + d^2/N] + tau/(4d)
    """
    h2, t2 = _hessian_sums(link)
    scale, tau = residual_second_moment(link, noise) / h2, t2 / h2
    if preprocessing == "none":
        return scale * (0.25 * math.pi**2 * d**3 / n + d * d / n) + tau / (4 * d)
    rho = 0.5 * math.pi * d / k
    return scale * d * d / n * (1 + math.pi * rho) / (1 + 2 * rho) + (tau + 2 * rho * (tau + 2)) / (4 * d * (1 + 2 * rho))


def diversity_ratio(d: int, k: int, m1: int) -> float:
    """|mean x|^2 / mean |x - mean x|^2 of M1 distilled points: rho/(1 + rho) + 1/M1, rho = pi d/(2K).

    The points share H (mean of w_i); the gates' specific parts make them differ.
    """
    rho = 0.5 * math.pi * d / k
    return rho / (1.0 + rho) + 1.0 / m1


def retrained_noise(r: int, m1: int) -> float:
    """E|F - E F|^2 / |E F|^2 = (pi r - 1)/M1 for F(u) = (1/M1) sum_m x_m 1{u.x_m >= 0}, x_m ~ N(0, I_r).

    E F = u/sqrt(2 pi) for |u| = 1 and E|x 1{u.x >= 0}|^2 = r/2.
    """
    return (math.pi * r - 1.0) / m1


def common_mode_ratio(r: int, m1: int) -> float:
    """Energy of the mean point in the retrained rows over the signal in one direction: pi r^2/(2 M1).

    F(u) contains (1/2) mean(x_m) with |mean|^2 ~ r/M1, against 1/(2 pi r) for each direction of S*.
    """
    return 0.5 * math.pi * r * r / m1
