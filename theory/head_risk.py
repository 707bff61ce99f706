"""The typical test risk of a ridge head on retrained rows at r index directions, M1 stored points and finite width: no sampling.

    z = rho zh           input, N(0, I_r): radius rho, direction zh          y   he_2 form of z, traceless, variance 1
    w = s wh, b          row and bias, b ~ N(0, 1), E s^2 = row_norm^2       L   width (neurons), n training inputs, lambda the ridge
    head                 argmin |Phi a - y|^2 + lambda |a|^2, Phi_ij = relu(w_j.z_i + b_j)

Derived here. Steps 1 to 3 are checked in tests/theory/test_head_risk.py, all of it on fitted heads in tests/sims/test_head_risk.py.

1. Sectors. On the sphere relu(rho s t + b) = sum_l D_l k_l(rho s, b) P_l(t), t = wh.zh, with P_l(1) = 1 and D_l the number of harmonics
   of degree l, so that Phi_ij = sum_l k_l(rho_i s_j, b_j) sum_m Y_lm(zh_i) Y_lm(wh_j). The k_l are closed: relu'' is a point (`couplings`).
2. Equivalents. Inputs of one radius are one type (probability p_a), neurons of one (s, b) another (p_c); within a type the Y_lm count as
   independent Gaussians, which is exact as r -> infinity. Then an input of type a carries the noise 1 + S_a and a neuron of type c the
   ridge lambda + T_c: with A = diag(n p_a / (1 + S_a)), B = diag(L p_c / (lambda + T_c)), and q the factor of a harmonic's rows (step 4),
       S_a = sum_l D_l E_q [ q k B k^T (1 + q A k B k^T)^-1 ]_aa,      T_c = sum_l D_l E_q [ q k^T A k (1 + q B k^T A k)^-1 ]_cc.
   Sectors beyond l = TOP enter both through their energy alone. With one type on each side this is the known equivalent for random
   features (Defilippis, Loureiro, Misiakiewicz, arXiv:2405.15699), which at r = 8 is a fifth too low: radii and biases vary too much.
3. Risk. The least training objective is O = E_q g^T (A^-1 + q k_2 B k_2^T)^-1 g, g = rho^2 / sqrt(E rho^4) the radial part of y. Weights
   1 + eps v_a on the inputs, which make 1 + S_a in A to first order 1 - eps v_a + S_a, make dO/d eps the sum of v_a times their squared
   residuals, and a residual is the test error over 1 + S_a: v_a = (1 + S_a)^2 / n gives the test risk.
4. Retrained rows. Their second moment is A of theory.spectrum, with eigenvalues l_i of sum 1 (row_norm sets the scale). A harmonic of
   degree 2 along directions i and j has energy l_i l_j / E|F|^4, against 1/(r (r+2)) for isotropic ones, and one of degree 3
   l_i l_j l_k / E|F|^6, against 1/(r (r+2) (r+4)); l > 3 counts as if isotropic. Gaussian rows F plus a common part +-sqrt(m) in the
   last direction (the plain set's; m = 0 if reflected) have cumulants of |F|^2 that add up over directions:
       E|F|^4 = 1 + 2 Sigma_2,   E|F|^6 = 1 + 6 Sigma_2 + 8 Sigma_3 - 24 m^2 (l_r - m),   Sigma_p = sum l_i^p - m^p.

As r -> infinity with M1 = c r and L, n of order r^2 the r l_i keep a limiting law and the common part a fixed share of the rows' energy (0
if reflected): the risk over the teacher's tends to a function of c, and both sets need M1 of order r for it. The common mode that
conditioning sees, and that costs r^2 points there, is one direction: it carries 1/r of a quadratic target.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar
from scipy.special import beta, betainc, comb, gammaln, roots_genlaguerre, roots_hermitenorm

from theory.spectrum import typical_spectrum

TOP = 5  # largest degree l of its own
RANK = 4  # functions of the radius (of the bias) kept in a sector
RADII, BIASES, NORMS = 10, 24, 6  # nodes
CLASSES = 64  # values of q kept in a sector
ASYMPTOTIC = 1.0  # exponent in r of the least M1 by risk


@dataclass(frozen=True)
class HeadFit:
    """How heads are fitted: the best of the ridges, in units of the mean diagonal of Phi^T Phi, for rows of one root-mean-square norm."""

    width: int
    train: int
    ridges: tuple[float, ...]
    row_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (self.width >= 1 and self.train >= 1 and self.row_norm > 0 and self.ridges and min(self.ridges) > 0):
            raise ValueError(f"a head needs width, train, row_norm and ridges > 0: {self}")


def harmonics(r: int, degree: int) -> float:
    """D_l: dimension of the harmonic polynomials of one degree in r variables."""
    return float(comb(r + degree - 1, degree) - (comb(r + degree - 3, degree - 2) if degree >= 2 else 0.0))


def legendre(r: int, degree: int, t: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """P_l of the sphere of R^r, P_l(1) = 1."""
    before, now = np.ones_like(t), t
    if degree == 0:
        return before
    for k in range(1, degree):
        before, now = now, ((2 * k + r - 2) * t * now - k * before) / (k + r - 2)
    return now


def couplings(
    r: int, scale: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "l ..."], Float[np.ndarray, "..."]]:
    """(k_0 .. k_TOP, E relu^2) of relu(scale t + b), t = wh.zh of density (1 - t^2)^((r-3)/2) / Z, Z = B(1/2, (r-1)/2).

    k_l = E[relu P_l]; for l >= 2 two integrations by parts with Rodrigues' formula leave the value of a P_(l-2) of R^(r+4) at the kink
    t = -b/scale: k_l = scale C_l P_(l-2)(t) (1 - t^2)^((r+1)/2) / Z, and 0 where the kink lies outside.
    """
    tau, z = np.clip(-b / scale, -1.0, 1.0), beta(0.5, (r - 1) / 2)
    side = 0.5 * betainc((r - 1) / 2, 0.5, 1.0 - tau * tau)
    above = np.where(tau <= 0, 1.0 - side, side)  # P(t > tau)
    height = (1.0 - tau * tau) ** ((r - 1) / 2) / z
    first, second = height / (r - 1), (above + tau * height) / r  # E[t; t > tau], E[t^2; t > tau]
    found = [b * above + scale * first, b * first + scale * second]
    for degree in range(2, TOP + 1):
        constant = math.exp(_rodrigues(r, degree) - _rodrigues(r + 4, degree - 2)) / z
        found.append(scale * constant * legendre(r + 4, degree - 2, tau) * (1.0 - tau * tau) ** ((r + 1) / 2))
    return np.stack(found), b * b * above + 2.0 * b * scale * first + scale * scale * second


def _rodrigues(r: int, degree: int) -> float:
    return float(gammaln((r - 1) / 2) - degree * math.log(2.0) - gammaln(degree + (r - 1) / 2))


def size_moment(rows: Float[np.ndarray, "r"], common: float, degree: int) -> float:
    """E|F|^(2 degree) of step 4, degree 1 to 3, for Gaussian rows with a part +-sqrt(common) in the last direction."""
    two, three = (float(np.sum(rows**p)) - common**p for p in (2, 3))
    return (1.0, 1 + 2 * two, 1 + 6 * two + 8 * three - 24 * common**2 * (float(rows[-1]) - common))[degree - 1]


def row_factors(rows: Float[np.ndarray, "r"], common: float, degree: int) -> tuple[Float[np.ndarray, "q"], Float[np.ndarray, "q"]]:
    """(q, weights of sum 1) of step 4 for rows of eigenvalues `rows` (ascending, sum 1) of which the common part carries `common`."""
    r = len(rows)
    if degree == 0 or degree > 3 or np.ptp(rows) == 0.0:
        return np.ones(1), np.ones(1)
    groups = [*np.array_split(rows[:-1], min(r - 1, 24)), rows[-1:]]
    value, weight = np.array([g.mean() for g in groups]), np.array([len(g) for g in groups]) / r
    scale = math.prod(range(r, r + 2 * degree, 2)) / size_moment(rows, common, degree)
    q, share = value, weight
    for _ in range(degree - 1):
        q, share = np.multiply.outer(q, value), np.multiply.outer(share, weight)
    order = np.argsort(q, axis=None)
    q, share = scale * q.ravel()[order], share.ravel()[order]
    place = np.minimum((np.cumsum(share) - 0.5 * share) * CLASSES, CLASSES - 1).astype(int)
    total = np.bincount(place, share, CLASSES)
    return np.bincount(place, share * q, CLASSES) / np.where(total > 0, total, 1.0), total


@dataclass(frozen=True, eq=False)
class Sectors:
    """Types of inputs and neurons, and k_l = sum_k left_k right_k between them, sector by sector."""

    radius: Float[np.ndarray, "a"]
    inputs: Float[np.ndarray, "a"]  # probabilities
    neurons: Float[np.ndarray, "c"]
    left: Float[np.ndarray, "l a k"]
    right: Float[np.ndarray, "l c k"]
    count: Float[np.ndarray, "l"]  # D_l
    q: Float[np.ndarray, "l q"]
    weight: Float[np.ndarray, "l q"]
    tail: Float[np.ndarray, "a c"]  # energy beyond TOP
    energy: float  # E relu^2

    @property
    def target(self) -> Float[np.ndarray, "a"]:
        """g."""
        square = self.radius**2
        return square / math.sqrt(float(self.inputs @ square**2))


def sectors(rows: Float[np.ndarray, "r"], common: float = 0.0, row_norm: float = 1.0, gaussian: bool = False) -> Sectors:
    """For rows of eigenvalues `rows`; `gaussian`: isotropic Gaussian rows (a teacher's), whose norms vary."""
    r = len(rows)
    radius, inputs = _radii(r, RADII)
    norm, share = _radii(r, NORMS) if gaussian else (np.array([math.sqrt(r)]), np.ones(1))
    bias, chance = roots_hermitenorm(BIASES)
    s, b = np.repeat(row_norm * norm / math.sqrt(r), BIASES), np.tile(bias, len(norm))
    neurons = np.outer(share, chance / chance.sum()).ravel()
    k, second = couplings(r, radius[:, None] * s, np.broadcast_to(b, (RADII, len(b))))
    count = np.array([harmonics(r, degree) for degree in range(TOP + 1)])
    u, d, v = np.linalg.svd(np.sqrt(inputs)[:, None] * k * np.sqrt(neurons), full_matrices=False)
    root = np.sqrt(d[:, None, :RANK])
    left = u[:, :, :RANK] * root / np.sqrt(inputs)[:, None]
    right = np.swapaxes(v, 1, 2)[:, :, :RANK] * root / np.sqrt(neurons)[:, None]
    q, weight = np.zeros((2, TOP + 1, CLASSES))
    for degree in range(TOP + 1):
        values, shares = row_factors(rows, common, degree)
        q[degree, : len(values)], weight[degree, : len(values)] = values, shares
    tail = np.maximum(second - np.tensordot(count, k**2, axes=1), 0.0)
    return Sectors(radius, inputs, neurons, left, right, count, q, weight, tail, float(inputs @ second @ neurons))


def _radii(r: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of |x|, x ~ N(0, I_r)."""
    half, weight = roots_genlaguerre(nodes, 0.5 * r - 1.0)
    return np.sqrt(2.0 * half), weight / weight.sum()


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """S by type of input and T by type of neuron (step 2)."""

    inputs: Float[np.ndarray, "a"]
    neurons: Float[np.ndarray, "c"]


def equilibrium(
    s: Sectors, width: int, train: int, ridge: float, spare: Float[np.ndarray, "a"], start: Equilibrium | None = None
) -> Equilibrium:
    """The fixed point of step 2 with `spare` for the 1 of 1 + S_a, by iteration. FloatingPointError where it does not settle."""
    at = start or Equilibrium(np.full(len(s.inputs), width / train), np.full(len(s.neurons), 1e-2 * train * s.energy / width))
    for _ in range(2000):
        a, b = _diagonals(s, width, train, ridge, spare, at)
        lower, e, v = _modes(s.left, s.right, a, b)
        gain = 1.0 / (1.0 + s.q[:, None, :] * e[:, :, None])
        seen = s.count[:, None] * np.einsum("lq,lkq->lk", s.weight * s.q, gain)
        x = s.left @ np.linalg.solve(np.swapaxes(lower, 1, 2), v)
        y = s.right @ (lower @ v)
        found = Equilibrium(
            s.tail @ b + np.einsum("lak,lk->a", x * x, seen * e),
            a @ s.tail + np.einsum("lck,lk->c", y * y, seen),
        )
        move = max(_change(at.inputs, found.inputs), _change(at.neurons, found.neurons))
        at = found
        if move < 1e-9:
            return at
    raise FloatingPointError(f"test risk: the fixed point does not settle (L={width}, n={train}, ridge={ridge:g})")


def _change(old: np.ndarray, new: np.ndarray) -> float:
    """Largest relative change; entries of dead types, 1e-9 of the largest and below, do not count."""
    return float(np.max(np.abs(new - old) / (new + 1e-9 * np.max(new))))


def _diagonals(s: Sectors, width: int, train: int, ridge: float, spare: np.ndarray, at: Equilibrium) -> tuple[np.ndarray, np.ndarray]:
    """A and B."""
    return train * s.inputs / (spare + at.inputs), width * s.neurons / (ridge + at.neurons)


def _modes(left: np.ndarray, right: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, e, V): left^T A left = C C^T and C^T (right^T B right) C = V diag(e) V^T, sector by sector."""
    lower = np.linalg.cholesky(np.swapaxes(left, -1, -2) @ (a[:, None] * left))
    e, v = np.linalg.eigh(np.swapaxes(lower, -1, -2) @ (np.swapaxes(right, -1, -2) @ (b[:, None] * right)) @ lower)
    return lower, np.maximum(e, 0.0), v


def _objective(s: Sectors, a: np.ndarray, b: np.ndarray) -> float:
    """O of step 3."""
    left, g = s.left[2], s.target
    lower, e, v = _modes(left, s.right[2], a, b)
    u = v.T @ np.linalg.solve(lower, left.T @ (a * g))
    gain = s.q[2] * e[:, None] / (1.0 + s.q[2] * e[:, None]) @ s.weight[2]
    return float(g @ (a * g) - u * u @ gain)


def ridge_risk(s: Sectors, width: int, train: int, ridge: float) -> float:
    """Test risk at one ridge (step 3), the derivative by a central difference that moves no 1 + S_a by more than a thousandth of it.

    S_a is 1e4 and more where n <= L and the ridge is small: a step of the order of the 1 would be lost in rounding.
    """
    one = np.ones_like(s.inputs)
    at = equilibrium(s, width, train, ridge, one)
    v = (1.0 + at.inputs) ** 2 / train
    step = 1e-3 * train / float(np.max(1.0 + at.inputs))
    values = []
    for sign in (1.0, -1.0):
        spare = one - sign * step * v
        moved = equilibrium(s, width, train, ridge, spare, at)
        values.append(_objective(s, *_diagonals(s, width, train, ridge, spare, moved)))
    return (values[0] - values[1]) / (2.0 * step)


def fitted_risk(s: Sectors, fit: HeadFit) -> float:
    """Test risk at the best of the ridges."""
    return min(ridge_risk(s, fit.width, fit.train, ridge * fit.train * s.energy) for ridge in fit.ridges)


@cache
def teacher_risk(r: int, fit: HeadFit) -> float:
    """Risk with isotropic Gaussian rows: those of a full-data teacher where |expected Hessian| is a multiple of the identity."""
    return fitted_risk(sectors(np.full(r, 1.0 / r), row_norm=fit.row_norm, gaussian=True), fit)


def student_risk(r: int, m: float, fit: HeadFit, reflected: bool) -> float:
    """Risk with rows retrained on M1 >= 2 r points.

    Against means of 100 draws at r = 8 and of 30 at r = 16 (L = 3 r^2, 4 L inputs): within 7 % from M1 = 6 r on, 16 to 22 % too high at
    M1 = 2 r, where the typical spectrum is at the end of its range. At r = 4 a harmonic has too few directions for step 2.
    """
    spectrum = typical_spectrum(r, m)
    plain = float(np.sum(spectrum.plain))
    if reflected:
        return fitted_risk(sectors(spectrum.reflected / float(np.sum(spectrum.reflected)), row_norm=fit.row_norm), fit)
    return fitted_risk(sectors(spectrum.plain / plain, 1.0 - float(np.sum(spectrum.reflected)) / plain, fit.row_norm), fit)


def least_points(r: int, ratio: float, fit: HeadFit, reflected: bool) -> float:
    """The M1 >= 2 r at which the risk comes to `ratio` times the teacher's (interpolated within 1 %); inf where none up to 1000 r does.

    ValueError where that is so at 2 r already.
    """
    level = math.log(ratio * teacher_risk(r, fit))

    def excess(log_m: float) -> float:
        return math.log(student_risk(r, math.exp(log_m), fit, reflected)) - level

    low, high = math.log(2 * r) + 1e-9, math.log(1000 * r)
    if excess(low) <= 0:
        raise ValueError(f"risk <= {ratio:g} x the teacher's at M1 = {2 * r} already: lower the ratio")
    return math.exp(root_scalar(excess, bracket=(low, high), xtol=0.01).root) if excess(high) < 0 else math.inf
