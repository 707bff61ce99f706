"""The gradient of squared gradient matching in the synthetic inputs, for the first layer at a symmetric start.

    g_i = (1/N) sum_n y_n x_n 1{w_i.x_n >= 0}                  teacher rows (x_n, y_n real)
    s_i = (1/M) sum_m y~_m x~_m 1{w_i.x~_m >= 0}               student rows
    match = (1/2) sum_i ||a_i s_i - a_i g_i||^2
    d match / d x~_m = -(y~_m L/M) [ D_m - (1/M) sum_k y~_k K_mk x~_k ]
    D_m = (1/L) sum_i g_i 1{w_i.x~_m >= 0},   K_mk = (1/L) sum_i 1{w_i.x~_m >= 0} 1{w_i.x~_k >= 0}

Held to three oracles: the products of theory.distill.matching, central differences (both in `margin`), and one autograd graph (the test
named in `also`). Derivation: a_i^2 = 1 and gates are locally constant, so the match is a quadratic in x~; at a symmetric start the network
and its input gradient vanish, so the loss gradient of row i is -a_i s_i and stays so when x~ moves. With many random directions w_i, K_mk
tends to the arc-cosine kernel of x~_m and x~_k.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness
from sims.student import Student
from theory.distill.leaves import Leaves
from theory.distill.matching import gradient_matching, squared
from theory.two_layer import symmetric_init

EXACT, DIFFERENCED = 1e-12, 1e-9
CLEARANCE = 1e-3
"""Least |w_i.x~_m| on the instances of the property, so that a finite difference can stay between the gates."""


def rows(gate: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(1/M) sum_m y_m x_m 1{w_i.x_m >= 0} as rows (L, d), from gates (M, L). Entries may be floats or SymPy expressions."""
    return gate.T @ (y[:, None] * x) / len(y)


