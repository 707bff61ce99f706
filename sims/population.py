"""Population mode: the distilled points are x_m = A z_m in the r index coordinates (d, N and the matching step drop out).

    z_m ~ N(0, I_r)   A (r, r) the expected Hessian of the link, identity where it is proportional to an orthogonal matrix
    F(u)              row of a retrained neuron of direction u ~ N(0, I_r):  (1/M) sum_m x_m 1{u.x_m >= 0}        plain
                                                                            (1/2M) sum_m x_m sign(u.x_m)         reflected
Two measurements, each a trial with its own seed:

Spectrum, L -> infinity. P(u.x, u.x' of one sign) = 1/2 + arcsin(cos(x, x')) / pi gives the exact second moment of the rows,
    E_u[F F^T] = (1/(2 pi M^2)) sum_mk arcsin(cos(x_m, x_k)) x_m x_k^T  [reflected]   + xbar xbar^T / 4  [plain].
Point sets are nested: a larger M adds the pairs with its new points only, so a whole grid costs one Gram matrix, M_max^2 r operations in
blocks of rows. Changing the sign of points leaves the first term as it is and xbar becomes another, equally likely mean: each draw of
the points serves `signs` draws of the common mode, and its curve is the median over them (derived here).

Risk. L rows a_i F(u_i), a_i = +-1, scaled to one root-mean-square norm, biases N(0, 1), ridge head on fresh Gaussian inputs with the
ridge picked on held-out ones, squared error on test inputs; beside it the teacher's rows A u_i and the rows of M -> infinity.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from sims.lab.laws import Crossing, SampledLaw, crossing, sampled_law
from theory import head_risk
from theory.head_risk import HeadFit
from theory.multi_index import make_link
from theory.spectrum import Spectrum, criteria, least_points

T = TypeVar("T")
BLOCK = 256
THRESHOLDS = {"common_mode": 3.0, "conditioning": 10.0, "reflected": 10.0}


def generator(seed: int, r: int, draw: int) -> np.random.Generator:
    """The stream of one draw at one r."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(r, draw)))


def log_grid(low: float, high: float, ratio: float) -> tuple[int, ...]:
    """Integers from floor(low) to ceil(high), evenly spaced in the logarithm up to rounding, at most `ratio` apart."""
    if not (1.0 <= low < high and ratio > 1.0):
        raise ValueError(f"a grid needs 1 <= low < high and ratio > 1: low={low:g}, high={high:g}, ratio={ratio:g}")
    steps = math.ceil(math.log(high / low) / math.log(ratio))
    inner = [round(low * (high / low) ** (k / steps)) for k in range(1, steps)]
    return tuple(sorted({math.floor(low), *inner, math.ceil(high)}))


def second_moments(x: Float[Any, "M r"], grid: Sequence[int], block: int = BLOCK) -> Float[Any, "G r r"]:
    """E_u[F F^T] of the reflected rows for the first M points, M in `grid` (increasing): the first term of the head of this module.

    Any array namespace; sums over blocks are kept in float64, the work inside a block in the type of x (float32: 1e-5 relative).
    Memory O(block M_max). Raises FloatingPointError when a point is zero or not finite.
    """
    xp = array_namespace(x)
    _require_grid(grid, x.shape[0])
    size = xp.linalg.vector_norm(x, axis=1, keepdims=True)
    if not bool(xp.all(xp.isfinite(size) & (size > 0))):
        raise FloatingPointError("second moment of the rows: a stored point is zero or not finite")
    n = x / size
    total = xp.zeros((x.shape[1], x.shape[1]), dtype=xp.float64, device=device_of(x))
    moments, start = [], 0
    for m in grid:
        while start < m:
            stop = min(start + block, m)
            half = xp.astype(_pairs_to(x, n, start, stop), xp.float64)
            total = total + half + half.T
            start = stop
        moments.append(total / (2.0 * math.pi * m * m))
    return xp.stack(moments)


