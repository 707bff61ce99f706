"""Gradient matching (DC) and performance matching through one small step (DD) move the distilled set in one direction, to O(eta).

    theta' = theta - eta g_S(theta)           one inner step on S, in the rows W
    DC = d/dS (-<g_S(theta), g_T(theta)>)     DD = d/dS L_T(theta'),   L_T the real loss, g_T its gradient
    DD / eta = DC + eta M^T H_T g_S,          M = d g_S/dS, H_T the Hessian of L_T

Derivation: DD = -eta M^T grad L_T(theta'), and L_T is a quadratic in W as long as no gate of a real sample opens or closes. So
|DD/eta - DC| is proportional to eta (log-log slope 1), and 1 - cos(DD, DC) to eta^2 (slope 2) once the remainder is small beside DC.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, log_slope
from sims.student import RealSample, Student
from sims.two_phase import RowsOnly, rows_part
from theory import two_layer
from theory.distill.adjoint import sweep, unroll
from theory.distill.inner_optim import SGD
from theory.distill.leaves import dot, norm
from theory.distill.matching import DISTANCES, PerformanceMatching, gradient_matching
from theory.distill.truncation import Window

EXACT, SLOPE, BEND = 1e-9, 0.02, 0.05
STEPS, SMALL = 6, 0.01
"""Halvings of the step; and the largest remainder, over DC, at which the slope of 1 - cos is measured."""


def margin(
    rng: np.random.Generator,
    sizes: dict[str, int],
    sample: int,
    stretch: float = 1.0,
    distance: str = "inner_product",
    moved: bool = False,
    inner_steps: int = 1,
    init: str = "symmetric",
) -> float:
    """The exact remainder at the largest step, its slope over STEPS halvings, and the slope of 1 - cos.

    stretch: the largest step over half the step at which a first gate turns; distance: of DC; moved: the teacher's gradient is taken at
    another start; inner_steps: of DD; init: of the network.
    """
    d, width, m, n = sizes["d"], 2 * sizes["half"], sizes["M"], sizes["N"]
    problem = RowsOnly(Student(d, width, init_kind=init))
    theta = problem.init(rng)
    real = RealSample(rng.standard_normal((n, d)), rng.standard_normal(n))
    s, real_set = (rng.standard_normal((m, d)), rng.standard_normal(m)), (real.x, real.y)
    g_s = problem.gradient(theta, s, None)
    g_t = problem.gradient(problem.init(rng) if moved else theta, real_set, None)
    match, (dc, _) = gradient_matching(problem, DISTANCES[distance], theta, s, None, g_t)
    turn = np.abs(real.x @ theta[1].T) / np.maximum(np.abs(real.x @ g_s[1].T), 1e-300)
    etas = 0.5 * stretch * min(1.0, float(np.min(turn))) * 0.5 ** np.arange(STEPS)

    def dd(eta: float) -> np.ndarray:
        optimiser = SGD(eta)
        tape = unroll(problem, optimiser, s, theta, [None] * inner_steps, Window(0, inner_steps))
        lam = rows_part(PerformanceMatching(real).value_and_grad(tape.end.theta, s, None)[1])
        return sweep(problem, optimiser, s, tape, lam).grad_s[0] / (inner_steps * eta)

    found = [dd(float(eta)) for eta in etas]
    remainder = problem.mixed(theta, s, None, problem.second_order(theta, real_set, None, g_s)[0])[0]
    real_loss = PerformanceMatching(real).value_and_grad(theta, s, None)[0]
    values = [float(dot(g_s, g_t)), float(np.mean((two_layer.value(theta, real.x) - real.y) ** 2)) / 2.0]
    valued = closeness([-match, real_loss], values, EXACT, norm(g_s) * norm(g_t) + values[1])
    size = norm((dc,)) + norm((found[0],)) + etas[0] * norm((remainder,))
    if size == 0.0:
        return valued
    exact = min(valued, closeness(found[0], dc + etas[0] * remainder, EXACT, size))
    gaps = np.array([norm((one - dc,)) for one in found])
    if gaps[-1] <= 1e-8 * size or not norm((dc,)):  # nothing to fit a slope to
        return exact
    slope = closeness(log_slope(etas, gaps), 1.0, SLOPE)
    etas = etas * min(1.0, SMALL * norm((dc,)) / max(etas[0] * norm((remainder,)), 1e-300))
    off = np.array([_versine(dd(float(eta)), dc) for eta in etas])
    if norm((_across(remainder, dc),)) <= 1e-6 * norm((remainder,)):  # the remainder lies along DC: no angle at all
        return min(exact, slope, closeness(off, 0.0, 1e-12))
    return min(exact, slope, closeness(log_slope(etas, off), 2.0, BEND))


def _across(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The part of u orthogonal to v."""
    return u - np.sum(u * v) / np.sum(v * v) * v


