"""Closed-form predictions of the two-phase distillation at finite N, d, width and number of points, one function each.

    y        f*(x) + noise after preprocessing: mean and linear part removed        sigma^2   E[y^2]
    H        E[Hess f*], squared Frobenius norm |H|^2, tau = (tr H)^2/|H|^2           chi       E[y^2 |z|^2], z = B^T x
    g(w)     (1/N) sum_n y_n x_n 1{w.x_n >= 0}, |w| = 1: a teacher row               K         number of distinct first-layer directions
    D(u)     (1/K) sum_i g(w_i) 1{w_i.u >= 0}, |u| = 1: a distilled point            (L/2 times J initialisations for symmetric starts)

The paper (Kinoshita et al., arXiv:2603.14830, abstract) states the bound Theta~(r^2 d + L); everything in this module is derived here.

Population. For links of degree <= 3, Stein's lemma and the gate's Hermite coefficients give exactly
    E g(w) = (2 pi)^(-1/2) [H w - (1/2)(w^T H w) w]                       (+ E[f x]/2 where the linear part is left in).
Averaging over w on the sphere with 1{w.u >= 0}, m1 = E|w_1|:
    E D(u) = m1 / (2 sqrt(2 pi) (d+1)) [d H u + (1/2)(u^T H u - tr H) u]  (+ E[f x]/4).
Energies on and off S* follow from the sphere's moments, for A of size r and E over the sphere of R^d:
    E u^T H u = tr H/d,  E (u^T H u)^2 = (2+tau)|H|^2/(d(d+2)),  and |P u|^2 multiplies these by (r+2)/(d+2) and (r+4)/(d+4).
Degree 4 adds -(1/6) C_4(w,w,w) + (1/8) C_4(w,w,w,w) w; of these the cross terms with H w and with -(1/2)(w^T H w) w are kept, for rows
-X/(d(d+2)) on S* and -(1/8)(12 X + 3 tr A tr^2 C_4)(d-r)/(d(d+2)(d+4)(d+6)) off it, X = <A, tr C_4>. Their own energy, 1/d^2 of the
whole, is not.

Even and centred part. The mean of g over w is (1/2N) sum_n y_n x_n, the same for every row; what is left has the gate G - 1/2, or for
D(u) the kernel h = arcsin(cos(x, u))/(2 pi) in place of kappa_0 = 1/4 + h, where that mean enters with half its size. Cross terms
vanish on averaging over w or u, so energies add:  E(g) = E_even + E_centred,  E_inf(D) = E_even/4 + E_h.

Noise of the centred part. Removing mean and linear part (either way) leaves from each weight what is orthogonal to {1, x}:
x(G - 1/2) - w/sqrt(2 pi) with (G - 1/2)^2 = 1/4;  x h - eta u with eta = E[(x.u) h]. Fitting d + 1 coefficients takes the factor
1 - (d+1)/N. Directions off S* carry sigma^2 each, those on S* carry chi together (the subtracted part meets x G once and itself once:
2 chi - sigma^2 r where directions off S* have sigma^2 (d - r)). For uniform u the cosine is independent of x, so E h^2 multiplies both.
The signal shrinks too: a residual drops its own leverage, (1 + |x|^2)/N, and for a quadratic target E[|x|^2 y x (G - 1/2)] is d + 3
times the signal and (tr H) w/sqrt(2 pi), which the fitted intercept gives back (E[xbar.beta^] = tr H/N), so its amplitude takes the
factor 1 - (d+4)/N.

Even part. With S = X^T X/N, beta = E[f x], s = (1/N) sum (h + xi) x (h: f without its linear part; E|P s|^2 = chi/N, sigma^2/N in each
direction off S*), gamma = d/N:
    ols        0: residuals are orthogonal to (1, x)
    none       (1/2N) sum y x: beta/2 in the mean, (chi, sigma^2 (d - r)) / 4N around it (chi, sigma^2 of the full label)
    one-shot   (1/2)(I - S)(S beta + s), because beta^ = S beta + s. Wishart moments: E(I - S) S beta = -((d+1)/N) beta; energy around it
               |beta|^2 gamma (1 + 3 gamma), isotropic ((r+1, d-r)/d); E|(I - S) s|^2 = |s|^2 (gamma + gamma^2), isotropic.
One-shot removal also leaves in the centred part of the rows -(beta.xbar) w/sqrt(2 pi) and -(1/N) sum x x^T (G - 1/2) (S - I) beta,
energies |beta|^2/(2 pi N) and |beta|^2 gamma^2/4; both are 1/d of the rest.

Finite K. Given the data the w_i are independent, so averaged over w and u, for energies on or off S* alike,
    E_K(D) = (1 - 1/K) E_inf(D) + (1/2K) E(g).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.special import beta as beta_function
from scipy.special import gammaln

from theory.multi_index import HermiteLink, residual_second_moment

PREPROCESSING = ("ols", "one-shot", "none")


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


def kernel_moments(d: int) -> tuple[float, float]:
    """(E h^2, eta^2/d) for h = arcsin(cos(x, u))/(2 pi) and eta = E[(x.u) h], x ~ N(0, I_d) and u uniform."""
    eta = math.sqrt(2.0) * math.exp(gammaln((d + 1) / 2) - gammaln(d / 2)) * cosine_moment(d, 1) / (2.0 * math.pi)
    return cosine_moment(d, 2) / (4.0 * math.pi**2), eta**2 / d


def _check(link: HermiteLink, d: int, n: int, preprocessing: str) -> None:
    if preprocessing not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {preprocessing!r}; known: {', '.join(PREPROCESSING)}")
    if not 1 <= link.r <= d or d < 2:
        raise ValueError(f"need 1 <= r <= d and d >= 2: r={link.r}, d={d}")
    if n <= d + 1:
        raise ValueError(f"least squares needs N > d + 1 samples: N={n}, d={d}")
    if preprocessing != "ols" and link.mean != 0.0:
        raise ValueError(f"without least squares the predictions are those of a link of mean zero: mean={link.mean:g}")


def _hessian_sums(link: HermiteLink) -> tuple[float, float]:
    """(|H|^2, (tr H)^2)."""
    a = link.hessian
    return float((a * a).sum()), float(a.trace()) ** 2


def _label_moments(link: HermiteLink, noise: float, preprocessing: str) -> tuple[float, float, float]:
    """(sigma^2, chi, |beta|^2): of the residual label, of the full one where nothing is removed."""
    beta2 = float(np.sum(link.linear**2))
    if preprocessing == "none":
        moments = link.square_moments + noise**2
        return link.variance + noise**2, float(moments.sum()), beta2
    return residual_second_moment(link, noise), link.radial_moment + noise**2 * link.r, beta2


def signal_shrinkage(d: int, n: int, preprocessing: str) -> float:
    """Amplitude factor that removing mean and linear part of the same N samples takes from the signal."""
    return 1.0 if preprocessing == "none" else 1.0 - (d + 4) / n


def _noise_factor(d: int, n: int) -> float:
    """1/N times what fitting d + 1 coefficients leaves of the noise."""
    return (1.0 - (d + 1) / n) / n


def even_part(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """Energy of (1/2N) sum_n y_n x_n, the mean of the teacher's rows over w; points carry a quarter of it."""
    _check(link, d, n, preprocessing)
    if preprocessing == "ols":
        return Energy(0.0, 0.0)
    r, gamma, (sigma2, chi, beta2) = link.r, d / n, _label_moments(link, noise, preprocessing)
    if preprocessing == "none":
        return Energy(beta2 + (chi - beta2) / n, sigma2 * (d - r) / n) * 0.25
    spread = beta2 * (1.0 + 3.0 * gamma) / n
    mixed = (chi + sigma2 * (d - r)) / n * ((d + 1) / n + (d * d + 3 * d + 4) / n**2) / d
    on = beta2 * ((d + 1) / n) ** 2 + spread * (r + 1) + mixed * r
    return Energy(on, (spread + mixed) * (d - r)) * 0.25


