"""Floats of each representation, counted; and when a distilled set is smaller than the weights.

    distilled set   M1 d + M2 (+ M1 where labels differ)       weights   L (d + 2)       raw subset   n (d + 1)       subspace   r d
    at M1 = C r^2 and M2 = L:    distilled < weights   iff   C r^2 d < L (d + 1)   iff   C r^2 < L (1 + 1/d)

So the set beats the weights by a factor k in its first term iff C r^2 < L (1 + 1/d)/k: r^2 << L. Theta~(r^2 d + L) is stated in the paper's
abstract (arXiv:2603.14830); the exact counts and the comparison are derived here. The check counts the entries of arrays.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, refuses
from theory import memory
from theory.distill.leaves import Leaves, size

REFUSED = {"distilled": (-1, 1, 1), "raw_subset": (1, -1), "weights": (-2, 1), "subspace": (1, -3), "raw_points_for": (-1, 1)}


def count(leaves: Leaves) -> int:
    """Entries of float64 arrays, twice: through their shapes and through their bytes."""
    entries = size(leaves)
    return entries if sum(a.nbytes for a in leaves) == 8 * entries else -1


def margin(
    rng: np.random.Generator, d: int, r: int, width: int, c: int, sample: int, one_label: bool = True, labels: int = 0, raw: bool = False
) -> float:
    """c: C; one_label: all labels of the points are one constant; labels: M2 - L; raw: the M2 labels come with their inputs."""
    m1, m2 = c * r * r, width + labels
    points, heads = np.zeros((m1, d)), np.zeros(m2)
    stored = (points, heads) if one_label else (points, np.zeros(m1), heads)
    if raw:
        stored = (*stored, np.zeros((m2, d)))
    network = np.zeros((width, d)), np.zeros(width), np.zeros(width)
    found = [memory.distilled(m1, d, m2), memory.weights(width, d), memory.raw_subset(m1, d), memory.subspace(r, d)]
    exact = [count(x) for x in (stored, network, (points, np.zeros(m1)), (np.zeros((r, d)),))]
    counted = closeness([one.floats for one in found], exact, 0.5)
    labelled = closeness(memory.distilled(m1, d, m2, constant_label=False).floats, count((points, np.zeros(m1), heads)), 0.5)
    smaller = count(stored) < count(network)
    law = c * r * r * d < width * (d + 1)
    budget = int(rng.integers(0, 5 * (d + 2)))
    fitting = memory.raw_points_for(budget, d)
    fits = fitting * (d + 1) <= budget < (fitting + 1) * (d + 1)
    narrow = (
        memory.distilled(m1, d, m2, bytes_per_float=4),
        memory.weights(width, d, bytes_per_float=2),
        memory.raw_subset(m1, d, bytes_per_float=4),
    )
    alone = memory.Memory(3) == memory.Memory(3, 8) and memory.Memory(3).bytes == 24
    of_bytes = [(one.bytes, one.bytes_per_float) for one in (*found, *narrow, memory.subspace(r, d, bytes_per_float=1))]
    widths = [8, 8, 8, 8, 4, 2, 4, 1]
    floats = [one.floats for one in (*found, *found[:3], found[3])]
    byte = closeness([a for a, _ in of_bytes], [n * b for n, b in zip(floats, widths, strict=True)], 0.5)
    empty = memory.distilled(0, 0, 0), memory.raw_subset(0, 0), memory.weights(0, 0), memory.subspace(0, 0)
    zero = all(one.floats == 0 for one in empty) and memory.raw_points_for(0, 0) == 0
    refused = all(refuses(getattr(memory, name), *bad) for name, bad in REFUSED.items())
    return min(counted, labelled, byte, 1.0 if smaller == law and fits and zero and alone and refused else -9.0)


def symbolic() -> Iterator[Identity]:
    d, r, width, c = sp.symbols("d r L C", positive=True, integer=True)
    distilled, network = c * r**2 * d + width, width * (d + 2)
    yield Identity("weights - distilled = L (d + 1) - C r^2 d", network - distilled, width * (d + 1) - c * r**2 * d)
    yield Identity("over d: L (1 + 1/d) - C r^2", (network - distilled) / d, width * (1 + 1 / d) - c * r**2)
    yield Identity("the ratio tends to C r^2/L in d", sp.limit(distilled / network, d, sp.oo), c * r**2 / width)
    sizes = {d: 64, r: 3, width: 400, c: 4}
    yield Identity("distilled in the code", memory.distilled(36, 64, 400).floats, distilled.subs(sizes))
    yield Identity("weights in the code", memory.weights(400, 64).floats, network.subs(sizes))


LEMMA = Lemma(
    number=19,
    name="memory-count",
    latex=r"C r^2 d + L < L(d+2) \iff C r^2 < L\,(1 + 1/d)",
    plain="A set of C r^2 points and L labels is smaller than the weights exactly when C r^2 < L (1 + 1/d): r^2 well below L.",
    source=Source("derived", "counting; the law r^2 d + L is stated in arXiv:2603.14830, abstract"),
    assumptions={
        "constant_label": "the points share one label, which costs nothing",
        "l_labels": "M2 = L",
        "seeded_inputs": "inputs of the M2 labels are regenerated from a seed",
    },
    instances={
        "d": st.integers(1, 300),
        "r": st.integers(1, 12),
        "width": st.integers(1, 1500),
        "c": st.integers(1, 8),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("constant_label", "a label a point", {"one_label": st.just(False)}),
        Control(
            "l_labels",
            "many more labels",
            {"labels": st.integers(2000, 4000), "d": st.integers(1, 8), "width": st.integers(200, 1500), "r": st.just(1)},
        ),
        Control("seeded_inputs", "the inputs are stored", {"raw": st.just(True)}),
    ),
    examples=200,
    code=("theory.memory",),
)
