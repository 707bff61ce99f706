"""Retrained rows from real distilled points: spectrum on S* and energy off it at finite N, d, width, initialisations and M1.

    K        distinct first-layer directions of the matching step, L/2 times J          rho = pi d/(2K)
    x_m      = c + T z_m + off-S* part; z_m isotropic, c the part common to all points (theory.predictions)
    common   |c|^2 / E|T z|^2 = rho/(1 + rho)
    spread   variance of the entries of T - I on S* (H a multiple of an orthogonal matrix), so that theory.spectrum, step 7, applies
    q, q_T   off / on energy of a distilled point and of a teacher row

Derived here. Map noise: the gates average w_i w_i^T over K directions on the sphere (entry variance 1/K off the diagonal), and the samples
add a symmetric d x d matrix to H; its energy on S*, q_n in units of |H|^2, spreads over d columns, so an entry has q_n/d.

Off-S* energy of rows. For isotropic w in R^d the mean row is proportional to E[x x^T] w: the off-S* part of T reaches S* directions w
through E[x_off x_on^T] and others squared. Of the noise (1/N) sum_n y_n x_n x_n^T the r columns on S* hold the share chi/(sigma^2 d),
chi = E[y^2 |z|^2], so a ratio q of the points becomes q chi/(sigma^2 d) + q^2 r/(d - r): averaging over points purifies. Fluctuations,
r(1 + q)/(4 M1) in units where the mean row has 1/(2 pi (1 + q)), keep q. The reflected row is these two; the plain one adds half the
mean point, (common r + r/M1)/4 on S* with ratios q_T and q: it carries the points' noise unpurified.
"""

import math

from theory import predictions
from theory.multi_index import HermiteLink, residual_second_moment
from theory.spectrum import Spectrum, typical_spectrum


def common_share(d: int, k: int) -> float:
    """rho/(1 + rho), rho = pi d/(2K)."""
    return predictions.diversity_ratio(d, k, 1) - 1.0


def map_spread(link: HermiteLink, noise: float, d: int, n: int, k: int) -> float:
    """1/K + q_n/d, labels with mean and linear part removed by least squares."""
    on = predictions.point_noise(link, noise, d, n).on / predictions.point_population(link, d).on
    return 1.0 / k + on / d


def retrained_spectrum(link: HermiteLink, noise: float, d: int, n: int, k: int, m1: float) -> Spectrum | None:
    """Typical eigenvalues on S* of rows retrained on M1 real distilled points; None outside 1/M1 + 4 spread <= 1/(2r), r >= 2.

    For links whose |expected Hessian| is a multiple of the identity. Against medians of 8 draws at r = 8 and 16, M1 = 4 r to 48 r,
    N/d^2 = 4 and 16: reflected condition numbers within 20 %, plain ones within 30 % (at N = 4 d^2 and M1 = 4 r both are under).
    """
    spread = map_spread(link, noise, d, n, k)
    if link.r < 2 or 1.0 / m1 + 4.0 * spread > 0.5 / link.r:
        return None
    return typical_spectrum(link.r, m1, common_share(d, k), spread)


def row_off_fraction(link: HermiteLink, noise: float, d: int, n: int, k: int, m1: int, reflected: bool) -> float:
    """E_off / E_total of the retrained rows. Against means of 6 draws at r = 4 and 8, d = 32 and 64, N/d^2 = 4 and 16: within 25 % for
    M1 >= 4 r.
    """
    r = link.r
    columns = (link.radial_moment + noise**2 * r) / (residual_second_moment(link, noise) * d)
    q = predictions.distilled_points(link, noise, d, n, k).ratio
    mean, fluctuation = 1.0 / (2.0 * math.pi * (1.0 + q)), 0.25 * r / m1
    on = mean + fluctuation
    off = mean * (q * min(1.0, columns) + (q * q * r / (d - r) if d > r else 0.0)) + q * fluctuation
    if not reflected:
        common = 0.25 * r * common_share(d, k)
        on += common + fluctuation
        off += predictions.teacher_rows(link, noise, d, n).ratio * common + q * fluctuation
    return off / (on + off)