def row_population(link: HermiteLink, d: int) -> Energy:
    """Energy of the centred part of E g(w), averaged over w on the sphere; exact for degree <= 3, next order in 1/d for 4."""
    r, (h2, t2) = link.r, _hessian_sums(link)
    fourth = (2 * h2 + t2) / (d * (d + 2))
    inner, outer = link.quartic_traces
    on = h2 / d - fourth + 0.25 * fourth * (r + 4) / (d + 4) - inner / (d * (d + 2))
    off = (0.25 * fourth - 0.125 * (12 * inner + 3 * outer) / (d * (d + 2) * (d + 6))) * (d - r) / (d + 4)
    return Energy(on, off) * (1.0 / (2.0 * math.pi))


def row_noise(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """Energy of the fluctuation over samples of the centred part of g(w); leading order in 1/N, next order in 1/d."""
    _check(link, d, n, preprocessing)
    r, (sigma2, chi, beta2) = link.r, _label_moments(link, noise, preprocessing)
    if preprocessing == "none":
        return Energy(chi / 4, sigma2 * (d - r) / 4) * (1.0 / n)
    explained = 1.0 / (2.0 * math.pi * d)
    on = chi / 4 - (2.0 * chi - sigma2 * r) * explained
    energy = Energy(on, sigma2 * (d - r) * (0.25 - explained)) * _noise_factor(d, n)
    if preprocessing == "ols":
        return energy
    left = beta2 / n * (explained + 0.25 * d / n)
    return energy + Energy(left * r, left * (d - r))


def teacher_rows(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """E|P g|^2 and E|(I - P) g|^2 of the rows of the teacher's first gradient."""
    centred = row_population(link, d) * signal_shrinkage(d, n, preprocessing) ** 2 + row_noise(link, noise, d, n, preprocessing)
    return even_part(link, noise, d, n, preprocessing) + centred


def point_population(link: HermiteLink, d: int) -> Energy:
    """Energy of the centred part of E D(u) at K = infinity, averaged over u on the sphere; as exact as `row_population`."""
    r, (h2, t2) = link.r, _hessian_sums(link)
    first, fourth = t2 / d, (2 * h2 + t2) / (d * (d + 2))
    on = d * h2 + d * (fourth - first) + 0.25 * (fourth * (r + 4) / (d + 4) - 2 * first * (r + 2) / (d + 2) + t2 * r / d)
    off = 0.25 * (fourth * (d - r) / (d + 4) - 2 * first * (d - r) / (d + 2) + t2 * (d - r) / d)
    return Energy(on - link.quartic_traces[0], off) * ((mean_abs_coordinate(d) / (d + 1)) ** 2 / (8.0 * math.pi))


def point_noise(link: HermiteLink, noise: float, d: int, n: int, preprocessing: str = "ols") -> Energy:
    """Energy of the fluctuation over samples of the centred part of D(u) at K = infinity."""
    _check(link, d, n, preprocessing)
    r, (sigma2, chi, _) = link.r, _label_moments(link, noise, preprocessing)
    kernel, explained = kernel_moments(d)
    if preprocessing == "none":
        return Energy(chi, sigma2 * (d - r)) * (kernel / n)
    on = chi * kernel - (2.0 * chi - sigma2 * r) * explained
    return Energy(on, sigma2 * (d - r) * (kernel - explained)) * _noise_factor(d, n)


def distilled_points(link: HermiteLink, noise: float, d: int, n: int, k: int | None = None, preprocessing: str = "ols") -> Energy:
    """E|P D|^2 and E|(I - P) D|^2 of the distilled points; k distinct first-layer directions, None for the kernel limit."""
    centred = point_population(link, d) * signal_shrinkage(d, n, preprocessing) ** 2 + point_noise(link, noise, d, n, preprocessing)
    limit = even_part(link, noise, d, n, preprocessing) * 0.25 + centred
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
