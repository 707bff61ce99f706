"""The low-rank stand-in for the Hessian: exact at full rank, bounded below it, with the signs of the eigenvalues kept.

    H~ = U diag(mu) U^T,  k eigenpairs of the projection of H onto the range of H^(power + 1) Omega, Omega Gaussian p x (k + oversample)
    k = p:           H~ = H
    rank H <= k:     H~ = H, negative eigenvalues included
    oversample = 0:  s_{k+1} <= |H - H~| <= 2 |(I - U U^T) H|
                     tan angle(range U, V_k) <= |s_{k+1}/s_k|^(power + 1) tan angle(range Omega, V_k),   V_k the k leading eigenvectors
    k = 0:           H~ = 0

The method is stated: randomised range finder with power iterations and projection, Halko, Martinsson, Tropp (SIAM Review 2011), algorithms
4.4 and 5.3; AT-BPTT (arXiv:2510.04838) puts H~ in the inner derivative. The bounds are derived here: Eckart and Young below; H - Q H Q =
(I - Q) H + Q H (I - Q) above, Q = U U^T; the components of H^q Omega along V_k and across it grow by |s_k|^q at least and |s_{k+1}|^q at
most.
"""

import copy
from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness, refuses
from theory.distill.curvature import LowRankHessian
from theory.distill.leaves import Leaves

EXACT = 1e-9


def margin(
    rng: np.random.Generator, p: int, rank: int, power: int, decay: float, sample: int, low: bool = True, symmetric: bool = True
) -> float:
    """decay: ratio of neighbouring eigenvalues; low: what is asked of rank k is asked of a matrix of rank k; symmetric: H = H^T."""
    k = min(rank, p)
    frame = np.linalg.qr(rng.standard_normal((p, p)))[0]
    sizes = decay ** np.arange(p) * np.where(np.arange(p) % 2, -1.0, 1.0)
    h = (frame * sizes) @ frame.T
    cut = (frame[:, :k] * sizes[:k]) @ frame[:, :k].T if low else h
    if not symmetric:
        bent = np.triu(rng.standard_normal((p, p)), 1)
        h, cut = h + bent, cut + bent

    def sketch(matrix: np.ndarray, count: int, **how: int) -> tuple[np.ndarray, np.ndarray]:
        """(H~, U)."""
        counted = []

        def product(v: Leaves) -> Leaves:
            counted.append(1)
            return (matrix @ v[0],)

        found = LowRankHessian(count, **how).sketch(product, 0, (np.zeros(p),), rng)
        orthonormal = not count or closeness(found.u.T @ found.u, np.eye(len(found.mu)), EXACT) > 0
        if len(counted) != found.products or not orthonormal:
            raise ValueError(f"a sketch of rank {count}: {found.products} products claimed, {len(counted)} made")
        return np.asarray((found.u * found.mu) @ found.u.T), np.asarray(found.u)

    full = closeness(sketch(h, p)[0], h, EXACT)
    exact = closeness(sketch(cut, k, oversample=2)[0], cut, 1e-7) if k else 1.0
    bounds = 1.0
    if 0 < k < p:
        omega = copy.deepcopy(rng).standard_normal((p, k))  # the draw that the sketch makes next
        near, u = sketch(h, k, oversample=0, power=power)
        error = float(np.linalg.norm(h - near, 2))
        tangents = [float(np.tan(subspace_angles(range_of, frame[:, :k])[0])) for range_of in (u, omega)]
        shrunk = decay ** (power + 1) * tangents[1]
        bounds = min(
            at_most([abs(sizes[k]), error], [error, 2.0 * float(np.linalg.norm(h - u @ (u.T @ h), 2))], EXACT),
            at_most(tangents[0], shrunk, 1e-6, 1e-3 + shrunk),
        )
    empty = closeness(sketch(h, 0)[0], 0.0, EXACT)
    return min(full, exact, bounds, empty, 1.0 if fresh() and refusals() else -9.0)


