"""Meta-gradients of real ConvNets: the sweep over the torch bridge against one autograd graph, warps and sub-batches replayed."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from realdata.augment import Augment
from realdata.bridge import Batch, ModuleProblem, RealImages, Tensors
from realdata.networks import ConvNetConfig, convnet, resnet18
from realdata.second_order import forward, leaf
from tests.oracles import one_graph, relative_error
from tests.realdata.test_bridge import CLASSES, batch_of, cross_entropy, jittered, problems, smooth_network
from tests.realdata.test_bridge import SHAPE as SMOOTH_SHAPE
from tests.realdata.test_second_order import loss_of
from tests.strategies import OPTIMISERS, generators, seeds, windows
from theory.distill.adjoint import sweep, unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.distiller import Distiller, distil, start
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.leaves import size
from theory.distill.matching import PerformanceMatching
from theory.distill.outer import NormClip
from theory.distill.truncation import RandomWindow, Window

SHAPE = (1, 4, 4)
CONFIG = ConvNetConfig(depth=2, width=2)


def plain_logits(theta: Tensors, images: torch.Tensor) -> torch.Tensor:
    """ConvNet-2 from torch's fused functions."""
    hidden = images
    for k in range(2):
        kernel, shift, gamma, beta = theta[4 * k : 4 * k + 4]
        hidden = F.group_norm(F.conv2d(hidden, kernel, shift, padding=1), len(gamma), gamma, beta)
        hidden = F.avg_pool2d(F.relu(hidden), 2)
    return F.linear(hidden.flatten(1), *theta[8:])


# The gradient of a bias before a norm is 0 up to rounding, where Adam's step has slope 1 / eps: at eps = 1e-8 either side is only good to
# 1e-10 or so.
ADAM = st.builds(Adam, lr=st.floats(1e-3, 0.1), b1=st.floats(0.0, 0.95), b2=st.floats(0.5, 0.9999), eps=st.sampled_from([1e-6, 1e-4]))
CASES = OPTIMISERS | {"adam": ADAM}


@pytest.mark.parametrize("kind", sorted(CASES))
@given(data=st.data(), rng=generators, seed=seeds)
def test_sweep_is_the_gradient_of_one_graph(kind: str, data: st.DataObject, rng: np.random.Generator, seed: int):
    problem, s = data.draw(problems(convnet(CONFIG, SHAPE, CLASSES), SHAPE, ipc=2))
    optimiser, window = data.draw(CASES[kind]), data.draw(windows(max_horizon=5)).draw(rng)
    real = RealImages(
        problem.module,
        torch.from_numpy(rng.standard_normal((5, *SHAPE))),
        torch.from_numpy(rng.integers(0, CLASSES, 5)),
        4,
        problem.augment,
        3,
    )
    theta, noises, judged = problem.init(rng), [problem.draw(rng) for _ in range(window.stop)], real.draw(rng)
    assert judged.rows is not None
    rows = torch.from_numpy(judged.rows)

    def loss(theta: Tensors, s: Tensors, xi: Batch) -> torch.Tensor:
        images, target = batch_of(problem, s, xi)
        return cross_entropy(plain_logits(theta, images), target)

    def objective(theta: Tensors, s: Tensors) -> torch.Tensor:
        images = real.images[rows]
        logits = plain_logits(theta, images if judged.warp is None else judged.warp(images))
        return cross_entropy(logits, real.labels[rows]) + 0.0 * sum(leaf.sum() for leaf in s)

    reference = one_graph(loss, objective, optimiser, s, theta, noises, window.start, window.stop)
    tape = unroll(problem, optimiser, s, theta, noises, window)
    value, lam, _ = PerformanceMatching(real).value_and_grad(tape.end.theta, s, judged)
    swept = sweep(problem, optimiser, s, tape, lam)
    assert value == pytest.approx(reference.value, rel=1e-12)
    assert relative_error(swept.grad_s, reference.grad_s) <= 1e-10
    assert relative_error(swept.lam, reference.lam) <= 1e-10
    assert float(swept.grad_log_lr) == pytest.approx(reference.grad_log_lr, rel=1e-8, abs=1e-10)


