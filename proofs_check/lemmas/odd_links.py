"""Odd links are invisible to one step: every row of the first gradient vanishes, and with it every distilled point.

    f*(-x) = -f*(x), E[f* x] = 0   =>   g(w) = E[f*(x) x 1{w.x >= 0}] = 0 for every w, and D(u) = mean_i g(w_i) 1{w_i.u >= 0} = 0

Derivation: 1{w.x >= 0} = (1 + sign(w.x))/2 off the boundary; f* x is even, so f* x sign(w.x) is odd and has mean zero under any law that
is symmetric about 0. What is left is half the linear part. The same holds on a sample closed under x -> -x with least-squares residuals.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.gaussian import half_space_mean, link_of, links
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness
from theory.two_layer import gradient, symmetric_init

TOLERANCE = 1e-11


def margin(
    rng: np.random.Generator,
    terms: list[Any],
    sample: int,
    shift: float = 0.0,
    bias: float = 0.0,
    residual: bool = True,
    mirrored: bool = True,
) -> float:
    """The population row, and the rows of the network's first gradient on a mirrored sample.

    shift: mean of every input; bias: of every neuron; residual: the linear part is removed; mirrored: the sample holds -x with x.
    """
    link = link_of(terms)
    r = link.r
    _, rows, biases = symmetric_init(r + 1, 8, rng)
    size = sum(abs(c) for c, _ in link.terms)

    half = rng.standard_normal((64, r + 1))
    x = (np.concatenate([half, -half]) if mirrored else np.concatenate([half, rng.standard_normal((64, r + 1))])) + shift
    y = link(x[:, :r])
    if residual:
        design = np.column_stack([np.ones(len(x)), x])
        y = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    head = np.concatenate([np.ones(4), -np.ones(4)])
    trained = -head[:, None] * gradient((head, rows, biases + bias), (x, y))[1]
    scale = float(np.mean(np.abs(y)[:, None] * np.abs(x)))
    on_sample = closeness(trained, 0.0, TOLERANCE, scale) if scale else 1.0
    rest = link.residual if residual else link
    population = [half_space_mean(lambda z: rest(z[:, :r])[:, None] * z, w, link.degree + 1) for w in rows[:4]]
    return min(on_sample, closeness(population, 0.0, TOLERANCE, 10.0 * size), closeness(link.hessian, 0.0, TOLERANCE))


def symbolic() -> Iterator[Identity]:
    x = sp.symbols("x", real=True, nonzero=True)
    f = sp.Function("f")
    odd = (f(x) * x * sp.sign(x)).subs(f(x), sp.Function("e")(x) / x)  # f x = e(x), even
    flipped = odd.subs(x, -x).subs(sp.Function("e")(-x), sp.Function("e")(x))
    yield Identity("f x sign(w.x) changes sign with x where f x is even", odd + flipped, 0)
    yield Identity("1{t >= 0} = (1 + sign t)/2 off t = 0", sp.Heaviside(x).rewrite(sp.sign), (1 + sp.sign(x)) / 2)
    phi = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    for k in (3, 5, 7):
        exact = sp.integrate(sp.expand(sp.hermite_prob(k, x) * x) * phi, (x, 0, sp.oo))
        yield Identity(f"E[He_{k}(x) x 1{{x >= 0}}] = 0", exact, 0)


LEMMA = Lemma(
    number=3,
    name="odd-links",
    latex=(
        r"f^*(-x) = -f^*(x),\ \mathbb E[f^*(x)x] = 0 \ \Longrightarrow\ \mathbb E[f^*(x)\,x\,\mathbf 1_{w^\top x\ge0}] = 0 "
        r"\text{ for every } w"
    ),
    plain="A target that is odd and has no linear part moves no row in one step and leaves no trace in the distilled points.",
    source=Source("derived", "symmetry under x -> -x"),
    assumptions={
        "odd_link": "f* is odd",
        "no_linear_part": "the linear part is removed from the labels",
        "symmetric_inputs": "x and -x have one law",
        "zero_bias": "gates open at w.x >= 0",
        "mirrored_sample": "on samples: -x comes with x (in the population nothing more is needed)",
    },
    instances={
        "terms": links([1, 3, 5], max_r=2).filter(lambda terms: any(sum(k) > 1 for _, k in terms)),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("odd_link", "even terms", {"terms": links([2, 4])}),
        Control("no_linear_part", "labels as they are", {"residual": st.just(False)}),
        Control("symmetric_inputs", "mean 0.5 to 1", {"shift": st.floats(0.5, 1.0)}),
        Control("zero_bias", "bias 0.2 to 1", {"bias": st.floats(0.2, 1.0)}),
        Control("mirrored_sample", "independent samples", {"mirrored": st.just(False)}),
    ),
    examples=60,
    code=("theory.two_layer.gradient", "theory.two_layer.symmetric_init", "theory.multi_index.HermiteLink"),
)
