"""When a distilled set reproduces linear ridge regression exactly: all of it learned, or its labels alone.

    trained on (X, Y), X d x m, Y k x m:   W_S = Y (X^T X + lambda I)^(-1) X^T =: Y X_lambda

    4.1   m >= k, rank Y = k, D = Y^+ W + (I - Y^+ Y) Z with singular values s'_i and any Z:   W_S = W is reached by the X with the singular
          vectors of D^+ and singular values 1/s'_i (lambda = 0) or (1 +- sqrt(1 - 4 lambda s'_i^2))/(2 s'_i), the sign free for every i,
          iff lambda <= 1/(4 s'_1^2);   m < k: no X does unless the columns of W lie in the range of Y
    4.2   inputs fixed, rank X = d (so m >= d), any lambda:   Y = W (X + lambda X^(+T)) gives W_S = W;   m < d: no Y does in general

Stated by Chen, Huang, Weng (NeurIPS 2024); the form of Y in 4.2 is derived here as W times the pseudo-inverse of X_lambda. Derivation:
X_lambda has the singular values s/(s^2 + lambda), a function of s whose maximum is 1/(2 sqrt(lambda)); W_S stays in the range of Y and its
rows in that of X^T. "Only if" is checked through that maximum, taken over a grid of s: beyond the bound it stays below s'_1; and for m < k
through the part of W off the range of Y, which every X misses, the nearest one just that.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness
from theory.assumptions import ASSUMPTIONS
from theory.margins import Experiment

TOLERANCE = 1e-7


def trained(x: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    """W_S, in the form that also covers lambda = 0."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    live = s > 1e-10 * s[0]
    weight = np.where(live, s / np.where(live, s * s + lam, 1.0), 0.0)
    return y @ (vt.T * weight) @ u.T


def margin(
    rng: np.random.Generator,
    sizes: list[int],
    ridge: float,
    over: float,
    heavy: float,
    signs: int,
    sample: int,
    points: bool = True,
    full_rank: bool = True,
    inputs: bool = True,
) -> float:
    """sizes: k, d - k, m - k, m - d of the labels-only set; ridge, over: lambda in units of 1/(4 s'_1^2), within the bound and beyond it;
    heavy: lambda of the labels-only set; signs: bit i is the sign in front of the root of s_i; points, inputs: False takes points away,
    below k and below d; full_rank: rank Y = k.
    """
    k, more_d, more_m, more_points = sizes
    d, m = k + more_d, k + more_m if points else k - 1
    w, y = rng.standard_normal((k, d)), rng.standard_normal((k, m))
    if not full_rank:
        y[-1] = y[0]
    pinv = np.linalg.pinv(y)
    target = pinv @ w + (np.eye(m) - pinv @ y) @ rng.standard_normal((m, d))
    u, s, vt = np.linalg.svd(target, full_matrices=False)
    lam = ridge / (4.0 * s[0] ** 2)
    # Complex roots have no matrix; the nearest point is then the top of s/(s^2 + lambda), at sqrt(lambda).
    discriminant = 1.0 - 4.0 * lam * s**2
    root = np.sqrt(np.maximum(discriminant, 0.0)) * (1 if lam == 0.0 else 2 * (signs >> np.arange(len(s)) & 1) - 1)
    lengths = np.where(discriminant >= 0.0, (1.0 + root) / (2.0 * s), np.sqrt(lam))
    x = (vt.T * lengths) @ u.T
    learned = closeness(trained(x, y, lam), w, TOLERANCE, np.abs(w).max() * np.linalg.cond(target))
    beyond = over / (4.0 * s[0] ** 2)
    lengths = np.geomspace(1e-3, 1e3, 20000) / s[0]
    # The largest singular value that any X reaches, over the one that is wanted: below one.
    missed = closeness(np.max(lengths / (lengths**2 + beyond)) / s[0], 1.0 / np.sqrt(over), 1e-6)
    ours = ASSUMPTIONS["A22"](Experiment(lambda_s=ridge * float(y[0] @ y[0]) / (4.0 * float(w[0] @ w[0])), head=w[0], labels2=y[0]))
    agrees = 1.0 if ours is not None and abs(ours.value - (1.0 - ridge)) < 1e-9 and ours.holds == (ours.value >= 0) else -9.0

    fixed = rng.standard_normal((d, d + more_points if inputs else d - 1))
    labels = w @ (fixed + heavy * np.linalg.pinv(fixed).T)
    only_labels = closeness(trained(fixed, labels, heavy), w, TOLERANCE, np.abs(w).max() * np.linalg.cond(fixed) ** 2)
    return min(learned, missed, only_labels, agrees, too_few(rng, w, lam))