def _pairs_to(x: Any, n: Any, start: int, stop: int) -> Any:
    """Half of what the points start..stop add to sum_mk arcsin(n_m.n_k) x_m x_k^T: the pairs with earlier points, and half of those among
    themselves (the other half is the transpose).
    """
    xp = array_namespace(x)
    rows, new = n[start:stop, ...], x[start:stop, ...]
    among = xp.asin(xp.clip(rows @ rows.T, -1.0, 1.0))
    # Rounding of n.n moves arcsin near 1 by its square root.
    eye = xp.eye(stop - start, dtype=x.dtype, device=device_of(x))
    among = among * (1.0 - eye) + 0.5 * math.pi * eye
    weighted = 0.5 * (among @ new)
    if start:
        weighted = weighted + xp.asin(xp.clip(rows @ n[:start, ...].T, -1.0, 1.0)) @ x[:start, ...]
    return new.T @ weighted


def nested_means(x: Float[Any, "M r"], grid: Sequence[int], signs: Float[Any, "S M"]) -> Float[Any, "S G r"]:
    """(1/M) sum_{m <= M} signs_m x_m for each row of signs and each M in `grid`."""
    xp = array_namespace(x)
    _require_grid(grid, x.shape[0])
    bounds = [0, *grid]
    parts = xp.stack([signs[:, a:b] @ x[a:b, ...] for a, b in pairwise(bounds)], axis=1)
    counts = xp.asarray(list(grid), dtype=x.dtype, device=device_of(x))
    return xp.cumulative_sum(parts, axis=1) / counts[:, None]


def retrained_rows(x: Float[Any, "M r"], grid: Sequence[int], u: Float[Any, "L r"]) -> dict[str, Float[Any, "L G r"]]:
    """F(u_i) from the first M points for each M in `grid`, plain and reflected (the set {x_m, -x_m} halves the gate to sign / 2)."""
    xp = array_namespace(x, u)
    gate = xp.astype(u @ x.T >= 0, x.dtype)
    return {"plain": nested_means(x, grid, gate), "reflected": nested_means(x, grid, gate - 0.5)}


def _require_grid(grid: Sequence[int], points: int) -> None:
    if not grid or grid[0] < 1 or any(b <= a for a, b in pairwise(grid)) or grid[-1] > points:
        raise ValueError(f"the grid of M1 must increase from >= 1 to at most the {points} points drawn: {tuple(grid)}")


def criterion_curves(x: Float[Any, "M r"], grid: Sequence[int], signs: Float[Any, "S M"]) -> dict[str, Float[np.ndarray, "G"]]:
    """Each criterion of `theory.spectrum.criteria` over the grid of M1, the median over the rows of signs. From one pass over the pairs."""
    moments, means = _host(second_moments(x, grid)), _host(nested_means(x, grid, signs))
    plain = np.linalg.eigvalsh(moments + 0.25 * means[..., :, None] * means[..., None, :])
    values = criteria(Spectrum(plain, np.linalg.eigvalsh(moments)[None]))
    return {name: np.median(value, axis=0) for name, value in values.items()}


def _hessian(link: str, r: int) -> np.ndarray:
    a = make_link(link, r).hessian
    if not np.any(a):
        raise ValueError(f"link {link!r} has expected Hessian 0, so that every distilled point is 0: choose one with an even part")
    return a


def _host(a: Any) -> np.ndarray:
    """A float64 NumPy copy; CuPy arrays bring their own way out."""
    return np.asarray(a.get() if hasattr(a, "get") else a, dtype=np.float64)


def predicted_points(r: int, name: str, common: float = 0.0, spread: float = 0.0) -> float | None:
    """The least M1 that the typical spectrum predicts for a criterion at its threshold; None where that lies out of its range."""
    try:
        return least_points(r, name, THRESHOLDS[name], common, spread)
    except ValueError:
        return None


@cache
def predicted_risk_points(r: int, ratio: float, fit: HeadFit, reflected: bool) -> float | None:
    """The least M1 that theory.head_risk predicts for a risk within `ratio` of the teacher's; None where `_from_form` has none."""
    return _from_form(r, lambda: head_risk.least_points(r, ratio, fit, reflected))


def predicted_risk_curve(r: int, points: Sequence[float], fit: HeadFit, reflected: bool) -> list[float] | None:
    """The predicted risk over the teacher's at each M1; None where `_from_form` has none."""
    return _from_form(r, lambda: [head_risk.student_risk(r, m, fit, reflected) / head_risk.teacher_risk(r, fit) for m in points])


