"""L labels determine the head and fewer do not: the rank of the features on a line steps at M2 = L.

    Phi_mi = relu(t_m w_i.v + b_i),  inputs t_m v on a line, spread over the L + 1 intervals between the kinks -b_i/(w_i.v)
    rank Phi = L  iff  M2 >= L
    M2 >= L   the labels Phi a have one head, a
    M2 < L    two heads as far apart as they are long share their labels, so no rule recovers both

`unrecovered` is the relative error of the least-norm head, the larger one of those for a head and for its neighbour along the least
singular direction of Phi: rounding for M2 >= L, and at least 1/4 for M2 < L (|a - a'| = |a|, |a'| <= 2 |a|, one answer to both).

Derivation: along the line each neuron bends once, at its own kink, so the L features are linearly independent piecewise linear functions;
where every neuron opens to one side and inputs and kinks alternate, Phi is triangular with positive diagonal. The count of L labels
for L features is stated by Chen, Huang, Weng (NeurIPS 2024, theorem 4.2).
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import at_most, closeness
from sims.heads import features, least_norm_head, line_inputs

RANK = 1e-11
"""Singular values below RANK times the largest count as zero: far below those of the networks drawn, far above rounding."""
HEAD, LOST = 1e-6, 0.25


def unrecovered(phi: np.ndarray, head: np.ndarray) -> float:
    """How much of a head its labels leave open."""
    least = np.linalg.svd(phi)[2][-1]
    heads = [head, head + np.linalg.norm(head) * least]
    return max(float(np.linalg.norm(least_norm_head(phi, phi @ a) - a) / np.linalg.norm(a)) for a in heads)


def margin(
    rng: np.random.Generator,
    half: int,
    labels: float,
    short: float,
    d: int,
    sample: int,
    distinct: bool = True,
    spread: bool = True,
    paired: bool = True,
) -> float:
    """L = 2 half neurons; labels: M2/L, which determine the head; short: M2/L at which they do not; distinct: no two kinks agree; spread:
    one input an interval; paired: rows come in pairs of opposite sign.
    """
    width = 2 * half
    m2, few = max(1, round(labels * width)), max(1, min(width - 1, round(short * width)))
    w = rng.standard_normal((half, d))
    rows = np.concatenate([w, -w]) if paired else np.abs(rng.standard_normal((width, d)))
    biases, v = rng.standard_normal(width), rng.standard_normal(d)
    if not paired:
        v = np.abs(v)
    if not distinct:
        rows[1], biases[1] = 2.0 * rows[0], 2.0 * biases[0]
    inputs = line_inputs(rows, biases, v, m2)
    if not spread:
        inputs = np.linspace(1.0, 2.0, m2)[:, None] * (10.0 + 10.0 * np.max(np.abs(biases / (rows @ v)))) * v
    phi, less = features(rows, biases, inputs), features(rows, biases, line_inputs(rows, biases, v, few))
    singular = np.linalg.svd(phi, compute_uv=False)
    rank = int(np.sum(singular > RANK * singular[0]))
    head = rng.standard_normal(width)
    return min(
        closeness(rank, width, 0.5),
        closeness(unrecovered(phi, head), 0.0, HEAD),
        at_most(LOST, unrecovered(less, head), HEAD),
    )


def symbolic() -> Iterator[Identity]:
    """Four neurons that open to the right at kinks k_0 < ... < k_3, one input right of each: the determinant is the product of the gaps."""
    gaps = sp.symbols("g0:4", positive=True)
    steps = sp.symbols("s0:4", positive=True)
    kinks, inputs, place = [], [], sp.Integer(0)
    for gap, step in zip(gaps, steps, strict=True):
        kinks.append(place)
        inputs.append(place + gap)
        place = place + gap + step
    matrix = sp.Matrix(4, 4, lambda m, i: inputs[m] - kinks[i] if m >= i else 0)
    yield Identity("det of relu(t_m - k_i)", matrix.det(), sp.prod(gaps))
    inside = sp.Matrix(4, 4, lambda m, i: steps[m] + gaps[i])  # all inputs on one piece: an affine function of t
    yield Identity("no rank beyond 2 where all inputs share one piece", inside.extract([0, 1, 2], [0, 1, 2]).det(), 0)


LEMMA = Lemma(
    number=12,
    name="labels-determine-head",
    latex=r"\mathrm{rank}\,\Phi = L \iff M_2 \ge L\ \text{ on a line with one input between neighbouring kinks}",
    plain="On a line, labels at L inputs between the kinks determine the L head weights; with fewer labels many heads agree.",
    source=Source("derived", "piecewise linear functions; the count L is Chen, Huang, Weng, NeurIPS 2024, theorem 4.2"),
    assumptions={
        "distinct_kinks": "no two neurons bend at one place",
        "one_input_a_piece": "each input lies alone between two kinks",
        "no_dead_piece": "rows come in pairs of opposite sign, so no input used sees all neurons dead",
        "enough_labels": "M2 >= L",
    },
    instances={
        "half": st.integers(2, 10),
        "labels": st.sampled_from([1.0, 1.0, 1.5]),
        "short": st.integers(5, 100).map(lambda n: n / 100),
        "d": st.integers(1, 4),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("distinct_kinks", "two neurons with one kink", {"distinct": st.just(False), "labels": st.just(1.0)}),
        Control("one_input_a_piece", "all inputs beyond the last kink", {"spread": st.just(False), "labels": st.just(1.0)}),
        Control("no_dead_piece", "all neurons open to one side", {"paired": st.just(False), "labels": st.just(1.0)}),
        Control("enough_labels", "M2 = 0.1 L to 0.8 L", {"labels": st.floats(0.1, 0.8)}),
    ),
    examples=100,
    code=("sims.heads.line_inputs", "sims.heads.features", "sims.heads.least_norm_head"),
)
