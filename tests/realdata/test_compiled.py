"""A compiled inner optimiser: the plain one's numbers at every step, compiled once, in a whole meta-gradient too."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realdata.augment import Augment
from realdata.bridge import ModuleProblem, RealImages
from realdata.compiled import CompiledOptimiser, compiled_optimiser, compiler_here, put
from realdata.networks import ConvNetConfig, convnet
from tests.oracles import relative_error
from tests.strategies import generators
from theory.distill.adjoint import sweep, unroll
from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.leaves import Leaves
from theory.distill.truncation import Window

CPU = torch.device("cpu")
SHAPES = (3, 2, 2), (4,), ()
WITH_SLOTS = {"adam": Adam(0.01), "momentum": Momentum(0.1, 0.8, 1e-3)}
pytestmark = pytest.mark.skipif(not compiler_here(CPU), reason="no C++ compiler")


def drawn(rng: np.random.Generator, device: torch.device) -> Leaves:
    return tuple(torch.from_numpy(rng.standard_normal(shape)).to(device) for shape in SHAPES)


def differences(plain: InnerOptimiser, compiled: InnerOptimiser, t: int, rng: np.random.Generator, device: torch.device) -> list[float]:
    """Of everything that an optimiser gives, at one point."""
    theta, g, lam, before = (drawn(rng, device) for _ in range(4))
    slots = plain.step(theta, plain.init(theta), 0, before)[1]
    mu = tuple(drawn(rng, device) for _ in slots)
    found = []
    for optimiser in (plain, compiled):
        theta_next, slots_next = optimiser.step(theta, slots, t, g)
        back = optimiser.adjoint(theta, slots, t, g, lam, mu)
        recovered = optimiser.recovered(theta, slots, slots_next)
        assert recovered is not None
        found.append((theta_next, *slots_next, recovered, back.lam, *back.slots, back.c, (back.d_lr,)))
    return [relative_error(x, y) for x, y in zip(*found, strict=True)]


def agrees(name: str, device: torch.device) -> None:
    plain, rng = WITH_SLOTS[name], np.random.default_rng(0)
    compiled = compiled_optimiser(plain, device)
    assert isinstance(compiled, CompiledOptimiser)
    assert compiled.lr == plain.lr
    assert max(differences(plain, compiled, 0, rng, device)) <= 1e-12
    with torch.compiler.set_stance("fail_on_recompile"):
        assert max(max(differences(plain, compiled, t, rng, device)) for t in (1, 2, 50, 2000)) <= 1e-12


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_it_gives_the_numbers_of_the_plain_one_at_every_step_and_compiles_once(name: str):
    agrees(name, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", WITH_SLOTS)
def test_on_a_gpu_it_is_replayed_on_new_numbers(name: str):
    agrees(name, torch.device("cuda"))


def test_without_slots_there_is_nothing_to_gain():
    assert compiled_optimiser(SGD(0.1), CPU) == SGD(0.1)


@given(rng=generators, kinds=st.lists(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]), max_size=6))
def test_put_copies_every_kind_of_number_and_keeps_the_places(rng: np.random.Generator, kinds: list[torch.dtype]):
    values = tuple(torch.from_numpy(rng.integers(0, 2, (2, k % 3))).to(kind) for k, kind in enumerate(kinds))
    nested, places = (values[:2], None, values[2:]), tuple(torch.zeros_like(x) for x in values)
    put((places[:2], None, places[2:]), nested)
    assert all(torch.equal(place, x) and place is not x for place, x in zip(places, values, strict=True))


def outer_step(device: torch.device, compiled: bool) -> tuple[torch.Tensor, ...]:
    """A window of Adam's steps on learned labels, sub-batches, warps, a real batch in chunks: what an outer step asks of a device."""
    rng, place = np.random.default_rng(2), {"dtype": torch.float64, "device": device}
    module = convnet(ConvNetConfig(2, 4), (1, 8, 8), 3)
    problem = ModuleProblem(module, 3, 3, None, Augment("flip-rotate"), 2, compiled=compiled, **place)
    s = tuple(torch.from_numpy(rng.standard_normal(shape)).to(**place) for shape in ((9, 1, 8, 8), (9, 3)))
    images, labels = torch.from_numpy(rng.standard_normal((20, 1, 8, 8))).to(**place), torch.from_numpy(rng.integers(0, 3, 20)).to(device)
    real = RealImages(module, images, labels, 14, Augment("flip-rotate"), 4, compiled=compiled)
    optimiser = compiled_optimiser(Adam(0.01), device) if compiled else Adam(0.01)
    theta, draws, xi = problem.init(rng), [problem.draw(rng) for _ in range(6)], real.draw(rng)
    tape = unroll(problem, optimiser, s, theta, draws, Window(2, 6))
    value, lam = real.loss_and_gradient(tape.end.theta, xi)
    swept = sweep(problem, optimiser, s, tape, lam)
    return *swept.grad_s, torch.tensor(value), *swept.lam


def test_a_compiled_outer_step_is_the_plain_one():
    assert relative_error(outer_step(CPU, True), outer_step(CPU, False)) <= 1e-9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_outer_step_on_a_gpu_is_that_of_a_processor():
    expected = outer_step(CPU, False)
    for compiled in (False, True):
        assert relative_error(tuple(x.cpu() for x in outer_step(torch.device("cuda"), compiled)), expected) <= 1e-8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_waits_for_the_gpu():
    """Once captured, neither a step nor its product has a word for the host."""
    device, rng = torch.device("cuda"), np.random.default_rng(3)
    module = convnet(ConvNetConfig(2, 4), (1, 8, 8), 3)
    problem = ModuleProblem(module, 3, 3, None, Augment("flip-rotate"), 2, device=device, compiled=True)
    s = tuple(torch.from_numpy(rng.standard_normal(shape)).to(device, torch.float32) for shape in ((9, 1, 8, 8), (9, 3)))
    optimiser, theta = compiled_optimiser(Adam(0.01), device), problem.init(rng)
    slots, mu = optimiser.init(theta), optimiser.init(theta)

    def steps() -> None:
        for t in range(4):
            xi = problem.draw(rng)
            g = problem.gradient(theta, s, xi)
            after = optimiser.step(theta, slots, t, g)[1]
            c = optimiser.adjoint(theta, slots, t, optimiser.recovered(theta, slots, after) or g, g, mu).c
            problem.second_order(theta, s, xi, c)

    steps()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
