"""The error that a student accumulates along a chain of segments: an exact recursion, and its first-order form.

    A[g, n](theta)   accumulated update of n SGD steps from theta;  segment t of the expert ends at theta*_t
    delta = A[g_S, n](theta*) - A[g_T, m](theta*)                      matching error
    I     = A[g_S, n](theta* + eps) - A[g_S, n](theta*)                initialisation error
    eps'  = eps + I + delta                                            exactly
    eps'  = prod_i (I - eta H_i) eps + delta + O(|eps|^2)              H_i = Hessian of the student's loss at its i-th step from theta*

The recursion is stated in the FTD paper (section 3.3, equation 8); the product over the path is derived here (the paper keeps one step of
it; for n > 1 Hessians at theta* alone do not suffice). Derivation: both add and subtract A at theta*; the derivative of theta -> theta +
A[g_S, n](theta) is that of n SGD steps.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, log_slope
from proofs_check.smooth import Smooth, run
from theory.distill.adjoint import unroll
from theory.distill.inner_optim import SGD, Momentum
from theory.distill.leaves import Leaves, add, axpy, flatten, norm, scale
from theory.distill.truncation import Window
from theory.two_layer import gradient, second_order

EXACT, SLOPE = 1e-12, 0.1
SIZES = 2.0 ** -np.arange(6, 12)
"""Lengths of eps at which the remainder is measured: small enough for its second order, far above rounding."""


class Kinked(Smooth):
    """The same network with relu in place of tanh, from `theory.two_layer`."""

    def gradient(self, theta: Leaves, s: Leaves, xi: Any) -> Leaves:
        return gradient(theta, (s[0][list(xi)], s[1][list(xi)]))

    def second_order(self, theta: Leaves, s: Leaves, xi: Any, c: Leaves) -> tuple[Leaves, Leaves]:
        return second_order(theta, (s[0][list(xi)], s[1][list(xi)]), c)


def margin(
    rng: np.random.Generator,
    sizes: dict[str, int],
    steps: list[int],
    lr: float,
    sample: int,
    kinked: bool = False,
    momentum: float = 0.0,
    replayed: bool = True,
) -> float:
    """kinked: relu, with theta* on a gate boundary; momentum: of the student's steps; replayed: the perturbed student sees the batches of
    the unperturbed one.
    """
    problem = (Kinked if kinked else Smooth)(sizes["d"], sizes["L"], sizes["M"])
    optimiser, (n, m) = Momentum(lr, momentum) if momentum else SGD(lr), steps
    s, real = ((rng.standard_normal((problem.points, problem.d)), rng.standard_normal(problem.points)) for _ in range(2))
    theta, eps = problem.init(rng), problem.init(rng)
    if kinked:
        theta[2][0] = -(s[0][0] @ theta[1][0])  # the first gate is on its boundary at the first point
    eps = scale(1.0 / norm(eps), eps)
    batches, expert = ([problem.draw(rng) for _ in range(count)] for count in (n, m))
    if kinked:
        batches[0] = list(range(problem.points))
    again = batches if replayed else [problem.draw(rng) for _ in range(n)]

    def update(data: Leaves, start: Leaves, noises: list[Any]) -> Leaves:
        return axpy(-1.0, start, run(problem, optimiser, data, start, optimiser.init(start), noises)[0])

    segment = update(s, theta, batches)
    delta = axpy(-1.0, update(real, theta, expert), segment)
    theta_next = add(theta, update(real, theta, expert))

    tape = unroll(problem, optimiser, s, theta, batches, Window(0, n))
    carried = eps
    for entry in tape.entries:
        h_e = problem.second_order(entry.state.theta, s, entry.xi, carried)[0]
        carried = axpy(-lr, h_e, carried)

    remainders, exact = [], []
    for h in SIZES:
        start = axpy(h, eps, theta)
        initial = axpy(-1.0, segment, update(s, start, again))
        end = run(problem, optimiser, s, start, optimiser.init(start), again)[0]
        error = axpy(-1.0, theta_next, end)
        recursion = add(add(scale(h, eps), initial), delta)
        exact.append(closeness(flatten(error), flatten(recursion), EXACT, norm(theta) + norm(end)))
        remainders.append(norm(axpy(-1.0, add(scale(h, carried), delta), error)))
    if min(remainders) < 1e-11 * norm(theta):  # the loss is quadratic along eps: nothing is left over
        return min(exact)
    return min(*exact, closeness(log_slope(SIZES, np.asarray(remainders)), 2.0, SLOPE))


def symbolic() -> Iterator[Identity]:
    """One parameter, two steps on any loss with derivatives g, g', g'' at the two points of the path."""
    eta, e = sp.symbols("eta epsilon", real=True)
    a, b, c, p, q = sp.symbols("a b c p q", real=True)
    theta = sp.Symbol("theta", real=True)
    loss = a * theta**2 / 2 + b * theta**3 / 3 + c * theta**4 / 4 + p * theta
    g, h = sp.diff(loss, theta), sp.diff(loss, theta, 2)

    def step(x: Any) -> Any:
        return x - eta * g.subs(theta, x)

    end = step(step(theta + e))
    second = step(theta)
    first_order = (1 - eta * h.subs(theta, second)) * (1 - eta * h) * e
    change = sp.expand(end - step(step(theta)) - first_order)
    for order in (0, 1):
        yield Identity(f"order {order} in eps of eps' - prod (1 - eta H_i) eps - delta", sp.expand(change.coeff(e, order)), 0)
    target = theta + q
    eps_next, delta = end - target, step(step(theta)) - target
    initial = (end - (theta + e)) - (step(step(theta)) - theta)
    yield Identity("eps' = eps + I + delta", sp.expand(eps_next - (e + initial + delta)), 0)


LEMMA = Lemma(
    number=15,
    name="accumulated-error",
    latex=(
        r"\epsilon' = \epsilon + I(\theta^*, \epsilon) + \delta,\qquad "
        r"\epsilon' = \prod_i (I - \eta H_i)\,\epsilon + \delta + O(\|\epsilon\|^2)"
    ),
    plain="The error after a segment is the old one, what the other start adds, and the matching error; Hessians on the path carry it on.",
    source=Source("stated", "Du et al., arXiv:2211.11004, equation 8; the product over the path is derived here"),
    assumptions={
        "smooth_network": "the loss is twice differentiable along the path",
        "plain_sgd": "the student takes SGD steps",
        "replayed_batches": "both runs see the same batches",
    },
    instances={
        "sizes": st.fixed_dictionaries({"d": st.integers(1, 3), "L": st.integers(1, 4), "M": st.integers(1, 4)}),
        "steps": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "lr": st.integers(5, 40).map(lambda n: n / 100),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("smooth_network", "relu with a gate on its boundary", {"kinked": st.just(True)}),
        Control(
            "plain_sgd",
            "momentum 0.3 to 0.9",
            {"momentum": st.floats(0.3, 0.9), "steps": st.tuples(st.integers(2, 5), st.just(2))},
        ),
        Control("replayed_batches", "new batches", {"replayed": st.just(False), "sizes": st.just({"d": 2, "L": 3, "M": 4})}),
    ),
    examples=60,
    code=("theory.distill.inner_optim.SGD", "theory.distill.adjoint.unroll"),
)
