"""The truncated reverse sweep is the exact transpose of the window's derivative.

    J     d theta_stop / d (theta_start, S), the slots at the window's start and all noise held
    <lam, J v> = <J^T lam, v>          for every lam and v: J^T lam is what the sweep returns
    window = whole unroll              the sweep gives the full gradient of lam.theta_T in S

Derivation: chain rule, one step at a time. Checked against forward mode by complex steps on a smooth network, which shares no formula with
the sweep. Each optimiser's own step is checked against its textbook sum over past gradients, and each window policy against its bounds.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, frequency, refuses
from proofs_check.smooth import TINY, Smooth, run, slope_of, tangent
from theory.distill.adjoint import cut, sweep, unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.leaves import Leaves, axpy, dot, flatten, norm, zeros_like, zip_map
from theory.distill.problem import Diverged
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window

TOLERANCE = 1e-9
DRAWS = 400

OPTIMISERS: dict[str, Callable[[float, float], InnerOptimiser]] = {
    "sgd": lambda lr, memory: SGD(lr, weight_decay=memory / 10.0),
    "momentum": lambda lr, memory: Momentum(lr, momentum=memory, weight_decay=memory / 10.0),
    "adam": lambda lr, memory: Adam(lr / 5.0, b1=memory, b2=0.5 + memory / 2.0, eps=1e-3),
}


def margin(
    rng: np.random.Generator,
    optimiser: str,
    lr: float,
    memory: float,
    window: list[int],
    sizes: dict[str, int],
    sample: int,
    replayed: bool = True,
    curved: bool = True,
    whole: bool = True,
) -> float:
    """replayed: the sweep sees the noise of the forward run; curved: it sees the Hessian; whole: it runs through the whole unroll."""
    problem, how = Smooth(sizes["d"], sizes["L"], sizes["M"]), OPTIMISERS[optimiser](lr, memory)
    s = rng.standard_normal((problem.points, problem.d)), rng.standard_normal(problem.points)
    theta, (start, length) = problem.init(rng), window
    noises = [problem.draw(rng) for _ in range(start + length)]
    lam, v, v_s = (zip_map(lambda a: rng.standard_normal(a.shape), x) for x in (theta, theta, s))
    swept = problem if curved else _Flat(problem.d, problem.width, problem.points)

    def transposed(first: int) -> tuple[Any, Any]:
        tape = unroll(problem, how, s, theta, noises, Window(first, len(noises)), profile=True)
        if not replayed:
            tape = replace(tape, entries=tuple(replace(e, xi=problem.draw(rng)) for e in tape.entries))
        return tape, sweep(swept, how, s, tape, lam)

    tape, back = transposed(start)
    begin = tape.entries[0].state
    forward = tangent(problem, how, s, begin.theta, begin.slots, noises[start:], (v, v_s), start)
    size = norm(lam) * norm(forward) + norm(back.lam) * norm(v) + norm(back.grad_s) * norm(v_s)
    adjoint = closeness(dot(lam, forward), dot(back.lam, v) + dot(back.grad_s, v_s), TOLERANCE, size)
    by_lr = float(dot(lam, _along_log_lr(problem, how, s, begin, noises[start:], start)))
    adjoint = min(adjoint, closeness(back.grad_log_lr, by_lr, TOLERANCE, norm(lam) * max(1.0, norm(begin.theta)) + abs(by_lr)))

    full = transposed(0 if whole else start)[1].grad_s
    exact = dot(lam, tangent(problem, how, s, theta, how.init(theta), noises, (zeros_like(theta), v_s)))
    end = closeness(dot(full, v_s), exact, TOLERANCE, norm(lam) * norm(forward) + norm(full) * norm(v_s))

    plain = run(problem, how, s, theta, how.init(theta), noises)[0]
    path = closeness(flatten(tape.end.theta), flatten(plain), TOLERANCE, norm(plain))
    norms = closeness(tape.gradient_norms[0], norm(problem.gradient(theta, s, noises[0])), TOLERANCE, tape.gradient_norms[0])
    counts = len(tape.gradient_norms) == len(noises) and len(tape.entries) == length and tape.end.t == len(noises) and begin.t == start
    counts = counts and tape.cost.gradients == len(noises) and back.cost.products == length
    counts = counts and tape.cost.stored_floats == length * max(2, 1 + len(begin.slots)) * flatten(theta).size
    parts = (
        sketched(problem, how, s, tape, lam, rng),
        cutting(problem, how, s, theta, noises, tape),
        textbook(how, rng),
        policies(rng, start, length),
    )
    return min(adjoint, end, path, norms, *parts, 1.0 if counts and refusals() else -9.0)


def sketched(problem: Smooth, how: InnerOptimiser, s: Leaves, tape: Any, lam: Leaves, rng: np.random.Generator) -> float:
    """A low-rank Hessian of full rank gives the exact sweep; it is asked for as often as it says."""
    exact, p, steps = sweep(problem, how, s, tape, lam), flatten(lam).size, len(tape.entries)
    found = sweep(problem, how, s, tape, lam, LowRankHessian(rank=p, power=0, max_age=1), rng)
    aged = sweep(problem, how, s, tape, lam, LowRankHessian(rank=1, oversample=0, power=0, max_age=2, max_drift=math.inf), rng).cost
    counts = [found.cost.mixed, found.cost.hessian_products, found.cost.products, aged.hessian_products, (aged + aged).mixed]
    expected = [steps, 2 * p * steps, 0, 2 * math.ceil(steps / 2), 2 * steps]
    return min(
        closeness(flatten(found.grad_s), flatten(exact.grad_s), 1e-6, norm(exact.grad_s)),
        closeness(flatten(found.lam), flatten(exact.lam), 1e-6, norm(exact.lam)),
        closeness(counts, expected, 0.5),
        1.0 if refuses(sweep, problem, how, s, tape, lam, LowRankHessian(1)) else -9.0,
    )


def cutting(problem: Smooth, how: InnerOptimiser, s: Leaves, theta: Leaves, noises: list[Any], tape: Any) -> float:
    """A shorter window cut from a whole run is the window recorded by itself; a run may go on beyond it."""
    whole = unroll(problem, how, s, theta, noises, Window(0, len(noises)), profile=True)
    window = Window(tape.entries[0].state.t, len(noises))
    inner = Window(0, max(1, len(noises) - 1))
    beyond = unroll(problem, how, s, theta, noises, inner, profile=True, steps=len(noises))
    pairs = [(cut(whole, window), tape), (cut(whole, inner), beyond)]
    same = [closeness(flatten(a.end.theta), flatten(b.end.theta), TOLERANCE, norm(b.end.theta)) for a, b in pairs]
    sizes = all(len(a.entries) == len(b.entries) and a.entries[0].state.t == b.entries[0].state.t and a.end.t == b.end.t for a, b in pairs)
    costs = (whole.cost + beyond.cost).gradients == 2 * len(noises) and (whole.cost + beyond.cost).stored_floats == whole.cost.stored_floats
    return min(*same, 1.0 if sizes and costs and len(beyond.gradient_norms) == len(noises) else -9.0)


class _Flat(Smooth):
    """The same problem with its Hessian taken for zero."""

    def second_order(self, theta: Leaves, s: Leaves, xi: Any, c: Leaves) -> tuple[Leaves, Leaves]:
        h_c, m_c = super().second_order(theta, s, xi, c)
        return zeros_like(h_c), m_c


def _along_log_lr(problem: Smooth, how: InnerOptimiser, s: Leaves, begin: Any, noises: list[Any], start: int) -> Leaves:
    """d theta_stop / d log lr: every step is linear in lr, so a complex step size is theta + (theta' - theta)(1 + i h)."""
    theta, slots = begin.theta, begin.slots
    for t, xi in enumerate(noises, start):
        ahead, slots = how.step(theta, slots, t, problem.gradient(theta, s, xi))
        theta = axpy(1.0 + 1j * TINY, axpy(-1.0, theta, ahead), theta)
    return slope_of(theta)


def textbook(how: InnerOptimiser, rng: np.random.Generator) -> float:
    """Three steps on given gradients against the sums they stand for."""
    theta = rng.standard_normal(3)
    gs = rng.standard_normal((3, 3))
    found, slots, expected = (theta,), how.init((theta,)), theta
    gaps, past = [], []
    for t in range(3):
        found, slots = how.step(found, slots, t, (gs[t],))
        if isinstance(how, Adam):
            age = np.arange(t, -1, -1)[:, None]
            m = np.sum(how.b1**age * gs[: t + 1], axis=0) / np.sum(how.b1**age)  # bias-corrected means are weighted averages
            v = np.sum(how.b2**age * gs[: t + 1] ** 2, axis=0) / np.sum(how.b2**age)
            expected = expected - how.lr * m / (np.sqrt(v) + how.eps)
        else:
            wd, mu = getattr(how, "weight_decay", 0.0), getattr(how, "momentum", 0.0)
            past.append(gs[t] + wd * expected)
            expected = expected - how.lr * sum(mu ** (t - k) * g for k, g in enumerate(past))
        gaps.append(closeness(found[0], expected, TOLERANCE))
    with np.errstate(all="raise"):  # the derivative of the square root at zero is guarded, not computed and thrown away
        still = how.adjoint((theta,), how.init((theta,)), 0, (np.zeros(3),), (gs[0],), how.init((gs[1],)))
    return min(*gaps, closeness(np.isfinite(flatten((*still.lam, *still.c, np.atleast_1d(still.d_lr)))), 1.0, 0.5))


def policies(rng: np.random.Generator, start: int, length: int) -> float:
    """Windows stay in the horizon and have their length; random starts are uniform and reach both ends."""
    horizon = start + length
    expected = [
        (FullWindow(horizon), 0, horizon),
        (FixedWindow(horizon, length), start, horizon),
        (FixedWindow(horizon, length, 0), 0, length),
    ]
    fixed = all((w.draw(rng).start, w.draw(rng).stop, w.horizon) == (a, b, horizon) for w, a, b in expected)
    policy = RandomWindow(horizon + 1, length, first=min(1, start))
    starts = np.array([policy.draw(rng).start for _ in range(DRAWS)])
    places = range(policy.first, horizon + 1 - length + 1)
    uniform = min(frequency(int(np.sum(starts == t)), DRAWS, 1.0 / len(places)) for t in places)
    inside = bool(np.all((starts >= places[0]) & (starts <= places[-1]))) and policy.draw(rng).length == length
    wide = RandomWindow(horizon + 2, 2, spread=1)
    inside = inside and {wide.draw(rng).length for _ in range(DRAWS)} == {1, 2, 3}
    return min(uniform, 1.0 if fixed and inside else -9.0)


def refusals() -> bool:
    """Values that no window and no optimiser may have, and those that they just may."""
    fine = [
        Window(0, 1),
        FullWindow(1),
        FixedWindow(4, 4, 0),
        FixedWindow(4, 1, 3),
        RandomWindow(4, 1, 3),
        Momentum(0.1, 0.0),
        Adam(0.1, 0.0, 0.0),
    ]
    bad: list[Any] = [(Window, a, b) for a, b in ((-1, 2), (2, 2), (3, 2))]
    bad += [(FullWindow, n) for n in (0, -1)]
    bad += [(kind, 4, *sizes) for kind in (FixedWindow, RandomWindow) for sizes in ((0,), (5,), (2, 3), (2, -1))]
    bad += [(SGD, lr) for lr in (0.0, -1.0, math.nan)]
    bad += [(Momentum, *values) for values in ((0.0,), (0.1, 1.0), (0.1, -0.1))]
    bad += [(Adam, *values) for values in ((0.0,), (0.1, 1.0), (0.1, -0.1), (0.1, 0.9, 1.0), (0.1, 0.9, -0.1), (0.1, 0.9, 0.9, 0.0))]
    one, theta = Smooth(1, 1, 1), (np.ones(1), np.ones((1, 1)), np.ones(1))
    short = refuses(unroll, one, SGD(0.1), (np.ones((1, 1)), np.ones(1)), theta, [[0]], Window(0, 2))
    burst = refuses(unroll, one, SGD(1e300), (np.ones((1, 1)), np.full(1, 1e200)), theta, [[0]], Window(0, 1), kind=Diverged)
    usual = (SGD(0.1), Momentum(0.1), Adam(0.1)) == (SGD(0.1, 0.0), Momentum(0.1, 0.9, 0.0), Adam(0.1, 0.9, 0.999, 1e-8))
    usual = usual and RandomWindow(3, 1) == RandomWindow(3, 1, 0)
    return bool(fine) and usual and short and burst and all(refuses(*case) for case in bad)


def symbolic() -> Iterator[Identity]:
    """SGD with weight decay, two steps on any inner gradient that is a quadratic of (theta, s): the recursion is the chain rule."""
    theta, s, lr, wd, lam, x = sp.symbols("theta s eta omega lambda x", real=True)
    c = sp.symbols("c0:6")
    g = c[0] + c[1] * x + c[2] * s + c[3] * x**2 + c[4] * x * s + c[5] * s**2

    def step(place: Any) -> Any:
        return place - lr * (g.subs(x, place) + wd * place)

    end = step(step(theta))
    grad, back = sp.Integer(0), lam
    for place in (step(theta), theta):
        cotangent = -lr * back
        grad += cotangent * sp.diff(g, s).subs(x, place)
        back = (1 - lr * wd) * back + cotangent * sp.diff(g, x).subs(x, place)
    yield Identity("lambda d theta_2/d theta_0", sp.expand(lam * sp.diff(end, theta) - back), 0)
    yield Identity("lambda d theta_2/d s", sp.expand(lam * sp.diff(end, s) - grad), 0)


LEMMA = Lemma(
    number=14,
    name="sweep-is-adjoint",
    latex=(
        r"\langle\lambda, J v\rangle = \langle J^\top\lambda, v\rangle,\qquad J = \frac{\partial\theta_{\mathrm{stop}}}"
        r"{\partial(\theta_{\mathrm{start}}, S)}"
    ),
    plain="The truncated reverse sweep is the transpose of the window's derivative; over the whole unroll it is the full gradient.",
    source=Source("derived", "chain rule"),
    assumptions={
        "replayed_noise": "the sweep sees the batches of the forward run",
        "exact_products": "second-order products are exact",
        "whole_unroll": "for the full gradient the window is the whole unroll",
    },
    instances={
        "optimiser": st.sampled_from(sorted(OPTIMISERS)),
        "lr": st.integers(1, 30).map(lambda n: n / 100),
        "memory": st.integers(0, 9).map(lambda n: n / 10),
        "window": st.tuples(st.integers(0, 3), st.integers(1, 4)),
        "sizes": st.fixed_dictionaries({"d": st.integers(1, 3), "L": st.integers(1, 4), "M": st.integers(1, 4)}),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("replayed_noise", "new batches", {"replayed": st.just(False), "sizes": st.just({"d": 2, "L": 3, "M": 4})}),
        Control("exact_products", "the Hessian left out", {"curved": st.just(False), "window": st.just([0, 3])}),
        Control("whole_unroll", "the last steps of the unroll", {"whole": st.just(False), "window": st.just([3, 1])}),
    ),
    examples=60,
    also=("tests/test_same_algorithm_twice.py::test_both_sweeps_equal_one_graph",),
    code=(
        "theory.distill.adjoint",
        "theory.distill.inner_optim",
        "theory.distill.truncation",
    ),
)
