"""The low-rank stand-in for the Hessian: exact at full rank, bounded below it, with the signs of the eigenvalues kept.

    H~ = U diag(mu) U^T,  k eigenpairs of the projection of H onto the range of a Gaussian sketch, U orthonormal
    k = p:           H~ = H
    rank H <= k:     H~ = H, negative eigenvalues included
    k < p:           s_{k+1} <= |H - H~| <= (1 + EXCESS) s_{k+1} once power iterations are made;   |mu_i| <= |H|
    k = 0:           H~ = 0

Randomised range finder: Halko, Martinsson, Tropp (SIAM Review 2011); AT-BPTT (arXiv:2510.04838) puts H~ in the inner derivative. The lower
bound is Eckart and Young's; EXCESS is the room that three power iterations leave on the spectra drawn here, not a derived constant.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness, refuses
from theory.distill.curvature import LowRankHessian
from theory.distill.leaves import Leaves

EXACT, EXCESS = 1e-9, 1.0


def margin(
    rng: np.random.Generator, p: int, rank: int, decay: float, sample: int, signs: bool = True, low: bool = True, symmetric: bool = True
) -> float:
    """decay: ratio of neighbouring eigenvalues; signs: they are kept; low: a matrix of rank k; symmetric: H = H^T."""
    k = min(rank, p)
    frame = np.linalg.qr(rng.standard_normal((p, p)))[0]
    sizes = decay ** np.arange(p) * np.where(np.arange(p) % 2, -1.0, 1.0)
    h = (frame * sizes) @ frame.T
    cut = (frame[:, :k] * sizes[:k]) @ frame[:, :k].T if low else h
    if not symmetric:
        cut = cut + np.triu(rng.standard_normal((p, p)), 1)

    def sketch(matrix: np.ndarray, count: int, **how: int) -> np.ndarray:
        counted = []

        def product(v: Leaves) -> Leaves:
            counted.append(1)
            return (matrix @ v[0],)

        found = LowRankHessian(count, **how).sketch(product, 0, (np.zeros(p),), rng)
        orthonormal = not count or closeness(found.u.T @ found.u, np.eye(len(found.mu)), EXACT) > 0
        if len(counted) != found.products or not orthonormal:
            raise ValueError(f"a sketch of rank {count}: {found.products} products claimed, {len(counted)} made")
        mu = found.mu if signs else np.abs(found.mu)
        return np.asarray((found.u * mu) @ found.u.T)

    full = closeness(sketch(h, p), h, EXACT)
    exact = closeness(sketch(cut, k, oversample=2), cut, 1e-7) if k else 1.0
    error = float(np.linalg.norm(h - sketch(h, k, power=3), 2))
    beyond = abs(sizes[k]) if k < p else 0.0
    bounds = min(at_most(beyond, error, EXACT), at_most(error, (1.0 + EXCESS) * beyond, EXACT, max(beyond, 1e-3)))
    empty = closeness(sketch(h, 0), 0.0, EXACT)
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
    bad = ((-1,), (0, -1), (0, 0, -1), (0, 0, 0, 0), (0, 0, 0, 1, 0.0))
    return all(refuses(LowRankHessian, *one) for one in bad)


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
    latex=r"\sigma_{k+1} \le \|H - U\Lambda U^\top\| \le (1 + \varepsilon)\,\sigma_{k+1},\qquad k = p \Longrightarrow U\Lambda U^\top = H",
    plain="The low-rank Hessian is exact at full rank, off by about the next singular value below it, and keeps negative eigenvalues.",
    source=Source("stated", "Halko, Martinsson, Tropp, SIAM Review 2011; Li et al., arXiv:2510.04838"),
    assumptions={
        "signs_kept": "eigenvalues keep their signs",
        "rank_at_most_k": "for exactness below full rank: H has rank k",
        "symmetric": "H is symmetric",
    },
    instances={
        "p": st.integers(2, 8),
        "rank": st.integers(0, 8),
        "decay": st.integers(2, 7).map(lambda n: n / 10),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("signs_kept", "their sizes instead", {"signs": st.just(False)}),
        Control("rank_at_most_k", "full rank", {"low": st.just(False), "p": st.integers(4, 8), "rank": st.integers(1, 3)}),
        Control("symmetric", "any matrix", {"symmetric": st.just(False), "rank": st.integers(2, 8)}),
    ),
    examples=60,
    code=("theory.distill.curvature",),
)
