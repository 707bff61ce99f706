"""relu is 1-homogeneous: relu(c z) = c relu(z) for c >= 0; so a network may trade the scale of a row for that of its head."""

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness
from theory.two_layer import value


def margin(rng: np.random.Generator, c: float, width: int, bias: bool = False) -> float:
    """c: the factor; bias: the biases keep their size while rows and heads change theirs."""
    a, w, b, x = rng.standard_normal(width), rng.standard_normal((width, 3)), rng.standard_normal(width), rng.standard_normal((20, 3))
    scaled = value((a / c, c * w, b if bias else c * b), x)
    return closeness(scaled, value((a, w, b), x), 1e-10, np.abs(a).sum() * 10.0)


def symbolic():
    c, z = sp.symbols("c z", positive=True)
    yield Identity("relu(c z) = c relu(z) on the open side", sp.Max(0, c * z), c * sp.Max(0, z))


LEMMA = Lemma(
    name="relu-homogeneous",
    latex=r"\frac{a}{c}\,\mathrm{relu}(c\,w^\top x + c\,b) = a\,\mathrm{relu}(w^\top x + b),\quad c > 0",
    plain="Rows and biases times c with heads over c leave the network as it is.",
    source=Source("derived", "relu is 1-homogeneous"),
    assumptions={"positive_factor": "c > 0", "biases_scale": "the biases are scaled with the rows"},
    instances={"c": st.floats(0.1, 10.0), "width": st.integers(1, 8)},
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("positive_factor", "c < 0", {"c": st.floats(-10.0, -0.1)}),
        Control("biases_scale", "they keep their size", {"bias": st.just(True), "c": st.floats(3.0, 10.0)}),
    ),
    code=("theory.two_layer.value",),
)