@given(data=st.data(), rng=generators)
def test_meta_gradient_is_the_slope_of_the_real_loss(data: st.DataObject, rng: np.random.Generator):
    """Central differences along a direction in S, warm-up frozen, on a network without kinks."""
    problem, s = data.draw(problems(smooth_network(), SMOOTH_SHAPE, ipc=2))
    optimiser = data.draw(st.sampled_from([SGD(0.1), Momentum(0.1), Adam(0.01, eps=1e-3)]))
    images, labels = torch.from_numpy(rng.standard_normal((4, *SMOOTH_SHAPE))), torch.from_numpy(rng.integers(0, CLASSES, 4))
    real = RealImages(problem.module, images, labels, 4, problem.augment)
    window, theta, judged = Window(0, 3), problem.init(rng), real.draw(rng)
    noises = [problem.draw(rng) for _ in range(window.stop)]
    direction = tuple(torch.from_numpy(rng.standard_normal(leaf.shape)) for leaf in s)

    def value(h: float) -> float:
        moved = tuple(leaf + h * d for leaf, d in zip(s, direction, strict=True))
        return real.loss_and_gradient(unroll(problem, optimiser, moved, theta, noises, window).end.theta, judged)[0]

    tape = unroll(problem, optimiser, s, theta, noises, window)
    grad = sweep(problem, optimiser, s, tape, real.loss_and_gradient(tape.end.theta, judged)[1]).grad_s
    slope = sum(float((g * d).sum()) for g, d in zip(grad, direction, strict=True))
    size = sum(float(g.norm() * d.norm()) for g, d in zip(grad, direction, strict=True))
    assert abs((value(1e-5) - value(-1e-5)) / 2e-5 - slope) <= 1e-6 * size + 1e-9


