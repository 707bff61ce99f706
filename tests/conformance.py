"""One suite a protocol: a new implementation supplies a strategy of cases and inherits the tests.

    InnerProblemConformance     shapes, gradient, second-order products, symmetry, determinism, adjoint identity
    InnerOptimiserConformance   adjoint against autograd and against the adjoint identity
    WindowPolicyConformance     bounds, both ends reachable, constant where the window fills the unroll
    ObjectiveConformance        gradients in theta and S against central differences

Subclass one in a test module, name the subclass Test..., and give the static methods marked below. Tolerances and steps are class
attributes: the defaults are for float64 away from kinks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import detached, difference_along, optimiser_step, relative_error, to_numpy, to_torch
from tests.strategies import generators, normal_like, optimisers, seeds
from theory.distill.inner_optim import InnerOptimiser
from theory.distill.leaves import Leaves, add, axpy, dot, norm, scale
from theory.distill.problem import InnerProblem, Noise, Objective
from theory.distill.truncation import Window, WindowPolicy


def _equal(x: Leaves, y: Leaves) -> bool:
    return len(x) == len(y) and all(np.array_equal(to_numpy(a), to_numpy(b)) for a, b in zip(x, y, strict=True))


def _same_kind(x: Leaves, y: Leaves) -> bool:
    return len(x) == len(y) and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(x, y, strict=True))


def _close(value: Any, reference: Any, size: float, rtol: float) -> None:
    """|value - reference| <= rtol * size, for two ways to the same inner product."""
    assert abs(float(value) - float(reference)) <= rtol * size, (float(value), float(reference), size)


@dataclass(frozen=True, eq=False)
class ProblemCase:
    """A problem at one point; `loss` is its training loss, evaluated without the code under test."""

    problem: InnerProblem
    theta: Leaves
    s: Leaves
    xi: Noise
    loss: Callable[[Leaves, Leaves, Noise], float]


class InnerProblemConformance:
    """Inherit and give `cases()`, a strategy of ProblemCase whose points lie further than `step` from any kink."""

    step: ClassVar[float] = 1e-6
    rtol: ClassVar[float] = 1e-10
    fd_rtol: ClassVar[float] = 1e-6

    @staticmethod
    def cases() -> st.SearchStrategy[ProblemCase]:
        raise NotImplementedError

    @given(data=st.data(), rng=generators)
    def test_shapes_and_kinds(self, data: st.DataObject, rng: np.random.Generator) -> None:
        case = data.draw(self.cases())
        g = case.problem.gradient(case.theta, case.s, case.xi)
        c = normal_like(rng, case.theta)
        h_c, m_c = case.problem.second_order(case.theta, case.s, case.xi, c)
        assert _same_kind(g, case.theta)
        assert _same_kind(h_c, case.theta)
        assert _same_kind(m_c, case.s)

    @given(data=st.data(), seed=seeds)
    def test_fresh_parameters_are_a_function_of_the_seed(self, data: st.DataObject, seed: int) -> None:
        case = data.draw(self.cases())
        first, again, other = (case.problem.init(np.random.default_rng(k)) for k in (seed, seed, seed + 1))
        assert _same_kind(first, case.theta)
        assert _equal(first, again)
        assert not _equal(first, other)

    @given(data=st.data(), rng=generators)
    def test_gradient_is_the_derivative_of_the_loss(self, data: st.DataObject, rng: np.random.Generator) -> None:
        case = data.draw(self.cases())
        g = case.problem.gradient(case.theta, case.s, case.xi)
        v = normal_like(rng, case.theta)
        up, down = (case.loss(axpy(h, v, case.theta), case.s, case.xi) for h in (self.step, -self.step))
        scale_of_loss = abs(up) * np.finfo(np.float64).eps / self.step
        _close(dot(g, v), (up - down) / (2.0 * self.step), norm(g) * norm(v) + scale_of_loss / self.fd_rtol, self.fd_rtol)

    @given(data=st.data(), rng=generators)
    def test_adjoint_identity(self, data: st.DataObject, rng: np.random.Generator) -> None:
        """<c, J v> = <J^T c, v> for the Jacobian of the gradient in theta and in S, J v by central differences."""
        case = data.draw(self.cases())
        c, v, w = normal_like(rng, case.theta), normal_like(rng, case.theta), normal_like(rng, case.s)
        h_c, m_c = case.problem.second_order(case.theta, case.s, case.xi, c)
        in_theta = difference_along(lambda p: case.problem.gradient(p, case.s, case.xi), case.theta, v, self.step)
        in_s = difference_along(lambda q: case.problem.gradient(case.theta, q, case.xi), case.s, w, self.step)
        _close(dot(h_c, v), dot(c, in_theta), norm(c) * norm(in_theta) + norm(h_c) * norm(v), self.fd_rtol)
        _close(dot(m_c, w), dot(c, in_s), norm(c) * norm(in_s) + norm(m_c) * norm(w), self.fd_rtol)

    @given(data=st.data(), rng=generators)
    def test_hessian_is_symmetric(self, data: st.DataObject, rng: np.random.Generator) -> None:
        case = data.draw(self.cases())
        u, v = normal_like(rng, case.theta), normal_like(rng, case.theta)
        h_u, h_v = (case.problem.second_order(case.theta, case.s, case.xi, c)[0] for c in (u, v))
        _close(dot(h_u, v), dot(h_v, u), norm(h_u) * norm(v) + norm(h_v) * norm(u), self.rtol)

    @given(data=st.data(), rng=generators, alpha=st.floats(-3.0, 3.0))
    def test_second_order_is_linear_in_its_direction(self, data: st.DataObject, rng: np.random.Generator, alpha: float) -> None:
        case = data.draw(self.cases())
        u, v = normal_like(rng, case.theta), normal_like(rng, case.theta)

        def product(c: Leaves) -> Leaves:
            h_c, m_c = case.problem.second_order(case.theta, case.s, case.xi, c)
            return h_c + m_c

        expected = axpy(alpha, product(u), product(v))
        size = norm(product(u)) * (1.0 + abs(alpha)) + norm(product(v))
        assert norm(add(product(axpy(alpha, u, v)), scale(-1.0, expected))) <= self.rtol * size

    @given(data=st.data(), rng=generators)
    def test_mixed_is_the_second_part(self, data: st.DataObject, rng: np.random.Generator) -> None:
        case = data.draw(self.cases())
        c = normal_like(rng, case.theta)
        m_c = case.problem.second_order(case.theta, case.s, case.xi, c)[1]
        assert relative_error(case.problem.mixed(case.theta, case.s, case.xi, c), m_c) <= self.rtol

    @given(data=st.data(), rng=generators)
    def test_replay_is_exact_and_changes_no_input(self, data: st.DataObject, rng: np.random.Generator) -> None:
        case = data.draw(self.cases())
        c = normal_like(rng, case.theta)
        before = tuple(to_numpy(x).copy() for x in case.theta + case.s + c)
        g = case.problem.gradient(case.theta, case.s, case.xi)
        h_c, m_c = case.problem.second_order(case.theta, case.s, case.xi, c)
        again = case.problem.second_order(case.theta, case.s, case.xi, c)
        assert _equal(g, case.problem.gradient(case.theta, case.s, case.xi))
        assert _equal(h_c + m_c, again[0] + again[1])
        assert _equal(case.theta + case.s + c, before)


class InnerOptimiserConformance:
    """Inherit and give `optimisers()`; a new optimiser also gives `torch_step`, its step written with torch and differentiable."""

    rtol: ClassVar[float] = 1e-10
    fd_rtol: ClassVar[float] = 1e-6
    torch_step = staticmethod(optimiser_step)

    @staticmethod
    def optimisers() -> st.SearchStrategy[InnerOptimiser]:
        return optimisers

    @staticmethod
    def state(optimiser: InnerOptimiser, rng: np.random.Generator, dead: bool) -> tuple[Leaves, tuple[Leaves, ...], Leaves]:
        """(theta, slots, g) as a run could reach them: slots are those after one step; `dead` zeroes one coordinate for ever."""
        theta, earlier, g = ((rng.standard_normal(3), rng.standard_normal((2, 2))) for _ in range(3))
        if dead:
            for x in (earlier, g):
                x[0][0] = 0.0
        return theta, optimiser.step(theta, optimiser.init(theta), 0, earlier)[1], g

    @given(data=st.data(), rng=generators, t=st.integers(1, 50), dead=st.booleans())
    def test_adjoint_is_that_of_autograd(self, data: st.DataObject, rng: np.random.Generator, t: int, dead: bool) -> None:
        optimiser = data.draw(self.optimisers())
        theta, slots, g = self.state(optimiser, rng, dead)
        lam, mu = normal_like(rng, theta), tuple(normal_like(rng, slot) for slot in slots)
        lr = torch.tensor(float(optimiser.lr), dtype=torch.float64, requires_grad=True)
        p, q, old = detached(to_torch(theta)), detached(to_torch(g)), tuple(detached(to_torch(slot)) for slot in slots)
        p_next, new = self.torch_step(optimiser, lr, p, old, t, q)
        theta_next, slots_next = optimiser.step(theta, slots, t, g)
        assert relative_error(theta_next, p_next) <= self.rtol
        for mine, theirs in zip(slots_next, new, strict=True):
            assert relative_error(mine, theirs) <= self.rtol

        outputs = p_next + tuple(x for slot in new for x in slot)
        cotangents = to_torch(lam) + tuple(x for slot in mu for x in to_torch(slot))
        inputs = (*p, *q, lr, *(x for slot in old for x in slot))
        grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, materialize_grads=True)
        mine = optimiser.adjoint(theta, slots, t, g, lam, mu)
        n = len(p)
        assert relative_error(mine.lam, grads[:n]) <= self.rtol
        assert relative_error(mine.c, grads[n : 2 * n]) <= self.rtol
        assert relative_error((np.asarray(mine.d_lr),), grads[2 * n : 2 * n + 1]) <= self.rtol
        flat = tuple(x for slot in mine.slots for x in slot)
        assert relative_error(flat, grads[2 * n + 1 :]) <= self.rtol

    @given(data=st.data(), rng=generators, t=st.integers(0, 50), dead=st.booleans())
    @pytest.mark.parametrize("small", [1.0, 1e-4])
    def test_a_gradient_is_recovered_or_has_to_be_stored(
        self, data: st.DataObject, rng: np.random.Generator, t: int, dead: bool, small: float
    ) -> None:
        """Which of both depends on nothing that a run meets, since a tape asks once; a gradient far below the slots costs digits of itself
        and none of the adjoint.
        """
        optimiser = data.draw(self.optimisers())
        theta, slots, g = self.state(optimiser, rng, dead)
        g = scale(small, g)
        found = optimiser.recovered(theta, slots, optimiser.step(theta, slots, t, g)[1])
        first = optimiser.init(theta)
        assert (found is None) == (optimiser.recovered(theta, first, first) is None)
        if found is not None:
            assert relative_error(found, g) <= self.rtol / small
            lam, mu = normal_like(rng, theta), tuple(normal_like(rng, slot) for slot in slots)
            one, other = (optimiser.adjoint(theta, slots, t, grad, lam, mu) for grad in (found, g))
            assert relative_error(one.c, other.c) <= self.rtol

    @given(data=st.data(), rng=generators, t=st.integers(1, 50))
    def test_adjoint_identity(self, data: st.DataObject, rng: np.random.Generator, t: int) -> None:
        """<(lam, mu), J v> = <J^T (lam, mu), v>, J v by central differences in theta, slots, g and the step size together."""
        optimiser = data.draw(self.optimisers())
        theta, slots, g = self.state(optimiser, rng, dead=False)
        lam, mu = normal_like(rng, theta), tuple(normal_like(rng, slot) for slot in slots)
        d_theta, d_g, d_slots = normal_like(rng, theta), normal_like(rng, g), tuple(normal_like(rng, slot) for slot in slots)
        d_lr = float(rng.standard_normal())
        # Relative to the second moment, a step of this size keeps it positive.
        h = 1e-6 * min([1.0, optimiser.lr] + [float(np.min(np.abs(x))) for x in (slots[-1] if slots else ())])

        def moved(sign: float) -> Leaves:
            step = sign * h
            varied = replace(optimiser, lr=optimiser.lr + step * d_lr)
            old = tuple(axpy(step, v, slot) for v, slot in zip(d_slots, slots, strict=True))
            theta_next, slots_next = varied.step(axpy(step, d_theta, theta), old, t, axpy(step, d_g, g))
            return theta_next + tuple(x for slot in slots_next for x in slot)

        tangent = scale(0.5 / h, add(moved(1.0), scale(-1.0, moved(-1.0))))
        flat = lam + tuple(x for slot in mu for x in slot)
        mine = optimiser.adjoint(theta, slots, t, g, lam, mu)
        pulled = dot(mine.lam, d_theta) + dot(mine.c, d_g) + mine.d_lr * d_lr
        pulled += sum(dot(m, v) for m, v in zip(mine.slots, d_slots, strict=True))
        rounding = np.finfo(np.float64).eps * norm(theta) * norm(flat) / h
        _close(pulled, dot(flat, tangent), norm(flat) * norm(tangent) + 10 * rounding / self.fd_rtol, self.fd_rtol)

    @given(data=st.data(), rng=generators)
    def test_every_namespace_takes_the_same_step(self, xp: Any, data: st.DataObject, rng: np.random.Generator) -> None:
        optimiser = data.draw(self.optimisers())
        theta, slots, g = self.state(optimiser, rng, dead=True)

        def move(x: Leaves) -> Leaves:
            return tuple(xp.asarray(a) for a in x)

        lam, mu = normal_like(rng, theta), tuple(normal_like(rng, slot) for slot in slots)
        there = optimiser.adjoint(move(theta), tuple(move(slot) for slot in slots), 3, move(g), move(lam), tuple(move(slot) for slot in mu))
        here = optimiser.adjoint(theta, slots, 3, g, lam, mu)
        assert relative_error(there.c, here.c) <= self.rtol
        assert relative_error(there.lam, here.lam) <= self.rtol
        assert (
            relative_error(
                optimiser.step(move(theta), tuple(move(slot) for slot in slots), 3, move(g))[0], optimiser.step(theta, slots, 3, g)[0]
            )
            <= self.rtol
        )


@dataclass(frozen=True)
class PolicyCase:
    """A policy, windows it must be able to draw (its ends), and the range of lengths it may draw."""

    policy: WindowPolicy
    reachable: tuple[Window, ...]
    lengths: tuple[int, int]


class WindowPolicyConformance:
    """Inherit and give `cases()`, a strategy of PolicyCase; `draws` must suffice to meet the rarest end."""

    draws: ClassVar[int] = 400

    @staticmethod
    def cases() -> st.SearchStrategy[PolicyCase]:
        raise NotImplementedError

    @given(data=st.data(), seed=seeds)
    def test_windows_lie_in_the_unroll_and_reach_its_ends(self, data: st.DataObject, seed: int) -> None:
        case = data.draw(self.cases())
        rng = np.random.default_rng(seed)
        drawn = [case.policy.draw(rng) for _ in range(self.draws)]
        low, high = case.lengths
        assert all(0 <= w.start < w.stop <= case.policy.horizon and low <= w.length <= high for w in drawn)
        assert set(case.reachable) <= set(drawn)
        if low == case.policy.horizon:
            assert set(drawn) == {Window(0, case.policy.horizon)}

    @given(data=st.data(), seed=seeds)
    def test_windows_are_a_function_of_the_generator(self, data: st.DataObject, seed: int) -> None:
        policy = data.draw(self.cases()).policy
        first, again = np.random.default_rng(seed), np.random.default_rng(seed)
        assert [policy.draw(first) for _ in range(20)] == [policy.draw(again) for _ in range(20)]


@dataclass(frozen=True, eq=False)
class ObjectiveCase:
    """An objective at one point."""

    objective: Objective
    theta: Leaves
    s: Leaves


class ObjectiveConformance:
    """Inherit and give `cases()`, a strategy of ObjectiveCase at points further than `step` from any kink."""

    step: ClassVar[float] = 1e-6
    fd_rtol: ClassVar[float] = 1e-6

    @staticmethod
    def cases() -> st.SearchStrategy[ObjectiveCase]:
        raise NotImplementedError

    @given(data=st.data(), rng=generators, seed=seeds)
    def test_gradients_are_derivatives_of_the_value(self, data: st.DataObject, rng: np.random.Generator, seed: int) -> None:
        case = data.draw(self.cases())
        xi = case.objective.draw(np.random.default_rng(seed))
        value, in_theta, in_s = case.objective.value_and_grad(case.theta, case.s, xi)
        assert _same_kind(in_theta, case.theta)
        v, w = normal_like(rng, case.theta), normal_like(rng, case.s)

        def along(theta: Leaves, s: Leaves) -> float:
            return float(case.objective.value_and_grad(theta, s, xi)[0])

        h = self.step
        rounding = abs(value) * np.finfo(np.float64).eps / h / self.fd_rtol
        difference = (along(axpy(h, v, case.theta), case.s) - along(axpy(-h, v, case.theta), case.s)) / (2 * h)
        _close(dot(in_theta, v), difference, norm(in_theta) * norm(v) + rounding, self.fd_rtol)
        difference = (along(case.theta, axpy(h, w, case.s)) - along(case.theta, axpy(-h, w, case.s))) / (2 * h)
        if in_s is None:
            assert difference == 0.0
        else:
            assert _same_kind(in_s, case.s)
            _close(dot(in_s, w), difference, norm(in_s) * norm(w) + rounding, self.fd_rtol)

    @given(data=st.data(), seed=seeds)
    def test_value_is_a_function_of_the_draw(self, data: st.DataObject, seed: int) -> None:
        case = data.draw(self.cases())
        first, again = (case.objective.draw(np.random.default_rng(seed)) for _ in range(2))
        assert case.objective.value_and_grad(case.theta, case.s, first)[0] == case.objective.value_and_grad(case.theta, case.s, again)[0]