def _from_form(r: int, found: Callable[[], T]) -> T | None:
    """A number of theory.head_risk. None below r = 4 and at odd r (its target is traceless, the quadratic link is so at even r only), out
    of its range, and where its fixed point does not settle: a prediction that is missing stops no report.
    """
    if r < 4 or r % 2:
        return None
    try:
        return found()
    except (ValueError, FloatingPointError):
        return None


def spectrum_grid(r: int, ratio: float = 1.15) -> tuple[int, ...]:
    """A grid of M1 around the predicted least M1 of all criteria, three standard deviations of |xbar|^2 (chi^2_r) beyond on both sides.

    It starts above r points, below which the smallest eigenvalue is rounding error.
    """
    predicted = [predicted_points(r, name) or 2.0 * r for name in THRESHOLDS]
    spread = 1.0 + 3.0 * math.sqrt(2.0 / r)
    return log_grid(max(r + 1.0, min(predicted) / spread), max(predicted) * spread, ratio)


def encoded_criteria(points: Float[Any, "M d"], index: Float[Any, "d r"], grid: Sequence[int]) -> dict[str, Float[np.ndarray, "G"]]:
    """The criteria on S* of rows retrained on the first M real distilled points, M in `grid`, at infinite retraining width.

    The second moment over isotropic u in R^d is exact; `index` (orthonormal columns) restricts it to S*. In float64, where the points are.
    """
    xp = array_namespace(points)
    x, basis = xp.astype(points, xp.float64), xp.astype(index, xp.float64)
    means = _host(nested_means(x, grid, xp.ones_like(x[None, :, 0]))[0, ...] @ basis)
    moments = _host(basis.T @ second_moments(x, grid) @ basis)
    plain = moments + 0.25 * means[:, :, None] * means[:, None, :]
    return criteria(Spectrum(np.linalg.eigvalsh(plain), np.linalg.eigvalsh(moments)))


@dataclass(frozen=True)
class SpectrumTrial:
    """The three criteria over a grid of M1 for one draw of the points; `link` names A, None is the identity."""

    r: int
    draw: int
    grid: Sequence[int]
    seed: int = 0
    signs: int = 16
    link: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.r < 2 or self.draw < 0 or self.signs < 1:
            raise ValueError(f"a spectrum trial needs r >= 2, draw >= 0 and signs >= 1: r={self.r}, draw={self.draw}, signs={self.signs}")
        if self.link is not None:
            _hessian(self.link, self.r)
        _require_grid(self.grid, self.grid[-1] if self.grid else 0)

    def run(self, xp: Any = np) -> dict[str, Float[np.ndarray, "G"]]:
        """{common_mode, conditioning, reflected}: (G,) each. The first row of signs is the draw itself."""
        rng = generator(self.seed, self.r, self.draw)
        z = rng.standard_normal((self.grid[-1], self.r))
        signs = np.where(rng.integers(0, 2, (self.signs, self.grid[-1])) == 1, 1.0, -1.0)
        signs[0] = 1.0
        x = z if self.link is None else z @ _hessian(self.link, self.r)
        return criterion_curves(xp.asarray(x.astype(self.dtype)), self.grid, xp.asarray(signs.astype(self.dtype)))


def risk_grid(r: int, ratio: float = 1.4) -> tuple[int, ...]:
    """A grid of M1 from 2 r to 3 r^2 (32 r where that is more), which holds laws from r to r^2 at the sizes a risk is affordable for."""
    return log_grid(2 * r, max(32 * r, 3 * r * r), ratio)


