"""TESLA's gradient of trajectory matching is the sweep with its cotangent frozen, and the true gradient for one inner step alone.

    L        ||theta_N - theta*||^2 / D,   D = ||theta_0 - theta*||^2,   theta_{i+1} = theta_i - beta g_i(theta_i, S)
    G        sum_i g_i, so that theta_N = theta_0 - beta G
    TESLA    dL/dS := (2/D) sum_i d/dS <beta (theta* - theta_0) + beta^2 G, g_i>, bracket and theta_i held
    exact    lam_N = 2 (theta_N - theta*)/D,   lam_i = (I - beta H_i) lam_{i+1},   dL/dS = -beta sum_i M_i^T lam_{i+1}

Derivation: the bracket is beta (theta* - theta_N) = -beta (D/2) lam_N, so TESLA is the exact sum with every lam_{i+1} set to lam_N: a sweep
whose Hessian has rank 0. At N = 1 there is no other lam. For two steps the difference is beta^2 M^T H lam_N.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import strategies as st

from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, refuses
from proofs_check.smooth import TINY, Smooth, run, slope_of
from theory.distill.adjoint import sweep, unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.inner_optim import SGD
from theory.distill.leaves import Leaves, add, axpy, dot, flatten, norm, scale, zeros_like, zip_map
from theory.distill.problem import Diverged
from theory.distill.trajectory import Segment, StartRange, TrajectoryMatching
from theory.distill.truncation import Window

TOLERANCE = 1e-9


class _OneExpert:
    """Two snapshots."""

    count, epochs = 1, 1

    def __init__(self, start: Leaves, target: Leaves) -> None:
        self.snapshots = start, target

    def snapshot(self, expert: int, epoch: int) -> Leaves:
        """The start, then the target."""
        return self.snapshots[epoch]


def margin(
    rng: np.random.Generator,
    lr: float,
    steps: int,
    sizes: dict[str, int],
    sample: int,
    decay: float = 0.0,
    more: int = 0,
) -> float:
    """At N = `steps` the formula is the sweep of rank 0; at N = 1 + `more` it is the derivative of L. decay: of the weights, a step."""
    problem, optimiser = Smooth(sizes["d"], sizes["L"], sizes["M"]), SGD(lr, weight_decay=decay)
    s = rng.standard_normal((problem.points, problem.d)), rng.standard_normal(problem.points)
    objective = TrajectoryMatching(_OneExpert(problem.init(rng), problem.init(rng)), StartRange(1), 1)
    xi, noises = objective.draw(rng), [problem.draw(rng) for _ in range(max(steps, 1 + more))]

    formula, frozen, _ = _gradients(problem, optimiser, objective, s, xi, noises[:steps], rng)
    same = closeness(flatten(frozen), flatten(formula), TOLERANCE, norm(formula))
    first = noises[: 1 + more]
    formula, _, exact = _gradients(problem, optimiser, objective, s, xi, first, rng)
    along = zip_map(lambda a: rng.standard_normal(a.shape), s)
    true = _slope(problem, optimiser, s, along, xi, first)
    size = norm(exact) * norm(along)
    true_is_exact = closeness(dot(exact, along), true, TOLERANCE, size)
    return min(same, true_is_exact, segments(rng, sizes["d"]), closeness(flatten(formula), flatten(exact), TOLERANCE, norm(exact)))


class _Numbered:
    """Experts whose snapshots say which they are."""

    count, epochs = 3, 7

    def snapshot(self, expert: int, epoch: int) -> Leaves:
        """100 expert + epoch."""
        return (np.array([100.0 * expert + epoch]),)


def segments(rng: np.random.Generator, length: int) -> float:
    """Segments of `length` epochs from every start of the range and every expert; the value of L; how the range grows; what is refused."""
    grown = StartRange(5, 1, 2, growth=6)
    highs = [grown.at(k) for k in (0, 1, 2, 4, 5, 6, 9)] == [2, 2, 3, 4, 4, 5, 5]
    highs = highs and StartRange(5, growth=6).at(0) == 5 and StartRange(5, 1, 2).at(0) == 5 and StartRange(3) == StartRange(3, 0, None, 0)
    objective = TrajectoryMatching(_Numbered(), grown, length)
    highs = highs and objective.step == 0 and objective.at(4).step == 4
    met = [objective.at(9).draw(rng) for _ in range(200)]
    right = all(
        (float(xi.start[0][0]), float(xi.target[0][0])) == (100.0 * xi.expert + xi.epoch, 100.0 * xi.expert + xi.epoch + length)
        for xi in met
    )
    right = right and {xi.expert for xi in met} == {0, 1, 2} and {xi.epoch for xi in met} == {1, 2, 3, 4}
    right = right and {objective.draw(rng).epoch for _ in range(20)} == {1}
    value, lam, direct = objective.value_and_grad((np.array([3.0]),), (), Segment((np.array([2.0]),), (np.array([6.0]),), 0, 0))
    right = right and (value, float(lam[0][0]), direct) == (9.0 / 16.0, -6.0 / 16.0, None)
    short = objective.value_and_grad((np.array([3.0]),), (), Segment((np.array([2.0]),), (np.array([2.5]),), 0, 0))
    right = right and (short[0], float(short[1][0][0])) == (1.0, 4.0)
    bad: list[tuple[Any, ...]] = [(StartRange, 3, *more) for more in ((-1,), (3,), (0, 4), (1, 1), (0, None, -1))]
    bad += [(TrajectoryMatching, _Numbered(), StartRange(7), 0), (TrajectoryMatching, _Numbered(), StartRange(7), 2)]
    nobody = _Numbered()
    nobody.count = 0
    bad += [(TrajectoryMatching, nobody, StartRange(1), 1)]
    taken = StartRange(3, 0, 3), StartRange(3, 2), TrajectoryMatching(_Numbered(), StartRange(7), 1)
    ends = ((np.ones(1),), (np.ones(1),)), ((np.ones(1),), (np.full(1, np.inf),))
    stuck = all(refuses(objective.value_and_grad, (np.ones(1),), (), Segment(*pair, 0, 0), kind=Diverged) for pair in ends)
    return 1.0 if highs and right and taken and stuck and all(refuses(*one) for one in bad) else -9.0


def _gradients(
    problem: Smooth, optimiser: SGD, objective: TrajectoryMatching, s: Leaves, xi: Segment, noises: list, rng: np.random.Generator
) -> tuple[Leaves, Leaves, Leaves]:
    """(TESLA's formula, the sweep of rank 0, the exact sweep)."""
    tape = unroll(problem, optimiser, s, objective.start(xi), noises, Window(0, len(noises)))
    _, lam, _ = objective.value_and_grad(tape.end.theta, s, xi)
    span, total = axpy(-1.0, xi.target, xi.start), zeros_like(xi.start)
    for k in range(len(tape.entries)):
        total = add(total, tape.gradient(k))
    held = scale(2.0 / float(dot(span, span)), axpy(optimiser.lr**2, total, scale(-optimiser.lr, span)))
    formula = zeros_like(s)
    for entry in tape.entries:
        formula = add(formula, problem.mixed(entry.state.theta, s, entry.xi, held))
    frozen = sweep(problem, optimiser, s, tape, lam, LowRankHessian(rank=0), rng).grad_s
    return formula, frozen, sweep(problem, optimiser, s, tape, lam).grad_s


def _slope(problem: Smooth, optimiser: SGD, s: Leaves, along: Leaves, xi: Segment, noises: list) -> float:
    """dL along a direction of S, by a complex step through the whole run."""
    end = run(problem, optimiser, axpy(1j * TINY, along, s), axpy(0j, xi.start, xi.start), (), noises)[0]
    gap, span = axpy(-1.0, xi.target, end), axpy(-1.0, xi.target, xi.start)
    return float(slope_of((np.asarray(dot(gap, gap)),))[0]) / float(dot(span, span))


def symbolic() -> Iterator[Identity]:
    """One parameter, an inner gradient linear in (theta, s), one step and two."""
    theta, s, beta, target, c, h, m, span = sp.symbols("theta s beta tau c h m D", real=True)

    def g(place: sp.Expr) -> sp.Expr:
        return c + h * place + m * s

    one = theta - beta * g(theta)
    two = one - beta * g(one)
    for name, path, claim in (("one step", [theta], sp.Integer(0)), ("two steps", [theta, one], beta**2 * h * m)):
        end = path[-1] - beta * g(path[-1])
        lam = 2 * (end - target) / span
        held = beta * (target - theta) + beta**2 * sum(g(place) for place in path)
        tesla = 2 / span * held * m * len(path)
        yield Identity(f"exact - TESLA, {name}", sp.expand(sp.diff((end - target) ** 2 / span, s) - tesla), sp.expand(lam * claim))
    yield Identity("theta_2 = theta_0 - beta G", sp.expand(two - (theta - beta * (g(theta) + g(one)))), 0)


LEMMA = Lemma(
    number=25,
    name="tesla",
    latex=(
        r"\nabla^{\mathrm{TESLA}}_S = -\beta\sum_i (\partial_S g_i)^\top\lambda_N,\qquad "
        r"\nabla_S L = -\beta\sum_i (\partial_S g_i)^\top\lambda_{i+1}:\quad\text{equal for } N = 1"
    ),
    plain="TESLA's gradient of trajectory matching is the reverse sweep with its cotangent frozen; it is the true one for one step only.",
    source=Source("derived", "TESLA's formula as in its released code (arXiv:2211.10586); the abstract calls it exact"),
    assumptions={
        "one_step": "the student takes one inner step",
        "plain_sgd": "inner steps have no weight decay, so that theta_N = theta_0 - beta G",
    },
    instances={
        "lr": st.integers(5, 30).map(lambda n: n / 100),
        "steps": st.integers(1, 5),
        "sizes": st.fixed_dictionaries({"d": st.integers(1, 3), "L": st.integers(1, 4), "M": st.integers(1, 4)}),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("one_step", "two or more steps", {"more": st.integers(1, 4)}),
        Control("plain_sgd", "weight decay", {"decay": st.floats(0.1, 0.5), "steps": st.integers(2, 5)}),
    ),
    examples=60,
    code=("theory.distill.trajectory",),
)
