"""The torch bridge: conformance as an inner problem and as an objective, draws, initialisation, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from realdata.augment import AUGMENTATIONS, Augment
from realdata.bridge import Batch, ModuleProblem, RealImages, Tensors
from realdata.compiled import compiler_here
from realdata.networks import ConvNetConfig, Norm, convnet
from realdata.second_order import forward
from tests.conformance import InnerProblemConformance, ObjectiveCase, ObjectiveConformance, ProblemCase
from tests.oracles import relative_error
from tests.strategies import generators, seeds
from theory.distill.matching import PerformanceMatching

CLASSES = 3
SHAPE = (2, 6, 6)


def smooth_network() -> nn.Module:
    """Convolution, norm and head like ConvNet's, without its kinks: finite differences hold everywhere."""
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), Norm(3, 3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, CLASSES))


def smooth_logits(theta: Tensors, images: torch.Tensor) -> torch.Tensor:
    """The same network from torch's fused functions."""
    kernel, shift, gamma, beta, weight, bias = theta
    hidden = F.group_norm(F.conv2d(images, kernel, shift, padding=1), 3, gamma, beta)
    return F.linear(F.avg_pool2d(F.softplus(hidden), 2).flatten(1), weight, bias)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """-(1/n) sum_i sum_c p_ic log softmax(logits)_ic, hard labels as one-hot p."""
    p = F.one_hot(target, CLASSES).to(logits.dtype) if target.dtype == torch.int64 else target
    return -(p * (logits - torch.logsumexp(logits, 1, keepdim=True))).sum(1).mean()