@dataclass(frozen=True)
class RiskTrial:
    """Test risk over a grid of M1 for one draw, plain and reflected, with one ridge grid for every network.

    Width and sample sizes grow with the number of quadratic functions of r variables, so that the teacher's own risk stays of one order.
    """

    r: int
    draw: int
    grid: Sequence[int]
    seed: int = 0
    link: str = "quadratic"
    width_per_r2: int = 3  # L / r^2
    train_per_neuron: int = 4  # training inputs / L; half as many are held out for the ridge
    test: int = 4096
    row_norm: float = 1.0  # root mean square over the L rows
    ridges: Sequence[float] = field(default=(1e-8, 1e-6, 1e-4, 1e-2))  # in units of the mean diagonal of the Gram matrix

    def __post_init__(self) -> None:
        for name in ("r", "width_per_r2", "train_per_neuron", "test", "row_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"a risk trial needs {name} > 0: {name}={getattr(self, name)}")
        if not self.ridges or min(self.ridges) <= 0:
            raise ValueError(f"a risk trial needs positive ridges: ridges={tuple(self.ridges)}")
        _hessian(self.link, self.r)
        _require_grid(self.grid, self.grid[-1] if self.grid else 0)

    @property
    def fit(self) -> HeadFit:
        """Width, training inputs and ridges of every head."""
        width = self.width_per_r2 * self.r * self.r
        return HeadFit(width, self.train_per_neuron * width, tuple(self.ridges), self.row_norm)

    def run(self) -> dict[str, float | list[float]]:
        """{teacher, limit: a number each;  plain, reflected: (G,) each}: mean squared errors on test inputs, for a target of variance 1.

        teacher has rows proportional to A u_i, limit the rows A^2 u_i / |A u_i| of M1 -> infinity.
        """
        rng, link = generator(self.seed, self.r, self.draw), make_link(self.link, self.r)
        a = _hessian(self.link, self.r)
        width, train = self.fit.width, self.fit.train
        u, bias = rng.standard_normal((width, self.r)), rng.standard_normal(width)
        sets = [rng.standard_normal((n, self.r)) for n in (train, train // 2, self.test)]
        head = np.where(rng.integers(0, 2, width) == 1, 1.0, -1.0)  # a_i of the initialisation: row i is a_i F(u_i)
        x = rng.standard_normal((self.grid[-1], self.r)) @ a

        def risk(rows: np.ndarray) -> float:
            size = math.sqrt(float(np.mean(np.sum(rows * rows, axis=1))))
            if not 0 < size < math.inf:
                raise FloatingPointError(f"rows of the first layer have norm {size} (link {self.link!r}, r={self.r})")
            scaled = self.row_norm / size * head[:, None] * rows
            return heldout_risk([np.maximum(z @ scaled.T + bias, 0.0) for z in sets], [link(z) for z in sets], self.ridges)

        teacher = u @ a
        limit = teacher @ a / np.linalg.norm(teacher, axis=1, keepdims=True)
        students = retrained_rows(x, self.grid, u)
        curves = {name: [risk(rows[:, k]) for k in range(len(self.grid))] for name, rows in students.items()}
        return {"teacher": risk(teacher), "limit": risk(limit), **curves}


def heldout_risk(features: Sequence[np.ndarray], labels: Sequence[np.ndarray], ridges: Sequence[float]) -> float:
    """Mean squared error on the third of (train, held-out, test) of the ridge head fitted on the first, its ridge picked on the second."""
    phi, held, test = features
    gram, right = phi.T @ phi, phi.T @ labels[0]
    unit = float(np.trace(gram)) / len(gram)
    heads = [cho_solve(cho_factor(gram + ridge * unit * np.eye(len(gram))), right) for ridge in ridges]
    errors = [float(np.mean((held @ head - labels[1]) ** 2)) for head in heads]
    return float(np.mean((test @ heads[int(np.argmin(errors))] - labels[2]) ** 2))


def least_m1(grid: Sequence[int], curves: Float[np.ndarray, "D G"], threshold: float) -> Crossing:
    """The least M1 at which the median over draws of a criterion goes to its threshold, interpolated linearly in log-log.

    So it is the M1 from which half of the draws meet the criterion. Where every curve falls this is also the median of the draws' own
    crossings, but a noisy curve crosses early: the first passage of the median over draws has less of that bias.
    """
    return crossing(np.asarray(grid, float), np.log(np.median(curves, axis=0)), math.log(threshold))


def least_points_law(
    rs: Sequence[int],
    grids: Sequence[Sequence[int]],
    curves: Sequence[Float[np.ndarray, "D G"]],
    threshold: float,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> SampledLaw:
    """`least_m1` at each r and its exponent in r; intervals from resampling the draws (whole curves) within each r."""
    statistics = [lambda chosen, grid=grid: least_m1(grid, chosen, threshold).rank for grid in grids]
    return sampled_law(rs, curves, statistics, rng=rng, resamples=resamples)
