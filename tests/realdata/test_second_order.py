"""The exact products of every network family against double backward, forward over reverse, and one graph of a whole window."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from realdata import bridge
from realdata.augment import Augment
from realdata.bridge import Batch, ModuleProblem, Tensors
from realdata.compiled import compiler_here
from realdata.lift import by_image, uncovered
from realdata.networks import ACTIVATIONS, NORMS, POOLINGS, ConvNetConfig, Norm, Residual, alexnet, convnet, lenet, mlp, resnet18, vgg11
from realdata.second_order import StepDerivatives, derivatives, forward, in_chunks, leaf
from tests.conformance import InnerProblemConformance, ProblemCase
from tests.oracles import one_graph, relative_error
from tests.realdata.test_bridge import CLASSES, batch_of, cross_entropy, jittered, problems
from tests.strategies import generators
from theory.distill.adjoint import sweep, unroll
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.truncation import Window

SHAPE = (2, 16, 16)
# For tests that run once for each family.
FEWER = settings(max_examples=max(1, settings().max_examples // 4))


def smooth_network() -> nn.Sequential:
    """Every kind of part, without kinks."""
    inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh())
    tail = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES)
    return nn.Sequential(nn.Conv2d(2, 3, 3), Norm(3, 1), nn.Sigmoid(), Residual(inner, nn.Identity()), *tail)


FAMILIES: dict[str, Callable[[], nn.Sequential]] = {
    **{f"convnet-{norm}": partial(convnet, ConvNetConfig(2, 3, norm), SHAPE, CLASSES) for norm in NORMS},
    **{f"convnet-{pooling}": partial(convnet, ConvNetConfig(1, 3, pooling=pooling), SHAPE, CLASSES) for pooling in POOLINGS[1:]},
    **{f"convnet-{name}": partial(convnet, ConvNetConfig(2, 2, activation=name), SHAPE, CLASSES) for name in list(ACTIVATIONS)[1:]},
    **{f"resnet18-{norm}": partial(resnet18, SHAPE, CLASSES, norm, 1) for norm in NORMS},
    **{f"vgg11-{norm}": partial(vgg11, SHAPE, CLASSES, norm, 1) for norm in NORMS},
    "alexnet": partial(alexnet, SHAPE, CLASSES, width=1),
    "lenet": partial(lenet, SHAPE, CLASSES),
    "mlp": partial(mlp, SHAPE, CLASSES, 5),
    "smooth": smooth_network,
}


def loss_of(problem: ModuleProblem, theta: Tensors, s: Tensors, xi: Batch) -> torch.Tensor:
    """The step's loss from the module's own forward pass."""
    images, target = batch_of(problem, s, xi)
    return cross_entropy(forward(problem.module, theta, images), target)


def by_double_backward(problem: ModuleProblem, theta: Tensors, s: Tensors, xi: Batch, c: Tensors) -> Tensors:
    theta, s = leaf(theta), leaf(s)
    g = torch.autograd.grad(loss_of(problem, theta, s, xi), theta, create_graph=True)
    return torch.autograd.grad(g, theta + s, c, materialize_grads=True, allow_unused=True)


def along(x: Tensors, rng: np.random.Generator) -> Tensors:
    return tuple(torch.from_numpy(rng.standard_normal(leaf.shape)) for leaf in x)


@pytest.mark.parametrize("family", FAMILIES)
@FEWER
@given(data=st.data(), rng=generators)
def test_products_are_those_of_double_backward(family: str, data: st.DataObject, rng: np.random.Generator):
    module = FAMILIES[family]()
    assert uncovered(module) is None
    problem, s = data.draw(problems(module, SHAPE, ipc=2))
    theta, xi = jittered(problem.init(rng), rng), problem.draw(rng)
    c = along(theta, rng)
    found = problem.second_order(theta, s, xi, c)
    expected = by_double_backward(problem, theta, s, xi, c)
    assert relative_error(found[0], expected[: len(theta)]) <= 1e-10
    assert relative_error(found[1], expected[len(theta) :]) <= 1e-10
    assert relative_error(problem.mixed(theta, s, xi, c), found[1]) <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_the_transpose_of_forward_over_reverse(family: str):
    """<u, H c> + <v, M c> = <c, d/de g(theta + e u, S + e v)>, the right side by forward-mode derivatives."""
    rng, module = np.random.default_rng(1), FAMILIES[family]()
    problem = ModuleProblem(module, CLASSES, 2, None, Augment("none"), dtype=torch.float64)
    s = along((torch.zeros(6, *SHAPE), torch.zeros(6, CLASSES)), rng)
    theta, xi = jittered(problem.init(rng), rng), Batch(None, None)
    c, u, v = along(theta, rng), along(theta, rng), along(s, rng)
    h_c, m_c = problem.second_order(theta, s, xi, c)
    moved = torch.func.jvp(torch.func.grad(lambda p, q: loss_of(problem, p, q, xi)), (theta, s), (u, v))[1]
    left = sum(float((a * b).sum()) for a, b in zip(u + v, h_c + m_c, strict=True))
    size = sum(float(a.norm() * b.norm()) for a, b in zip(u + v, h_c + m_c, strict=True))
    assert abs(left - sum(float((a * b).sum()) for a, b in zip(c, moved, strict=True))) <= 1e-10 * size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimiser", [SGD(0.05), Momentum(0.05), Adam(0.01)], ids=["sgd", "momentum", "adam"])
def test_meta_gradient_is_that_of_one_graph(family: str, optimiser: InnerOptimiser):
    """Learned labels, sub-batches, warps replayed; judged by a loss on other images.

    A bias before instance or batch norm moves no output, so its gradient is rounding, on which Adam's step has slope 1 / eps = 1e8. An
    objective that looks at theta itself, as the distance to a target does, pulls on it, and either side is then good to 1e-9 only. The
    last instance norms of ResNet-18 see 2 x 2 pixels of a 16 x 16 image, whose variance falls to 1e-3, and divide by its root: moving S by
    1e-15 moves the meta-gradient by up to 1e-7 of its norm. Of a 32 x 32 image they see 4 x 4, of variance 0.04, and it moves by 1e-13.
    """
    rng, module = np.random.default_rng(2), FAMILIES[family]()
    shape = (2, 32, 32) if family == "resnet18-instance" else SHAPE
    problem = ModuleProblem(module, CLASSES, 3, None, Augment("flip-rotate"), 2, dtype=torch.float64)
    s = along((torch.zeros(9, *shape), torch.zeros(9, CLASSES)), rng)
    theta, noises, window = jittered(problem.init(rng), rng), [problem.draw(rng) for _ in range(4)], Window(1, 4)
    images, labels = torch.from_numpy(rng.standard_normal((5, *shape))), torch.from_numpy(rng.integers(0, CLASSES, 5))

    def objective(theta: Tensors, s: Tensors) -> torch.Tensor:
        return cross_entropy(forward(module, theta, images), labels) + 0.0 * sum(leaf.sum() for leaf in s)

    reference = one_graph(partial(loss_of, problem), objective, optimiser, s, theta, noises, window.start, window.stop)
    tape = unroll(problem, optimiser, s, theta, noises, window)
    end = leaf(tape.end.theta)
    swept = sweep(problem, optimiser, s, tape, torch.autograd.grad(objective(end, s), end))
    assert relative_error(swept.grad_s, reference.grad_s) <= 1e-10
    assert relative_error(swept.lam, reference.lam) <= 1e-10


class TestFastProduct(InnerProblemConformance):
    @staticmethod
    @st.composite
    def cases(draw: st.DrawFn) -> ProblemCase:
        problem, s = draw(problems(smooth_network(), SHAPE))
        rng = draw(generators)
        return ProblemCase(
            problem, jittered(problem.init(rng), rng), s, problem.draw(rng), lambda p, q, xi: float(loss_of(problem, p, q, xi))
        )


@st.composite
def drawn_networks(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions, norms and poolings of any settings that keep an image."""
    groups, out = draw(st.sampled_from([1, 2])), draw(st.sampled_from([2, 4]))
    kernel, stride, padding, dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    layers: list[nn.Module] = [nn.Conv2d(2, out, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))]
    norms = [
        nn.GroupNorm(2, out, affine=draw(st.booleans()), eps=0.1),
        nn.InstanceNorm2d(out, affine=draw(st.booleans())),
        nn.BatchNorm2d(out, track_running_stats=False, affine=draw(st.booleans())),
        nn.Identity(),
    ]
    layers += [draw(st.sampled_from(norms)), draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh()]))]
    ceil = draw(st.booleans())
    layers += [draw(st.sampled_from([nn.MaxPool2d(2, 1, 1, 1, ceil_mode=ceil), nn.AvgPool2d(2, 1, 1, ceil), nn.Identity()]))]
    layers += [Residual(nn.Conv2d(out, out, 3, padding=1), nn.Identity()), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    head = [nn.BatchNorm1d(4 * out, track_running_stats=False), nn.GroupNorm(2, 4 * out), nn.Identity()]
    return nn.Sequential(*layers, draw(st.sampled_from(head)), nn.Linear(4 * out, CLASSES, bias=draw(st.booleans())))


@given(module=drawn_networks(), data=st.data(), rng=generators)
def test_any_settings_of_the_layers(module: nn.Sequential, data: st.DataObject, rng: np.random.Generator):
    assert uncovered(module) is None
    problem, s = data.draw(problems(module, SHAPE, ipc=2))
    theta, xi = jittered(problem.init(rng), rng), problem.draw(rng)
    c = along(theta, rng)
    h_c, m_c = problem.second_order(theta, s, xi, c)
    assert relative_error(h_c + m_c, by_double_backward(problem, theta, s, xi, c)) <= 1e-10


class Doubled(nn.ReLU):
    """A subclass need not be what its parent is."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(z)


def scale_alone() -> nn.GroupNorm:
    norm = nn.GroupNorm(3, 3)
    norm.register_parameter("bias", None)
    return norm


UNCOVERED = {
    "GELU": nn.GELU(),
    "Doubled": Doubled(),
    "padding_mode=circular": nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
    "GroupNorm": scale_alone(),
    "BatchNorm3d": nn.Sequential(nn.Unflatten(2, (2, 7)), nn.BatchNorm3d(3, track_running_stats=False), nn.Flatten(2, 3)),
}


@pytest.mark.parametrize("words", UNCOVERED)
def test_other_modules_fall_back_to_autograd_or_are_refused(words: str):
    module = nn.Sequential(nn.Conv2d(2, 3, 3), Residual(UNCOVERED[words], nn.Identity()), nn.Flatten(), nn.Linear(588, CLASSES))
    problem = ModuleProblem(module, CLASSES, 2, None, Augment("flip"), dtype=torch.float64)
    rng = np.random.default_rng(3)
    s = along((torch.zeros(6, *SHAPE), torch.zeros(6, CLASSES)), rng)
    theta, xi = problem.init(rng), problem.draw(rng)
    c = along(theta, rng)
    h_c, m_c = problem.second_order(theta, s, xi, c)
    assert relative_error(h_c + m_c, by_double_backward(problem, theta, s, xi, c)) <= 1e-12
    with pytest.raises(ValueError, match="no fast product: no derivative rule for the layer"):
        derivatives(module, "fast")


def shared_layer() -> nn.Sequential:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(512, CLASSES))


def hooked() -> nn.Sequential:
    module = FAMILIES["mlp"]()
    module[1].register_forward_hook(lambda part, inputs, output: output * output)
    return module


@pytest.mark.parametrize(("build", "words"), [(shared_layer, "two places"), (hooked, "hooks")])
def test_networks_that_are_more_than_their_layers_fall_back(build: Callable[[], nn.Sequential], words: str):
    module = build()
    problem = ModuleProblem(module, CLASSES, 2, torch.arange(CLASSES).repeat_interleave(2), Augment("none"), dtype=torch.float64)
    rng = np.random.default_rng(4)
    s = along((torch.zeros(6, *SHAPE),), rng)
    theta, xi = problem.init(rng), problem.draw(rng)
    c = along(theta, rng)
    h_c, m_c = problem.second_order(theta, s, xi, c)
    assert relative_error(h_c + m_c, by_double_backward(problem, theta, s, xi, c)) <= 1e-12
    with pytest.raises(ValueError, match=words):
        derivatives(module, "fast")


def test_unknown_products_are_refused():
    with pytest.raises(ValueError, match="'quick'"):
        derivatives(smooth_network(), "quick")


@given(rng=generators)
def test_rows_of_soft_labels_need_not_sum_to_one(rng: np.random.Generator):
    module = FAMILIES["mlp"]()
    labels = torch.from_numpy(rng.uniform(0.0, 2.0, (CLASSES, CLASSES)))
    problem = ModuleProblem(module, CLASSES, 1, labels, Augment("none"), dtype=torch.float64)
    s = along((torch.zeros(CLASSES, *SHAPE),), rng)
    theta, xi = problem.init(rng), problem.draw(rng)
    c = along(theta, rng)
    h_c, m_c = problem.second_order(theta, s, xi, c)
    assert relative_error(h_c + m_c, by_double_backward(problem, theta, s, xi, c)) <= 1e-10


@pytest.mark.parametrize("family", [name for name in FAMILIES if by_image(FAMILIES[name]())])
@pytest.mark.parametrize("images", [1, 3, 4, 7])
def test_in_chunks_nothing_changes(family: str, images: int):
    """Seven images, at most so many at a time; with fixed labels and with learned ones."""
    rng, module = np.random.default_rng(7), FAMILIES[family]()
    whole = derivatives(module)
    parts = in_chunks(whole, images * SHAPE[1] * SHAPE[2])
    theta, c = (along(tuple(module.parameters()), rng) for _ in range(2))
    s = along((torch.zeros(7, *SHAPE), torch.zeros(7, CLASSES)), rng)
    for batch, p in ((s, None), (s[:1], s[1].softmax(1))):
        assert relative_error(parts.gradient(theta, batch, p), whole.gradient(theta, batch, p)) <= 1e-12
        for x, y in zip(parts.products(theta, batch, p, c), whole.products(theta, batch, p, c), strict=True):
            assert relative_error(x, y) <= 1e-12
        assert relative_error(parts.mixed(theta, batch, p, c), whole.mixed(theta, batch, p, c)) <= 1e-12


def test_a_chunk_has_at_most_so_many_pixels_and_at_least_one_image():
    seen: list[int] = []

    def gradient(theta: Tensors, batch: Tensors, p: torch.Tensor) -> Tensors:
        assert len(batch[0]) == len(p)
        seen.append(len(p))
        return (batch[0].sum(0) / len(p),)

    step = StepDerivatives(gradient, gradient, gradient)
    images = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 2, 4, 5)
    for pixels, expected in ((1, [1] * 12), (20, [1] * 12), (100, [4, 4, 4]), (140, [6, 6]), (239, [6, 6]), (240, [12]), (10**9, [12])):
        seen.clear()
        (mean,) = in_chunks(step, pixels).gradient((), (images,), torch.zeros(12))
        assert seen == expected
        assert float(mean[0, 0, 0]) == pytest.approx(5.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_that_look_across_images_are_never_cut(family: str, monkeypatch: pytest.MonkeyPatch):
    """Batch norm, and what nobody knows the layers of."""
    module = FAMILIES[family]()
    crossing = any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert by_image(module) != crossing
    assert not by_image(nn.Sequential(module, nn.Softplus()))
    monkeypatch.setattr(bridge, "PIXELS", 1)
    problem = ModuleProblem(module, CLASSES, 2, None, Augment("none"), dtype=torch.float64)
    rng = np.random.default_rng(8)
    s = along((torch.zeros(6, *SHAPE), torch.zeros(6, CLASSES)), rng)
    theta, xi = jittered(problem.init(rng), rng), Batch(None, None)
    c = along(theta, rng)
    assert relative_error(sum(problem.second_order(theta, s, xi, c), ()), by_double_backward(problem, theta, s, xi, c)) <= 1e-10


@pytest.mark.skipif(not compiler_here(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_step_and_product_equal_the_plain_ones_and_compile_once():
    plain, compiled = (
        ModuleProblem(
            FAMILIES["convnet-max"](), CLASSES, 3, None, Augment("flip-rotate"), 2, dtype=torch.float64, product="fast", compiled=compiled
        )
        for compiled in (False, True)
    )
    rng = np.random.default_rng(5)

    def errors() -> list[float]:
        s = along((torch.zeros(9, *SHAPE), torch.zeros(9, CLASSES)), rng)
        theta, xi = jittered(plain.init(rng), rng), plain.draw(rng)
        c = along(theta, rng)
        pairs = [(problem.gradient(theta, s, xi), *problem.second_order(theta, s, xi, c)) for problem in (compiled, plain)]
        return [relative_error(a, b) for a, b in zip(*pairs, strict=True)]

    assert max(errors()) <= 1e-10
    with torch.compiler.set_stance("fail_on_recompile"):
        assert max(max(errors()) for _ in range(3)) <= 1e-10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_product_replays_on_new_numbers():
    module = FAMILIES["convnet-instance"]()
    plain, captured = (derivatives(module, "fast", captured=captured) for captured in (False, True))
    rng, shapes = np.random.default_rng(6), tuple(p.detach() for p in module.parameters())
    for _ in range(3):
        drawn = along(shapes, rng), along((torch.zeros(6, *SHAPE), torch.zeros(6, CLASSES)), rng), along(shapes, rng)
        theta, batch, c = (leaf(tuple(q.cuda() for q in x)) for x in drawn)
        for a, b in zip(plain.products(theta, batch, None, c), captured.products(theta, batch, None, c), strict=True):
            assert relative_error(b, a) <= 1e-10
        assert relative_error(captured.gradient(theta, batch, None), plain.gradient(theta, batch, None)) <= 1e-10
