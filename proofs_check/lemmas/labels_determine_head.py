"""L labels determine the head and fewer do not: the rank of the features on a line steps at M2 = L.

    Phi_mi = relu(t_m w_i.v + b_i),  inputs t_m v on a line, spread over the L + 1 intervals between the kinks -b_i/(w_i.v)
    rank Phi = L  iff  M2 >= L
    M2 >= L   the labels Phi a have one head, a
    M2 < L    labels have a whole space of heads, of dimension L - M2 at least

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
HEAD = 1e-6


def margin(
    rng: np.random.Generator,
    half: int,
    labels: float,
    d: int,
    sample: int,
    distinct: bool = True,
    spread: bool = True,
    paired: bool = True,
    fewer: int = 0,
) -> float:
    """L = 2 half neurons; labels: M2/L, rounded up to at least one; distinct: no two kinks agree; spread: one input an interval; paired:
    rows come in pairs of opposite sign; fewer: labels taken away after M2 was claimed.
    """
    width = 2 * half
    m2 = max(1, round(labels * width))
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
    phi = features(rows, biases, inputs)[: m2 - fewer]
    singular = np.linalg.svd(phi, compute_uv=False)
    rank = int(np.sum(singular > RANK * singular[0]))
    head = rng.standard_normal(width)
    if m2 < width:
        null = np.linalg.svd(phi)[2][rank:]
        same = closeness(phi @ (head + null.sum(axis=0)), phi @ head, 1e-9, np.abs(phi).sum())
        return min(same, at_most(rank, m2, 0.5), at_most(width - m2, len(null), 0.5))
    found = least_norm_head(phi, phi @ head)
    return min(closeness(rank, width, 0.5), closeness(found, head, HEAD, np.linalg.norm(head)))


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
        "enough_labels": "M2 labels are really there",
    },
    instances={
        "half": st.integers(2, 10),
        "labels": st.sampled_from([0.1, 0.5, 0.9, 1.0, 1.0, 1.0, 1.5]),
        "d": st.integers(1, 4),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("distinct_kinks", "two neurons with one kink", {"distinct": st.just(False), "labels": st.just(1.0)}),
        Control("one_input_a_piece", "all inputs beyond the last kink", {"spread": st.just(False), "labels": st.just(1.0)}),
        Control("no_dead_piece", "all neurons open to one side", {"paired": st.just(False), "labels": st.just(1.0)}),
        Control("enough_labels", "one label fewer", {"fewer": st.just(1), "labels": st.just(1.0)}),
    ),
    examples=100,
    code=("sims.heads.line_inputs", "sims.heads.features", "sims.heads.least_norm_head"),
)