def closed_form(gate: np.ndarray, x: np.ndarray, y: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two terms of d match / d x~ (M, d): -(y_m L/M) D_m, and the one with K; their sum is the gradient."""
    m, width = gate.shape
    d_m = gate @ g / width
    k = gate @ gate.T / width
    factor = y[:, None] * width / m
    return -factor * d_m, factor * (k @ (y[:, None] * x)) / m


def first_layer(g_s: Leaves, g_t: Leaves) -> tuple[float, Leaves]:
    """The squared distance over W alone, of leaves (a, W, b)."""
    value, (c,) = squared(g_s[1:2], g_t[1:2])
    return value, (np.zeros_like(g_s[0]), c, np.zeros_like(g_s[2]))


def margin(
    rng: np.random.Generator,
    sizes: dict[str, int],
    sample: int,
    head: float = 1.0,
    paired: bool = True,
    on_boundary: bool = False,
) -> float:
    """The closed form against theory.distill.matching (exact products) and against central differences of the match.

    sizes: d, half the width, M, N; head: |a_i|; paired: the second half of W repeats the first; on_boundary: w_0.x~_0 = 0.
    """
    d, half, m, n = sizes["d"], sizes["half"], sizes["M"], sizes["N"]
    a, w, b = symmetric_init(d, 2 * half, rng)
    if not paired:
        w = np.concatenate([w[:half], rng.standard_normal((half, d))])
    real, labels, y = rng.standard_normal((n, d)), rng.standard_normal(n), rng.standard_normal(m)
    x = rng.standard_normal((m, d))
    while np.min(np.abs(x @ w.T)) < CLEARANCE:
        x = rng.standard_normal((m, d))
    if on_boundary:
        x[0] -= (w[0] @ x[0]) * w[0]
    g = rows((real @ w.T >= 0).astype(float), real, labels)
    parts = closed_form((x @ w.T >= 0).astype(float), x, y, g)
    size = max(float(np.max(np.abs(part))) for part in parts)

    student = Student(d, 2 * half)
    theta, g_t = (head * a, w, b), (np.zeros_like(a), -head * a[:, None] * g, np.zeros_like(b))
    exact = gradient_matching(student, first_layer, theta, (x, y), None, g_t)[1][0]
    reach = max(float(np.min(np.abs(x @ w.T) / np.linalg.norm(w, axis=1))), CLEARANCE)
    differences = np.empty_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = reach / 2.0  # the match is quadratic between the gates, so a long central difference is exact
        up, down = (first_layer(student.gradient(theta, (moved, y), None), g_t)[0] for moved in (x + step, x - step))
        differences[place] = (up - down) / reach
    claim = parts[0] + parts[1]
    return min(closeness(exact, claim, EXACT, size), closeness(differences, claim, DIFFERENCED, size + float(np.sum(g * g))))


def symbolic() -> Iterator[Identity]:
    """M = 2, L = 2, d = 2 with symbolic gates (so for all sixteen gate patterns at once), points, labels and teacher rows."""

    def array(name: str, *shape: int) -> np.ndarray:
        return np.array(sp.symarray(name, shape), dtype=object)

    gate, x, y, g = array("G", 2, 2), array("x", 2, 2), array("y", 2), array("g", 2, 2)
    first, second = closed_form(gate, x, y, g)
    claim = first + second

    match = sum((rows(gate, x, y) - g).ravel() ** 2) / 2
    for place in np.ndindex(x.shape):
        yield Identity(f"d match / d x{place}, rows given", sp.expand(sp.diff(match, x[place]) - claim[place]), 0)

    w = array("w", 2, 2)
    a = np.array([1, -1], dtype=object)
    e = (gate * (x @ w.T)) @ a - y
    loss = sum(e**2) / (2 * len(y))
    gradient = np.array([[sp.diff(loss, w[i, j]) for j in range(2)] for i in range(2)], dtype=object)
    # A symmetric start: both neurons share their row and therefore their gates.
    twin = {w[1, 0]: w[0, 0], w[1, 1]: w[0, 1], gate[0, 1]: gate[0, 0], gate[1, 1]: gate[1, 0]}
    trained = np.array([[sp.expand(entry.subs(twin)) for entry in row] for row in gradient], dtype=object)
    match = sum((trained + a[:, None] * g).ravel() ** 2) / 2
    for place in np.ndindex(x.shape):
        residual = sp.diff(match, x[place]) - sp.sympify(claim[place]).subs(twin)
        yield Identity(f"d match / d x{place}, rows from the loss of the network", sp.expand(residual), 0)


SIZES = {"d": st.integers(1, 4), "half": st.integers(1, 4), "M": st.integers(1, 5), "N": st.integers(1, 20)}

LEMMA = Lemma(
    number=7,
    name="matching-gradient",
    latex=(
        r"\nabla_{\tilde x_m} \tfrac12 \sum_i \|a_i s_i - a_i g_i\|^2 "
        r"= -\frac{\tilde y_m L}{M_1}\Bigl[D_m - \frac1{M_1}\sum_k \tilde y_k K_{mk} \tilde x_k\Bigr],\quad "
        r"D_m = \frac1L\sum_i g_i \mathbf 1_{w_i^\top\tilde x_m \ge 0},\quad "
        r"K_{mk} = \frac1L\sum_i \mathbf 1_{w_i^\top\tilde x_m \ge 0}\mathbf 1_{w_i^\top\tilde x_k \ge 0}"
    ),
    plain="One step of squared gradient matching pulls a point along the gated mean of the teacher rows and pushes it off its neighbours.",
    source=Source("derived", "the match is a quadratic between the gates"),
    assumptions={
        "symmetric_init": "neurons come in pairs of equal rows and opposite heads, so the network starts at zero",
        "unit_head": "a_i is +1 or -1",
        "off_boundary": "no synthetic point lies on a gate boundary",
    },
    instances={
        "sizes": st.fixed_dictionaries(SIZES),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("symmetric_init", "all rows independent", {"paired": st.just(False)}),
        Control("unit_head", "heads of size 1.5 to 3", {"head": st.floats(1.5, 3.0)}),
        Control("off_boundary", "one point moved onto a boundary", {"on_boundary": st.just(True)}),
    ),
    examples=150,
    also=("tests/theory/distill/test_matching.py::test_gradient_matching_differentiates_through_the_gradient",),
    code=(
        "theory.two_layer.gradient",
        "theory.two_layer.mixed",
        "theory.two_layer.symmetric_init",
        "theory.distill.matching.squared",
        "theory.distill.matching.gradient_matching",
    ),
)
