"""The subspace that a set of points encodes: span of its leading right singular vectors, set beside a reference subspace.

X = U diag(s) V^T   points (m, d), one a row, s decreasing          V_k = first k columns of V, the best k-dimensional fit to the rows
theta_i             principal angles between two subspaces, radians          gap at r = s_r / s_{r+1}
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.linalg import subspace_angles, svd


def leading_subspace(X: Float[np.ndarray, "m d"], k: int) -> Float[np.ndarray, "d k"]:
    """V_k, orthonormal columns. ValueError when k exceeds min(m, d); FloatingPointError when the rank of X is below k.

    Directions of singular value zero are arbitrary, so a subspace made with them would not be a measurement.
    """
    if not 1 <= k <= min(X.shape):
        raise ValueError(f"k = {k} directions out of points of shape {X.shape}: take 1 <= k <= {min(X.shape)}")
    _, s, Vt = svd(_finite(X), full_matrices=False)
    if s[k - 1] <= s[0] * max(X.shape) * np.finfo(s.dtype).eps:
        raise FloatingPointError(f"the points have rank below k = {k} (singular value {s[k - 1]:.1e} against {s[0]:.1e})")
    return Vt[:k].T


def principal_angles(A: Float[np.ndarray, "d p"], B: Float[np.ndarray, "d q"]) -> Float[np.ndarray, " n"]:
    """The n = min(p, q) principal angles in radians, increasing, between the column spans (scipy.linalg.subspace_angles)."""
    return subspace_angles(_finite(A), _finite(B))[::-1]


def singular_values(X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Decreasing, n = min(m, d)."""
    return np.linalg.svdvals(_finite(X))


def singular_gap(s: Float[np.ndarray, " n"], r: int) -> float:
    """s_r / s_{r+1} of decreasing singular values: large when exactly r directions stand out; +inf when nothing is left after r."""
    if not 1 <= r < len(s):
        raise ValueError(f"the gap at r = {r} needs r + 1 singular values, there are {len(s)}")
    if s[r - 1] == 0:
        raise FloatingPointError(f"the gap at r = {r} is 0/0: only {int(np.sum(s > 0))} singular values differ from 0")
    return float(s[r - 1] / s[r]) if s[r] > 0 else math.inf


def _finite(X: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(X)):
        raise FloatingPointError(f"points of shape {X.shape} hold {int(np.sum(~np.isfinite(X)))} entries that are NaN or infinite")
    return X