def too_few(rng: np.random.Generator, w: np.ndarray, lam: float) -> float:
    """m < k (one point at k = 1): no X comes nearer than the part of W off the range of Y; a W in that range is reached."""
    k, d = w.shape
    y = rng.standard_normal((k, max(k - 1, 1)))
    x, inside = rng.standard_normal((d, y.shape[1])), y @ rng.standard_normal((y.shape[1], d))
    pinv = np.linalg.pinv(y)
    lost, scale = np.linalg.norm(w - y @ pinv @ w), np.linalg.norm(w) * np.linalg.cond(y)
    nearest = np.linalg.pinv(pinv @ w)
    distances = np.array([np.linalg.norm(trained(one, y, ridge) - w) for one, ridge in ((x, lam), (x, 0.0), (nearest, 0.0))])
    reach = scale * np.linalg.cond(nearest)
    reached = closeness(
        trained(np.linalg.pinv(pinv @ inside), y, 0.0), inside, TOLERANCE, np.abs(inside).max() * np.linalg.cond(pinv @ inside)
    )
    return min(at_most(lost, distances, TOLERANCE, scale), closeness(distances[-1], lost, TOLERANCE, reach), reached)


def symbolic() -> Iterator[Identity]:
    s, lam, t = sp.symbols("s lambda t", positive=True)  # t = s'
    for sign in (1, -1):
        root = (1 + sign * sp.sqrt(1 - 4 * lam * t**2)) / (2 * t)
        yield Identity(f"s/(s^2 + lambda) = s' at sign {sign:+d}", sp.simplify(root - t * (root**2 + lam)), 0)
    gain = s / (s**2 + lam)
    yield Identity("the gain is stationary at sqrt(lambda)", sp.diff(gain, s).subs(s, sp.sqrt(lam)), 0)
    yield Identity("its largest value is 1/(2 sqrt(lambda))", gain.subs(s, sp.sqrt(lam)), 1 / (2 * sp.sqrt(lam)))
    yield Identity(
        "what is missing from the largest value is a square",
        1 / (2 * sp.sqrt(lam)) - gain,
        (s - sp.sqrt(lam)) ** 2 / (2 * sp.sqrt(lam) * (s**2 + lam)),
    )
    yield Identity("the labels' gain s + lambda/s undoes it", gain * (s + lam / s), 1)


LEMMA = Lemma(
    number=13,
    name="linear-ridge",
    latex=(
        r"W_S = Y_S(X_S^\top X_S + \lambda_S I)^{-1}X_S^\top = W:\quad s_i = \frac{1 \pm_i \sqrt{1 - 4\lambda_S s_i'^2}}{2 s_i'}\ \iff\ "
        r"\lambda_S \le \frac{1}{4 s_1'^2};\qquad \text{or, inputs fixed, } Y_S = W\,(X_S + \lambda_S X_S^{+\top})"
    ),
    plain=(
        "k points reproduce linear ridge regression exactly iff the ridge is at most 1/(4 s'_1^2), with either sign for each singular "
        "value; labels alone at d fixed inputs do so at any ridge."
    ),
    source=Source("stated", "Chen, Huang, Weng, NeurIPS 2024, theorems 4.1 and 4.2; the form of Y_S is derived here"),
    assumptions={
        "small_ridge": "lambda_S <= 1/(4 s'_1^2)",
        "enough_points": "m >= k",
        "rank_labels": "rank Y_S = k",
        "enough_inputs": "labels only: m >= d",
    },
    instances={
        "sizes": st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)),
        "ridge": st.integers(0, 100).map(lambda n: n / 100),
        "over": st.integers(102, 400).map(lambda n: n / 100),
        "heavy": st.integers(0, 50).map(lambda n: n / 10),
        "signs": st.integers(0, 127),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("small_ridge", "1.5 to 4 times the bound", {"ridge": st.floats(1.5, 4.0)}),
        Control(
            "enough_points",
            "m = k - 1",
            {"points": st.just(False), "sizes": st.tuples(st.integers(2, 4), st.integers(0, 4), st.just(0), st.just(0))},
        ),
        Control(
            "rank_labels",
            "two equal rows",
            {"full_rank": st.just(False), "sizes": st.tuples(st.integers(2, 4), st.integers(0, 4), st.just(1), st.just(0))},
        ),
        Control(
            "enough_inputs",
            "d - 1 inputs",
            {"inputs": st.just(False), "sizes": st.tuples(st.integers(2, 4), st.integers(0, 4), st.just(0), st.just(0))},
        ),
    ),
    examples=100,
    code=("theory.assumptions.ridge_reachable",),
)