def batch_of(problem: ModuleProblem, s: Tensors, xi: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Warped images and targets of one step, for the oracles."""
    rows = slice(None) if xi.rows is None else torch.from_numpy(xi.rows)
    target = s[1].softmax(1) if problem.labels is None else problem.labels
    return (s[0][rows] if xi.warp is None else xi.warp(s[0][rows])), target[rows]


@st.composite
def problems(draw: st.DrawFn, module: nn.Module, shape: tuple[int, int, int], ipc: int = 3) -> tuple[ModuleProblem, Tensors]:
    """A problem with hard, soft or learned labels, any warp, whole or partial batches; and a set for it."""
    ipc = draw(st.integers(1, ipc))
    rng = draw(generators)
    n = CLASSES * ipc
    images = torch.from_numpy(rng.standard_normal((n, *shape)))
    soft = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), n))
    kind = draw(st.sampled_from(["hard", "soft", "learned"]))
    labels = {"hard": torch.arange(CLASSES).repeat_interleave(ipc), "soft": soft, "learned": None}[kind]
    s = (images, torch.from_numpy(rng.standard_normal((n, CLASSES)))) if kind == "learned" else (images,)
    augment = Augment(draw(st.sampled_from(list(AUGMENTATIONS))))
    k = draw(st.none() | st.integers(1, ipc))
    return ModuleProblem(module, CLASSES, ipc, labels, augment, k, dtype=torch.float64), s


def jittered(theta: Tensors, rng: np.random.Generator) -> Tensors:
    """Generic parameters: the initial ones have exact zeros and ones."""
    return tuple(p + 0.1 * torch.from_numpy(rng.standard_normal(p.shape)) for p in theta)


class TestModuleProblem(InnerProblemConformance):
    @staticmethod
    @st.composite
    def cases(draw: st.DrawFn) -> ProblemCase:
        problem, s = draw(problems(smooth_network(), SHAPE))
        rng = draw(generators)

        def loss(theta: Tensors, s: Tensors, xi: Batch) -> float:
            images, target = batch_of(problem, s, xi)
            return float(cross_entropy(smooth_logits(theta, images), target))

        return ProblemCase(problem, jittered(problem.init(rng), rng), s, problem.draw(rng), loss)


class TestRealImages(ObjectiveConformance):
    @staticmethod
    @st.composite
    def cases(draw: st.DrawFn) -> ObjectiveCase:
        problem, s = draw(problems(smooth_network(), SHAPE))
        rng, n = draw(generators), 7
        images, labels = torch.from_numpy(rng.standard_normal((n, *SHAPE))), torch.from_numpy(rng.integers(0, CLASSES, n))
        real = RealImages(problem.module, images, labels, draw(st.integers(1, n)), problem.augment, draw(st.integers(1, n)))
        return ObjectiveCase(PerformanceMatching(real), jittered(problem.init(rng), rng), s)


@given(rng=generators, batch=st.integers(1, 9), chunk=st.integers(1, 10), name=st.sampled_from(list(AUGMENTATIONS)))
def test_real_loss_does_not_depend_on_the_chunk_and_is_the_mean(rng: np.random.Generator, batch: int, chunk: int, name: str):
    images, labels = torch.from_numpy(rng.standard_normal((9, *SHAPE))), torch.from_numpy(rng.integers(0, CLASSES, 9))
    problem = ModuleProblem(smooth_network(), CLASSES, 1, torch.arange(CLASSES), Augment(name), dtype=torch.float64)
    theta = tuple(p.requires_grad_() for p in problem.init(rng))
    real = RealImages(problem.module, images, labels, batch, problem.augment, chunk)
    xi = real.draw(rng)
    assert xi.rows is not None
    assert len(set(xi.rows.tolist())) == batch
    chosen = images[torch.from_numpy(xi.rows)]
    expected = cross_entropy(smooth_logits(theta, chosen if xi.warp is None else xi.warp(chosen)), labels[torch.from_numpy(xi.rows)])
    value, grad = real.loss_and_gradient(theta, xi)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    assert relative_error(grad, torch.autograd.grad(expected, theta)) <= 1e-11


@pytest.mark.skipif(not compiler_here(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.parametrize(("batch", "chunk"), [(7, 3), (5, 9)])
def test_compiled_the_real_loss_is_the_same_and_is_compiled_for_whole_chunks_alone(batch: int, chunk: int):
    rng, module = np.random.default_rng(0), convnet(ConvNetConfig(1, 3), SHAPE, CLASSES)
    images, labels = torch.from_numpy(rng.standard_normal((9, *SHAPE))), torch.from_numpy(rng.integers(0, CLASSES, 9))
    plain = RealImages(module, images, labels, batch, Augment("flip-rotate"), chunk)
    compiled = replace(plain, compiled=True)
    template = ModuleProblem(module, CLASSES, 1, None, Augment("none"), dtype=torch.float64)

    def differences() -> tuple[float, float]:
        theta, xi = jittered(template.init(rng), rng), plain.draw(rng)
        (value, grad), (expected, by_autograd) = compiled.loss_and_gradient(theta, xi), plain.loss_and_gradient(theta, xi)
        return abs(value / expected - 1.0), relative_error(grad, by_autograd)

    assert max(differences()) <= 1e-12
    with torch.compiler.set_stance("fail_on_recompile"):
        assert max(max(differences()) for _ in range(3)) <= 1e-12


def test_of_a_network_without_rules_nothing_is_compiled():
    images, labels = torch.zeros(4, *SHAPE, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    real = RealImages(smooth_network(), images, labels, 4, Augment("none"), 4, compiled=True)
    assert real.whole.__qualname__ == real.rest.__qualname__


@given(data=st.data(), seed=seeds)
def test_draws_take_as_many_rows_of_each_class_without_repeats(data: st.DataObject, seed: int):
    problem, s = data.draw(problems(smooth_network(), SHAPE, ipc=4))
    xi = problem.draw(np.random.default_rng(seed))
    if problem.batch_per_class in (None, problem.ipc):
        assert xi.rows is None
        return
    assert xi.rows is not None
    assert len(set(xi.rows.tolist())) == len(xi.rows)
    assert np.array_equal(xi.rows // problem.ipc, np.repeat(np.arange(CLASSES), problem.batch_per_class))
    assert all(0 <= row < len(s[0]) for row in xi.rows)


@given(data=st.data(), rng=generators)
def test_images_outside_the_step_have_no_gradient(data: st.DataObject, rng: np.random.Generator):
    problem, s = data.draw(problems(smooth_network(), SHAPE, ipc=4))
    xi = problem.draw(rng)
    assume(xi.rows is not None)
    theta = problem.init(rng)
    used = np.isin(np.arange(len(s[0])), xi.rows)
    for leaf in problem.mixed(theta, s, xi, tuple(torch.ones_like(p) for p in theta)):
        assert not leaf.numpy()[~used].any()
        assert leaf.numpy()[used].any()


def test_fresh_parameters_are_pytorchs_own_and_leave_the_world_alone():
    config, rng = ConvNetConfig(depth=1, width=3), np.random.default_rng(5)
    module = convnet(config, (3, 8, 8), 10)
    before, state = [p.detach().clone() for p in module.parameters()], torch.get_rng_state()
    problem = ModuleProblem(module, 10, 1, torch.arange(10), Augment("none"))
    theta = problem.init(rng)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(int(np.random.default_rng(5).integers(2**63)))
        reference = convnet(config, (3, 8, 8), 10)
    # Construction draws in the order of the layers, and so does the reset.
    assert all(torch.equal(p, q) for p, q in zip(theta, reference.parameters(), strict=True))
    assert torch.equal(forward(module, theta, torch.ones(1, 3, 8, 8)), reference(torch.ones(1, 3, 8, 8)))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("module", "words"), [(nn.BatchNorm2d(3), "track_running_stats"), (nn.Dropout(0.5), "randomness"), (Bare(), "reset_parameters")]
)
def test_modules_that_cannot_be_replayed_are_refused(module: nn.Module, words: str):
    with pytest.raises(ValueError, match=words):
        ModuleProblem(nn.Sequential(module), 10, 1, torch.arange(10), Augment("none"))


def test_batch_statistics_without_a_memory_are_welcome():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Dropout(0.0))
    problem = ModuleProblem(module, 3, 2, torch.arange(3).repeat_interleave(2), Augment("none"), dtype=torch.float64)
    rng = np.random.default_rng(0)
    theta, s = problem.init(rng), (torch.from_numpy(rng.standard_normal((6, 1, 2, 2))),)
    h_c, m_c = problem.second_order(theta, s, problem.draw(rng), theta)
    assert all(torch.isfinite(x).all() for x in h_c + m_c)


@pytest.mark.parametrize(("ipc", "k"), [(0, None), (2, 3), (2, 0)])
def test_impossible_counts_are_refused(ipc: int, k: int | None):
    with pytest.raises(ValueError, match=r"ipc=\d"):
        ModuleProblem(smooth_network(), CLASSES, ipc, None, Augment("none"), k)


@pytest.mark.parametrize(("batch", "chunk"), [(0, 1), (3, 1), (1, 0)])
def test_impossible_real_batches_are_refused(batch: int, chunk: int):
    with pytest.raises(ValueError, match=r"(batch|chunk)=\d"):
        RealImages(smooth_network(), torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64), batch, Augment("none"), chunk)