@pytest.mark.parametrize("optimiser", [SGD(0.1), Momentum(0.05), Adam(0.01)], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("augment", ["none", "flip-rotate"])
def test_some_classes_and_some_images_of_each_with_learned_labels(optimiser: InnerOptimiser, augment: str):
    """Two of three classes and two of four images of each in a step; rows that no step of the window sees get exactly nothing."""
    rng, ipc = np.random.default_rng(8), 4
    module = convnet(CONFIG, SHAPE, CLASSES)
    problem = ModuleProblem(module, CLASSES, ipc, None, Augment(augment), 2, dtype=torch.float64, classes_per_step=2)
    s = tuple(torch.from_numpy(rng.standard_normal((CLASSES * ipc, *shape))) for shape in (SHAPE, (CLASSES,)))
    theta, noises, window = problem.init(rng), [problem.draw(rng) for _ in range(4)], Window(2, 4)
    assert len({tuple(np.unique(xi.rows // ipc)) for xi in noises if xi.rows is not None}) > 1, "the classes vary"
    images, classes = torch.from_numpy(rng.standard_normal((5, *SHAPE))), torch.from_numpy(rng.integers(0, CLASSES, 5))

    def objective(theta: Tensors, s: Tensors) -> torch.Tensor:
        return cross_entropy(plain_logits(theta, images), classes) + 0.0 * sum(leaf.sum() for leaf in s)

    def loss(theta: Tensors, s: Tensors, xi: Batch) -> torch.Tensor:
        batch, target = batch_of(problem, s, xi)
        return cross_entropy(plain_logits(theta, batch), target)

    reference = one_graph(loss, objective, optimiser, s, theta, noises, window.start, window.stop)
    tape = unroll(problem, optimiser, s, theta, noises, window)
    end = leaf(tape.end.theta)
    swept = sweep(problem, optimiser, s, tape, torch.autograd.grad(objective(end, s), end))
    assert relative_error(swept.grad_s, reference.grad_s) <= 1e-10
    seen = np.unique(np.concatenate([xi.rows for xi in noises[2:]]))
    unseen = np.setdiff1d(np.arange(CLASSES * ipc), seen)
    assert len(unseen)
    for part in swept.grad_s:
        assert not part[unseen].any()
        assert part[seen].abs().flatten(1).sum(1).min() > 0


def small_resnet() -> nn.Sequential:
    """The first three blocks of ResNet-18 with batch norm; the last of them halves the image and has a shortcut of its own."""
    return nn.Sequential(*resnet18(SHAPE, CLASSES, "batch", 1)[:9], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES))


@pytest.mark.parametrize("optimiser", [SGD(0.1), Adam(0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("build", [partial(convnet, CONFIG, SHAPE, CLASSES), small_resnet], ids=["convnet", "resnet"])
def test_low_rank_hessians_made_anew_at_every_step(build: Callable[[], nn.Sequential], optimiser: InnerOptimiser):
    """Each step has its own warp and batch: at full rank the exact meta-gradient, at rank 0 that of one graph with d g / d theta cut."""
    rng, module = np.random.default_rng(9), build()
    problem = ModuleProblem(module, CLASSES, 3, None, Augment("flip-rotate"), 2, dtype=torch.float64)
    s = tuple(torch.from_numpy(rng.standard_normal((CLASSES * 3, *shape))) for shape in (SHAPE, (CLASSES,)))
    theta, noises, window = jittered(problem.init(rng), rng), [problem.draw(rng) for _ in range(5)], Window(1, 5)
    images, classes = torch.from_numpy(rng.standard_normal((5, *SHAPE))), torch.from_numpy(rng.integers(0, CLASSES, 5))

    def objective(theta: Tensors, s: Tensors) -> torch.Tensor:
        return cross_entropy(forward(module, theta, images), classes) + 0.0 * sum(leaf.sum() for leaf in s)

    tape = unroll(problem, optimiser, s, theta, noises, window)
    end = leaf(tape.end.theta)
    lam = torch.autograd.grad(objective(end, s), end)
    exact = sweep(problem, optimiser, s, tape, lam)
    full, none, aged = (
        sweep(problem, optimiser, s, tape, lam, LowRankHessian(rank, 0, 0, max_age=age), np.random.default_rng(0))
        for rank, age in ((size(theta), 1), (0, 1), (size(theta), 20))
    )
    assert relative_error((*full.grad_s, *full.lam), (*exact.grad_s, *exact.lam)) <= 1e-8
    assert relative_error(aged.grad_s, exact.grad_s) > 1e-3, "a sketch belongs to its draw"
    one = partial(one_graph, partial(loss_of, problem), objective, optimiser, s, theta, noises, window.start, window.stop)
    reference = one(curvature=False)
    assert relative_error((*none.grad_s, *none.lam), (*reference.grad_s, *reference.lam)) <= 1e-10
    assert relative_error(exact.grad_s, one().grad_s) <= 1e-10
    assert relative_error(none.grad_s, exact.grad_s) > 1e-3


def test_distillation_lowers_the_real_loss_and_repeats_from_any_state():
    """A separable problem: one image a class, learned by random windows; step 6 onwards again from its stored state."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(60) % CLASSES)
    pattern = torch.from_numpy(rng.standard_normal((CLASSES, *SHAPE)))
    images = pattern[labels] + 0.3 * torch.from_numpy(rng.standard_normal((60, *SHAPE)))
    module = convnet(ConvNetConfig(depth=1, width=4), SHAPE, CLASSES)
    problem = ModuleProblem(module, CLASSES, 1, torch.arange(CLASSES), Augment("none"), dtype=torch.float64)
    objective = PerformanceMatching(RealImages(module, images, labels, 20, Augment("none")))
    distiller = Distiller(RandomWindow(6, 3), Adam(0.03), Adam(0.1), NormClip())
    first = start(distiller, (torch.from_numpy(rng.standard_normal((CLASSES, *SHAPE))),))
    records = list(distil(problem, objective, distiller, first, seed=1, steps=24))
    losses = [record.value for record in records]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    again = list(distil(problem, objective, distiller, records[5].state, seed=1, steps=24))
    assert [record.value for record in again] == losses[6:]
    assert torch.equal(again[-1].state.s[0], records[-1].state.s[0])