def fresh() -> bool:
    """A sketch serves until it is too old or the parameters have moved too far."""
    how = LowRankHessian(1, max_age=3, max_drift=0.5)
    g = np.array([2.0, 0.0])
    one = how.sketch(lambda v: v, 5, (g,), np.random.default_rng(0))
    stale = [how.stale(one, t, (x,)) for t, x in ((5, g), (3, g), (7, g), (2, g), (8, g), (5, 1.4 * g), (5, 1.5 * g), (5, 0.5 * g))]
    still = how.sketch(lambda v: v, 0, (0.0 * g,), np.random.default_rng(0))
    return (
        stale == [False, False, False, True, True, False, True, True] and how.stale(None, 0, (g,)) and not how.stale(still, 0, (0.0 * g,))
    )


def refusals() -> bool:
    """Sizes that are refused, and the last ones taken."""
    LowRankHessian(0, 0, 0, 1, 1e-9)
    usual = LowRankHessian() == LowRankHessian(32, 4, 2, 20, 0.2)
    none = LowRankHessian(0).sketch(lambda v: v, 0, (np.zeros(3),), np.random.default_rng(0))
    nothing = (none.u.shape, none.mu.shape, none.products) == ((3, 0), (0,), 0) and none.apply((np.ones(3),))[0].tolist() == [0.0] * 3
    bad = ((-1,), (0, -1), (0, 0, -1), (0, 0, 0, 0), (0, 0, 0, 1, 0.0))
    return usual and nothing and all(refuses(LowRankHessian, *one) for one in bad)


def symbolic() -> Iterator[Identity]:
    """Two directions: the projection onto the range of H keeps H; dropping the signs does not."""
    a, b, c, s = sp.symbols("a b c s", real=True)
    u = sp.Matrix([c, s])  # a unit vector once c^2 + s^2 = 1
    h = a * u * u.T
    projected = u * (u.T * h * u) * u.T
    residual = (projected - h).applyfunc(lambda x: sp.rem(sp.expand(x), c**2 + s**2 - 1, s))
    for place in range(4):
        yield Identity(f"Q Q^T H Q Q^T = H on the range, entry {place}", residual[place], 0)
    flipped = sp.diag(a, -b) - sp.diag(a, b)
    yield Identity("a lost sign costs twice the eigenvalue", flipped.norm() ** 2, 4 * b**2)


LEMMA = Lemma(
    number=18,
    name="low-rank-hessian",
    latex=(
        r"\sigma_{k+1} \le \|H - U\Lambda U^\top\| \le 2\,\|(I - UU^\top)H\|,\qquad \tan\angle(U, V_k) \le "
        r"\left|\frac{\sigma_{k+1}}{\sigma_k}\right|^{q+1}\tan\angle(\Omega, V_k),\qquad k = p \Longrightarrow U\Lambda U^\top = H"
    ),
    plain="The low-rank Hessian is exact at full rank and at rank k, signs included; power iterations turn it to the leading space.",
    source=Source(
        "derived",
        "Eckart and Young, subspace iteration; the method is Halko, Martinsson, Tropp's, SIAM Review 2011, algorithms 4.4 and 5.3",
    ),
    assumptions={
        "rank_at_most_k": "for exactness below full rank: H has rank k",
        "symmetric": "H is symmetric",
    },
    instances={
        "p": st.integers(2, 8),
        "rank": st.integers(0, 8),
        "power": st.integers(0, 3),
        "decay": st.integers(2, 7).map(lambda n: n / 10),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("rank_at_most_k", "full rank", {"low": st.just(False), "p": st.integers(4, 8), "rank": st.integers(1, 3)}),
        Control("symmetric", "another upper triangle", {"symmetric": st.just(False), "rank": st.integers(2, 8)}),
    ),
    examples=60,
    code=("theory.distill.curvature",),
)
