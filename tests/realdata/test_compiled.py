"""A compiled inner optimiser: the plain one's numbers at every step, compiled once, in a whole meta-gradient too."""

import numpy as np
import pytest
import torch

from realdata.augment import Augment
from realdata.bridge import ModuleProblem
from realdata.compiled import CompiledOptimiser, compiled_optimiser, compiler_here
from realdata.networks import ConvNetConfig, convnet
from tests.oracles import relative_error
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


def test_a_meta_gradient_is_the_same():
    rng = np.random.default_rng(1)
    problem = ModuleProblem(convnet(ConvNetConfig(2, 2), (1, 8, 8), 3), 3, 1, torch.arange(3), Augment("none"), dtype=torch.float64)
    s, theta = (torch.from_numpy(rng.standard_normal((3, 1, 8, 8))),), problem.init(rng)
    lam, draws = tuple(torch.from_numpy(rng.standard_normal(p.shape)) for p in theta), [problem.draw(rng) for _ in range(5)]
    found = []
    for optimiser in (Adam(0.01), compiled_optimiser(Adam(0.01), CPU)):
        swept = sweep(problem, optimiser, s, unroll(problem, optimiser, s, theta, draws, Window(1, 5)), lam)
        found.append((*swept.grad_s, swept.grad_log_lr, *swept.lam))
    assert relative_error(*found) <= 1e-10
