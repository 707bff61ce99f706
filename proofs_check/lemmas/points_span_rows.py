"""At least r points: with fewer, the rows miss directions of S* and their variance bounds the risk from below.

    W^(1) = eta a_i (1/M1) sum_m y~_m x~_m 1{w_i.x~_m >= 0}   =>   rows in V = span{x~_m}, dim V <= M1
    any predictor of V^T x has risk >= E Var(f* | V^T x) = Var f* - captured_variance(V)
                                     >= (1/2) sum_{j > dim V} s_j(A)^2 > 0 for dim V < r = rank A    s_j singular values of A = E[Hess g]

The bound is met by a quadratic link whose points span the leading eigenvectors of A. Derivation: weight decay erases the start, so rows are
combinations of points; conditional expectation is the best predictor and acts on each Hermite tensor by projecting all its slots; the
degree-2 tensor A/sqrt(2) keeps at most its dim V largest squared singular values.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import exact_mean, gauss_nodes, link_of, links
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness
from sims.student import Student
from sims.two_phase import retrained_rows
from theory.two_layer import forward

TOLERANCE = 1e-9
LEAST = 1e-5
"""What counts as positive, over the variance: far below the least bound of the links drawn, far above rounding."""


def best_square(values: np.ndarray, z: np.ndarray, weight: np.ndarray, frame: np.ndarray, degree: int) -> float:
    """E (f - best)^2 over polynomials of V^T z up to the degree of f, by least squares on exact quadrature nodes."""
    t = z @ frame
    orders = [()] if not frame.shape[1] else [k for k in np.ndindex(*(degree + 1,) * frame.shape[1]) if sum(k) <= degree]
    columns = np.stack([np.prod([t[:, j] ** k for j, k in enumerate(order)], axis=0) * np.ones(len(z)) for order in orders], axis=1)
    root = np.sqrt(weight)[:, None]
    best = np.linalg.lstsq(root * columns, root[:, 0] * values, rcond=1e-13)[0]
    return float(weight @ (values - columns @ best) ** 2)


def regular(terms: list[Any]) -> bool:
    """Whether the mean Hessian has rank r, well away from less."""
    return bool(np.linalg.svd(link_of(terms).hessian, compute_uv=False)[-1] > 0.05)


def margin(
    rng: np.random.Generator, terms: list[Any], missing: int, extra: int, aligned: bool, sample: int, erased: bool = True, more: int = 0
) -> float:
    """missing: r - 1 less the points; extra: d - r; aligned: the points are leading eigenvectors of A, else Gaussian; erased: the random
    start of the rows is gone; more: points on top of that.
    """
    link = link_of(terms)
    r, p = link.r, link.degree
    d, m1 = r + extra, max(r - 1 - missing, 0) + more
    student = Student(d, 8)
    theta = student.init(rng)
    x = rng.standard_normal((m1, d)) if m1 else np.zeros((1, d))
    if aligned and 0 < m1 <= r:
        eigenvalues, vectors = np.linalg.eigh(link.hessian)
        x = np.zeros((m1, d))
        x[:, :r] = vectors[:, np.argsort(-np.abs(eigenvalues))[:m1]].T
    x[0] *= np.sign(theta[1][0] @ x[0]) or 1.0  # some gate is open
    rows = retrained_rows(student, theta, x, 1.0, False) if m1 else np.zeros((8, d))
    if not erased:
        rows = rows + theta[1]
    basis = np.linalg.svd(x, full_matrices=False)[2][: min(m1, d)].T
    span = closeness(rows - rows @ basis @ basis.T, 0.0, TOLERANCE)

    # In S* only the projections of the points count; S* holds the first r coordinates.
    turned = np.linalg.svd(x[:, :r])[2].T
    frame = turned[:, : min(m1, r)]
    captured = link.captured_variance(frame) if m1 else 0.0
    unexplained = link.variance - captured
    nodes, weight = gauss_nodes(r, 2 * p)
    z = nodes @ turned.T  # along the frame and across it, so that means over what the frame does not see are exact
    values = link(z)
    oracle = closeness(unexplained, best_square(values, z, weight, frame, p), 1e-8, link.variance)

    singular = np.linalg.svd(link.hessian, compute_uv=False)
    floor = at_most(0.5 * float(np.sum(singular[m1:] ** 2)), unexplained, TOLERANCE, link.variance)
    positive = at_most(LEAST, unexplained / link.variance, LEAST / 10.0)

    # A network on these rows, with a head fitted to f* itself on the nodes: it cannot do better.
    features = np.column_stack([forward((np.ones(8), rows[:, :r], rng.standard_normal(8)), z).features, np.ones(len(z))])
    root = np.sqrt(weight)[:, None]
    head = np.linalg.lstsq(root * features, root[:, 0] * values, rcond=1e-10)[0]
    risk = float(weight @ (values - features @ head) ** 2)
    return min(span, oracle, floor, positive, at_most(unexplained, risk, 1e-8, link.variance))


def symbolic() -> Iterator[Identity]:
    """The quadratic link of r = 2 and one direction (cos t, sin t): what it leaves unexplained."""
    t, a, b, c, u, v = sp.symbols("t a b c u v", real=True)
    along, across = sp.Matrix([sp.cos(t), sp.sin(t)]), sp.Matrix([-sp.sin(t), sp.cos(t)])
    hessian = sp.Matrix([[a, b], [b, c]])
    z = u * along + v * across
    f = (z.T * hessian * z)[0] / 2 - (a + c) / 2

    left = exact_mean((f - exact_mean(f, v)) ** 2, v, u)
    kept = (along.T * hessian * along)[0]
    yield Identity("E Var(f | u) = (|A|^2 - (v.A v)^2)/2", left, (a**2 + 2 * b**2 + c**2 - kept**2) / 2)
    yield Identity("at the top direction the smaller squared singular value is left", left.subs({b: 0, t: 0}), c**2 / 2)


LEMMA = Lemma(
    number=11,
    name="points-span-rows",
    latex=(
        r"\dim\mathrm{span}\{\tilde x_m\} \le M_1 < r = \mathrm{rank}\,A\ \Longrightarrow\ "
        r"\mathrm{risk} \ge \mathbb E\,\mathrm{Var}(f^*\mid V^\top x) \ge "
        r"\tfrac12\sum_{j>M_1} s_j(A)^2 > 0"
    ),
    plain="Rows retrained on M1 points lie in their span; with fewer than r = rank A, the variance they miss bounds every risk.",
    source=Source("derived", "conditional expectation on a subspace; Eckart and Young"),
    assumptions={
        "erased_start": "weight decay removes the random start of the rows",
        "fewer_points": "M1 < r",
        "hessian_rank": "A has rank r",
    },
    instances={
        "terms": links([2, 3], max_r=3).filter(lambda terms: len(terms[0][1]) > 1 and regular(terms)),
        "missing": st.integers(0, 2),
        "extra": st.integers(0, 3),
        "aligned": st.booleans(),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("erased_start", "rows keep their start", {"erased": st.just(False)}),
        Control(
            "fewer_points",
            "r points and more",
            {"more": st.integers(1, 3), "missing": st.just(0)},
        ),
        Control("hessian_rank", "rank 1 at r = 2", {"terms": st.just([[100, [2, 0]]]), "missing": st.just(0)}),
    ),
    examples=60,
    code=("theory.multi_index.HermiteLink", "theory.two_layer.gradient", "theory.two_layer.forward"),
)