def _versine(u: np.ndarray, v: np.ndarray) -> float:
    """1 - cos(u, v), from the sine where the angle is small, so that rounding stays relative; 1 where u vanishes."""
    if norm((u,)) == 0.0:
        return 1.0
    cos = float(np.sum(u * v)) / (norm((u,)) * norm((v,)))
    sine = norm((_across(u, v),)) / norm((u,))
    return sine**2 / (1.0 + cos) if cos > 0.0 else 1.0 - cos


def symbolic() -> Iterator[Identity]:
    """For any inner gradient g(theta, s) and any real loss that is quadratic in theta, in two parameters."""
    eta, s = sp.symbols("eta s", real=True)
    g = [sp.Function(f"g{i}")(s) for i in range(2)]
    b = sp.symbols("b0:2")
    h = sp.Matrix(2, 2, sp.symbols("h00 h01 h01 h11"))
    step = sp.Matrix([-eta * one for one in g])
    loss = (sp.Matrix([b]) * step)[0] + (step.T * h * step)[0] / 2
    dc = -sum(sp.diff(one, s) * slope for one, slope in zip(g, b, strict=True))
    curved = h * sp.Matrix(g)
    claim = dc + eta * sum(sp.diff(one, s) * c for one, c in zip(g, curved, strict=True))
    yield Identity("DD/eta = DC + eta M^T H_T g_S", sp.expand(sp.diff(loss, s) / eta), sp.expand(claim))


LEMMA = Lemma(
    number=8,
    name="dc-dd-agree",
    latex=(
        r"\tfrac1\eta\nabla_S L_T(\theta - \eta g_S) = -\nabla_S\langle g_S, g_T\rangle + \eta\,(\partial_S g_S)^\top H_T\, g_S,\qquad "
        r"1 - \cos = O(\eta^2)"
    ),
    plain="Through one small step, performance matching is gradient matching by inner product, up to a term linear in eta.",
    source=Source("derived", "the real loss is quadratic in the rows between gates"),
    assumptions={
        "small_step": "no gate of a real sample turns during the inner step",
        "inner_product": "DC matches by inner product, without the repulsion among points",
        "same_start": "both gradients are taken at one theta",
        "one_step": "DD differentiates through one inner step",
        "symmetric_init": "the network starts at zero, in pairs of neurons",
    },
    instances={
        "sizes": st.fixed_dictionaries(
            {"d": st.integers(1, 4), "half": st.integers(1, 4), "M": st.integers(1, 5), "N": st.integers(1, 12)}
        ),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("small_step", "a step hundreds of times as long", {"stretch": st.floats(300.0, 1000.0)}),
        Control("inner_product", "the squared distance", {"distance": st.just("squared")}),
        Control("same_start", "the teacher's gradient at another start", {"moved": st.just(True)}),
        Control("one_step", "two or three steps", {"inner_steps": st.integers(2, 3)}),
        Control("symmetric_init", "the Gaussian start", {"init": st.just("gaussian")}),
    ),
    examples=60,
    also=("tests/sims/test_two_phase.py::test_performance_matching_is_one_autograd_graph",),
    code=(
        "theory.distill.adjoint.unroll",
        "theory.distill.adjoint.sweep",
        "theory.distill.inner_optim.SGD",
        "theory.distill.matching.inner_product",
        "theory.distill.matching.gradient_matching",
        "theory.distill.matching.PerformanceMatching",
        "theory.two_layer.loss_and_gradient",
        "theory.two_layer.second_order",
        "theory.two_layer.mixed",
    ),
)
