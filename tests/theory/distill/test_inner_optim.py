"""The inner optimisers: the conformance suite, torch's own optimisers, Adam's first step and its dead coordinates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance import InnerOptimiserConformance
from tests.oracles import relative_error, to_torch
from tests.strategies import OPTIMISERS, generators
from theory.distill.inner_optim import SGD, Adam, Momentum


class TestSGD(InnerOptimiserConformance):
    @staticmethod
    def optimisers():
        return OPTIMISERS["sgd"]


class TestMomentum(InnerOptimiserConformance):
    @staticmethod
    def optimisers():
        return OPTIMISERS["momentum"]


class TestAdam(InnerOptimiserConformance):
    @staticmethod
    def optimisers():
        return OPTIMISERS["adam"]


def library_optimiser(mine, params):
    match mine:
        case SGD():
            return torch.optim.SGD(params, lr=mine.lr, weight_decay=mine.weight_decay)
        case Momentum():
            return torch.optim.SGD(params, lr=mine.lr, momentum=mine.momentum, weight_decay=mine.weight_decay)
        case Adam():
            return torch.optim.Adam(params, lr=mine.lr, betas=(mine.b1, mine.b2), eps=mine.eps)


@pytest.mark.parametrize("kind", OPTIMISERS)
@given(data=st.data(), rng=generators)
def test_runs_are_those_of_torch(kind, data, rng):
    mine = data.draw(OPTIMISERS[kind])
    theta = (rng.standard_normal(3), rng.standard_normal((2, 2)))
    params = [torch.nn.Parameter(p) for p in to_torch(theta)]
    theirs, slots = library_optimiser(mine, params), mine.init(theta)
    for t in range(12):
        g = tuple(rng.standard_normal(p.shape) for p in theta)
        theta, slots = mine.step(theta, slots, t, g)
        for p, q in zip(params, to_torch(g), strict=True):
            p.grad = q
        theirs.step()
    assert relative_error(theta, tuple(params)) < 1e-11


@given(rng=generators, eps=st.floats(0.01, 1.0), lr=st.floats(1e-3, 0.1), b1=st.floats(0.0, 0.95), b2=st.floats(0.5, 0.999))
def test_first_adam_step_is_a_soft_sign(rng, eps, lr, b1, b2):
    """theta' = theta - lr g/(|g| + eps) whatever the decays, so c = -lr lam eps/(|g| + eps)^2."""
    optimiser = Adam(lr, b1, b2, eps)
    theta, g, lam = ((rng.standard_normal(5),) for _ in range(3))
    slots = optimiser.init(theta)
    moved, after = optimiser.step(theta, slots, 0, g)
    size = np.abs(g[0]) + eps
    np.testing.assert_allclose(moved[0], theta[0] - lr * g[0] / size, rtol=1e-12)
    mine = optimiser.adjoint(theta, slots, 0, g, lam, tuple((np.zeros(5),) for _ in after))
    np.testing.assert_allclose(mine.c[0], -lr * lam[0] * eps / size**2, rtol=1e-9, atol=1e-15)
    assert float(mine.d_lr) == pytest.approx(-np.sum(lam[0] * g[0] / size), rel=1e-10, abs=1e-14)


def test_dead_coordinate_passes_only_through_the_first_moment():
    """g = m = v = 0 for ever: the derivative of sqrt at 0 is 0, so c = -lr lam (1 - b1)/((1 - b1) eps), finite."""
    optimiser, zero = Adam(0.01), (np.zeros(1),)
    mine = optimiser.adjoint(zero, optimiser.init(zero), 0, zero, (np.ones(1),), (zero, zero))
    assert mine.c[0][0] == pytest.approx(-0.01 / optimiser.eps)
    assert mine.slots[1][0][0] == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SGD(0.0), "lr must be positive: lr=0.0"),
        (lambda: SGD(float("nan")), "lr=nan"),
        (lambda: Momentum(-1.0), "lr=-1.0"),
        (lambda: Momentum(0.1, 1.0), r"momentum must lie in \[0, 1\): momentum=1.0"),
        (lambda: Adam(0.1, b1=1.0), "b1=1.0"),
        (lambda: Adam(0.1, b2=-0.5), "b2=-0.5"),
        (lambda: Adam(0.1, eps=0.0), "eps=0.0"),
        (lambda: Adam(-0.1), "lr=-0.1"),
    ],
)
def test_bad_settings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
