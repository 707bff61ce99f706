"""Gaussian multi-index model: y = g(B^T x) + noise * xi, with x ~ N(0, I_d) and xi ~ N(0, 1).

    d      ambient dimension        B   index matrix (d, r), orthonormal columns, S* = span B
    r      intrinsic dimension      g   link R^r -> R in the orthonormal Hermite basis
    A      E[Hess g] (r, r), so that H = E[Hess f*] = B A B^T
    tau    (tr A)^2 / ||A||_F^2 in [0, r]
    kappa  ||A^-1||_op / sqrt(r), the normalised condition number (Damian, Lee, Soltanolkotabi, COLT 2022)

A link is data: a tuple of terms (coefficient, orders), each coefficient * prod_j he_{orders_j}(z_j), so means, gradients, Hessians and
variances are exact and a new link is one line (see LINKS).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from theory import hermite


@dataclass(frozen=True)
class HermiteLink:
    """g(z) = sum over terms of coefficient * prod_j he_{orders_j}(z_j)."""

    terms: tuple[tuple[float, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a link needs at least one term")
        lengths = {len(orders) for _, orders in self.terms}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"every term needs one order per index direction: lengths={sorted(lengths)}")
        if any(k < 0 for _, orders in self.terms for k in orders):
            raise ValueError("Hermite orders must be >= 0")
        if len({orders for _, orders in self.terms}) != len(self.terms):
            raise ValueError("two terms of a link have the same orders; add their coefficients")

    @property
    def r(self) -> int:
        """Intrinsic dimension."""
        return len(self.terms[0][1])

    @property
    def degree(self) -> int:
        """Total degree p of the link."""
        return max(sum(orders) for _, orders in self.terms)

    def __call__(self, z: Float[Any, "n r"]) -> Float[Any, "n"]:
        """g row by row."""
        if z.shape[1] != self.r:
            raise ValueError(f"link of r={self.r} index directions applied to {z.shape[1]} columns")
        xp = array_namespace(z)
        top = max(k for _, orders in self.terms for k in orders)
        powers = hermite.orthonormal(z, top)
        total = xp.zeros((z.shape[0],), dtype=z.dtype, device=getattr(z, "device", None))
        for coefficient, orders in self.terms:
            product = None
            for j, k in enumerate(orders):
                if k:
                    column = powers[k][:, j]
                    product = column if product is None else product * column
            total = total + (coefficient if product is None else coefficient * product)
        return total

    @property
    def mean(self) -> float:
        """E g(z)."""
        return sum(c for c, orders in self.terms if sum(orders) == 0)

    @property
    def variance(self) -> float:
        """Var g(z)."""
        return sum(c * c for c, orders in self.terms if sum(orders) > 0)

    @property
    def linear(self) -> Float[np.ndarray, "r"]:
        """E[g(z) z], the linear part."""
        beta = np.zeros(self.r)
        for c, orders in self.terms:
            if sum(orders) == 1:
                beta[orders.index(1)] += c
        return beta

    @property
    def residual(self) -> "HermiteLink":
        """The link without its constant and linear terms (at least one term of degree >= 2 must be left)."""
        return HermiteLink(tuple(term for term in self.terms if sum(term[1]) >= 2))

    @property
    def radial_moment(self) -> float:
        """E[g(z)^2 |z|^2] of the residual link."""
        return float(self.residual.square_moments.sum())

    @property
    def square_moments(self) -> Float[np.ndarray, "r"]:
        """E[g(z)^2 z_j^2] for every j, = E g^2 + 2 E (d_j g)^2 + 2 E[g d_jj g] (Gaussian integration by parts twice)."""
        terms = {orders: c for c, orders in self.terms}
        total = np.full(self.r, sum(c * c for c in terms.values()))
        for orders, c in terms.items():
            for j, k in enumerate(orders):
                lower = (*orders[:j], k - 2, *orders[j + 1 :])
                total[j] += 2.0 * k * c * c + (2.0 * c * terms.get(lower, 0.0) * math.sqrt(k * (k - 1)) if k >= 2 else 0.0)
        return total

    @property
    def quartic_traces(self) -> tuple[float, float]:
        """(sum_abc A_ab C_abcc, tr A sum_ab C_aabb) with C = E[grad^4 g]: what terms of degree 4 add to gradients, against A."""
        if self.degree < 4:
            return 0.0, 0.0
        traced = math.sqrt(24.0) * np.trace(self.degree_tensor(4), axis1=2, axis2=3)
        return float(np.sum(self.hessian * traced)), float(np.trace(self.hessian) * np.trace(traced))

    @property
    def hessian(self) -> Float[np.ndarray, "r r"]:
        """A = E[Hess g]: sqrt(2) c on the diagonal for he_2(z_j), c off it for he_1(z_i) he_1(z_j)."""
        a = np.zeros((self.r, self.r))
        for c, orders in self.terms:
            if sum(orders) == 2:
                support = [j for j, k in enumerate(orders) if k]
                if len(support) == 1:
                    a[support[0], support[0]] += math.sqrt(2.0) * c
                else:
                    i, j = support
                    a[i, j] += c
                    a[j, i] += c
        return a

    def captured_variance(self, keep: Float[np.ndarray, "r k"]) -> float:
        """Var E[g(z) | V^T z] for orthonormal columns V = keep, by projecting each symmetric coefficient tensor onto V.

        Derived here: conditional expectation on a subspace multiplies the degree-k Hermite tensor by P_V in every slot.
        """
        total = 0.0
        for degree in range(1, self.degree + 1):
            tensor = self.degree_tensor(degree)
            for axis in range(degree):
                tensor = np.moveaxis(np.tensordot(tensor, keep, axes=(axis, 0)), -1, axis)
            total += float(np.sum(tensor**2))
        return total

    def degree_tensor(self, degree: int) -> np.ndarray:
        """Symmetric tensor T with sum of squares equal to the variance of the degree-`degree` part."""
        tensor = np.zeros((self.r,) * degree)
        for c, orders in self.terms:
            if sum(orders) == degree:
                index = [j for j, k in enumerate(orders) for _ in range(k)]
                places = set(permutations(index))
                for place in places:
                    tensor[place] += c / math.sqrt(len(places))
        return tensor

    @property
    def tau(self) -> float:
        """(tr A)^2 / ||A||_F^2; nan where A = 0."""
        a = self.hessian
        norm2 = float(np.sum(a * a))
        return float(np.trace(a)) ** 2 / norm2 if norm2 > 0 else math.nan

    @property
    def kappa(self) -> float:
        """||A^-1||_op / sqrt(r); inf where A is singular."""
        smallest = float(np.linalg.svd(self.hessian, compute_uv=False)[-1])
        return 1.0 / (smallest * math.sqrt(self.r)) if smallest > 0 else math.inf


def _diagonal(r: int, parts: dict[int, float], signs: Callable[[int], int] = lambda j: 1) -> HermiteLink:
    """sum_j (sum_k s_j^(k even) c_k he_k(z_j)) / sqrt(r), with sum_k c_k^2 = 1 so that the variance is one."""
    terms = []
    for j in range(r):
        for k, c in parts.items():
            sign = signs(j) if k % 2 == 0 else 1
            terms.append((sign * c / math.sqrt(r), tuple(k if i == j else 0 for i in range(r))))
    return HermiteLink(tuple(terms))


def _alternating(j: int) -> int:
    return 1 if j % 2 == 0 else -1


def _weights(r: int, coefficients: Callable[[int], float], rest: dict[int, float]) -> HermiteLink:
    """sum_j (c_j he_2(z_j) + sum_k rest_k he_k(z_j)), scaled to variance one; c_j = 0 loses the direction j from the expected Hessian."""
    orders = {j: {2: coefficients(j)} | rest for j in range(r)}
    scale = math.sqrt(sum(c * c for parts in orders.values() for c in parts.values()))
    terms = [(c / scale, tuple(k if i == j else 0 for i in range(r))) for j, parts in orders.items() for k, c in parts.items() if c]
    return HermiteLink(tuple(terms))


def _pairs(r: int) -> HermiteLink:
    """Alternating he_2 on the diagonal plus cross terms z_j z_{j+1} on a path; three quarters of the variance on the diagonal."""
    if r == 1:
        return _diagonal(1, {2: 1.0})
    diagonal = [(math.sqrt(0.75 / r) * _alternating(j), tuple(2 if i == j else 0 for i in range(r))) for j in range(r)]
    cross = [(math.sqrt(0.25 / (r - 1)), tuple(1 if i in (j, j + 1) else 0 for i in range(r))) for j in range(r - 1)]
    return HermiteLink(tuple(diagonal + cross))


LINKS: dict[str, Callable[[int], HermiteLink]] = {
    "quadratic": lambda r: _diagonal(r, {2: 1.0}, _alternating),
    "quadratic-plus": lambda r: _diagonal(r, {2: 1.0}),
    "cubic": lambda r: _diagonal(r, {2: math.sqrt(0.8), 3: math.sqrt(0.2)}, _alternating),
    "cubic-plus": lambda r: _diagonal(r, {2: math.sqrt(0.8), 3: math.sqrt(0.2)}),
    "quartic": lambda r: _diagonal(r, {2: math.sqrt(0.8), 4: math.sqrt(0.2)}, _alternating),
    "linear-quadratic": lambda r: _diagonal(r, {1: math.sqrt(0.5), 2: math.sqrt(0.5)}, _alternating),
    "cross": _pairs,
    "graded": lambda r: _weights(r, lambda j: _alternating(j) * 4.0 ** (-j / max(1, r - 1)), {}),
    "lost": lambda r: _weights(r, lambda j: 0.0 if j == r - 1 else 2.0 * _alternating(j), {3: 1.0}),
    "odd": lambda r: _diagonal(r, {3: 1.0}),
}
"""Named links of unit variance, each a function of r. `graded` has an expected Hessian of condition number 4; two are negative controls:
`odd` has expected Hessian zero, that of `lost` misses the last direction (which only a cubic term uses)."""


def make_link(name: str, r: int) -> HermiteLink:
    """The named link for r index directions."""
    if name not in LINKS:
        raise ValueError(f"unknown link {name!r}; known: {', '.join(sorted(LINKS))}")
    if r < 1:
        raise ValueError(f"intrinsic dimension must be >= 1: r={r}")
    return LINKS[name](r)


@dataclass(frozen=True, eq=False)
class MultiIndexModel:
    """The teacher: index matrix, link and label-noise standard deviation."""

    B: Float[Any, "d r"]
    link: HermiteLink
    noise: float = 0.0

    def __post_init__(self) -> None:
        xp = array_namespace(self.B)
        d, r = self.B.shape
        if r > d:
            raise ValueError(f"intrinsic dimension exceeds the ambient one: r={r} > d={d}")
        if r != self.link.r:
            raise ValueError(f"B has r={r} columns, the link {self.link.r} index directions")
        if not self.noise >= 0:
            raise ValueError(f"noise standard deviation must be >= 0: noise={self.noise}")
        gram = self.B.T @ self.B
        identity = xp.eye(r, dtype=self.B.dtype, device=getattr(self.B, "device", None))
        defect = float(xp.max(xp.abs(gram - identity)))
        if not defect <= 1e3 * float(xp.finfo(self.B.dtype).eps):
            raise ValueError(f"the columns of B are not orthonormal: B^T B is off the identity by {defect:.1e} (B is {d} x {r})")

    @property
    def d(self) -> int:
        """Ambient dimension."""
        return self.B.shape[0]

    @property
    def r(self) -> int:
        """Intrinsic dimension."""
        return self.B.shape[1]

    def clean(self, x: Float[Any, "n d"]) -> Float[Any, "n"]:
        """f*(x) = g(B^T x)."""
        return self.link(x @ self.B)

    def labels(self, x: Float[Any, "n d"], xi: Float[Any, "n"]) -> Float[Any, "n"]:
        """f*(x) + noise * xi for standard normal xi."""
        clean = self.clean(x)
        return clean if self.noise == 0.0 else clean + self.noise * xi


def draw_index(d: int, r: int, rng: np.random.Generator) -> Float[np.ndarray, "d r"]:
    """A Haar-random orthonormal (d, r) matrix: the Q of a Gaussian matrix whose R has a positive diagonal."""
    if not 1 <= r <= d:
        raise ValueError(f"need 1 <= r <= d: r={r}, d={d}")
    q, upper = np.linalg.qr(rng.standard_normal((d, r)))
    return q * np.where(np.diag(upper) < 0, -1.0, 1.0)


def draw_model(d: int, r: int, link: str, rng: np.random.Generator, noise: float = 0.0) -> MultiIndexModel:
    """A teacher with Haar-random S* and the named link."""
    return MultiIndexModel(draw_index(d, r, rng), make_link(link, r), noise)


def residual_second_moment(link: HermiteLink, noise: float) -> float:
    """sigma_y^2 = E[y^2] after the mean and the linear part are removed."""
    return link.variance - float(np.sum(link.linear**2)) + noise**2


def as_backend(model: MultiIndexModel, xp: Any, dtype: Any) -> MultiIndexModel:
    """The same teacher with B in another namespace or dtype."""
    return MultiIndexModel(xp.asarray(np.asarray(model.B), dtype=dtype), model.link, model.noise)
