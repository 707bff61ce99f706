"""The gradient of trajectory matching from stored states, against one graph over all N steps as the released codes hold it.

ConvNet-3 with instance norm, 32 pixels, 10 images a class, plain gradient descent, no warps; gradient in images and step size on both
sides, from the same expert snapshots. Sizes:

    reduced     width 16, N = 8: seconds; equality in float64, memory, a table without meaning for the clock
    full        width 128, N = 50, float32: some minutes on two quiet cores, 3 GB of memory

    pytest tests/benchmarks/test_trajectory.py -s -k full --benchmark-json=results/trajectory-benchmark.json

Where the rival's graph of N steps is not held (full), its time and memory are read off a line through shorter runs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from realdata.augment import Augment
from realdata.bridge import ModuleProblem, Tensors
from realdata.compare.probe import peak_bytes
from realdata.compiled import compiler_here
from realdata.networks import ConvNetConfig, convnet
from realdata.second_order import forward
from sims.lab.report import markdown_table, number
from tests.oracles import relative_error
from theory.distill.adjoint import sweep, unroll
from theory.distill.inner_optim import SGD
from theory.distill.trajectory import Segment, StartRange, TrajectoryMatching
from theory.distill.truncation import Window

CPU = torch.device("cpu")
IPC, LR = 10, 0.01


@dataclass(frozen=True)
class Size:
    """`fitted`: steps of the rival that are run, and continued by a line; `short`, `long`: ours, for the growth of memory."""

    width: int
    steps: int
    fitted: tuple[int, ...]
    short: int
    long: int
    rounds: int


SIZES = {"reduced": Size(16, 8, (2, 4, 8), 4, 20, 1), "full": Size(128, 50, (2, 4, 6), 10, 50, 3)}


class Scene:
    """One segment for both sides: a start and a target that are random networks, a set of noise."""

    def __init__(self, width: int, dtype: torch.dtype, *, compiled: bool) -> None:
        rng = np.random.default_rng(0)
        self.labels = torch.arange(10).repeat_interleave(IPC)
        self.module = convnet(ConvNetConfig(width=width), (3, 32, 32), 10)
        self.problem = ModuleProblem(self.module, 10, IPC, self.labels, Augment("none"), dtype=dtype, compiled=compiled)
        self.s = torch.from_numpy(rng.standard_normal((10 * IPC, 3, 32, 32))).to(dtype)
        self.segment = Segment(self.problem.init(rng), self.problem.init(rng), 0, 0)
        self.objective = TrajectoryMatching(self, StartRange(1), 1)
        self.draws = [self.problem.draw(rng) for _ in range(max(size.long for size in SIZES.values()))]

    count, epochs = 1, 1

    def snapshot(self, expert: int, epoch: int) -> Tensors:
        return self.segment.target if epoch else self.segment.start

    def ours(self, steps: int) -> tuple[Tensors, int]:
        """(gradient in images and log step size, bytes of stored states)."""
        s, inner = (self.s,), SGD(LR)
        tape = unroll(self.problem, inner, s, self.segment.start, self.draws[:steps], Window(0, steps))
        lam = self.objective.value_and_grad(tape.end.theta, s, self.segment)[1]
        found = sweep(self.problem, inner, s, tape, lam)
        return (*found.grad_s, found.grad_log_lr), tape.cost.stored_floats * self.s.element_size()

    def rival(self, steps: int) -> Tensors:
        """The same from one graph."""
        s, log_lr = self.s.clone().requires_grad_(), torch.tensor(LR, dtype=self.s.dtype).log().requires_grad_()
        theta = tuple(p.clone().requires_grad_() for p in self.segment.start)
        for _ in range(steps):
            g = torch.autograd.grad(F.cross_entropy(forward(self.module, theta, s), self.labels), theta, create_graph=True)
            theta = tuple(p - log_lr.exp() * q for p, q in zip(theta, g, strict=True))
        span = sum(((a - b) ** 2).sum() for a, b in zip(self.segment.start, self.segment.target, strict=True))
        gap = sum(((a - b) ** 2).sum() for a, b in zip(theta, self.segment.target, strict=True))
        return torch.autograd.grad(gap / span, (s, log_lr))


def test_both_sides_make_the_same_gradient():
    scene = Scene(8, torch.float64, compiled=False)
    (images, step), (their_images, their_step) = scene.ours(6)[0], scene.rival(6)
    assert relative_error((images,), (their_images,)) <= 1e-10
    assert float(step) == pytest.approx(float(their_step), rel=1e-10)


def on_line(x: tuple[int, ...], y: list[float], at: int) -> float:
    """The least-squares line through the points, at `at`."""
    slope, level = np.polyfit(x, y, 1)
    return float(slope * at + level)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("size", SIZES)
def test_stored_states_against_one_graph(benchmark: Any, size: str, compiled: bool):
    if compiled and not compiler_here(CPU):
        pytest.skip("no C++ compiler here")
    asked = SIZES[size]
    scene = Scene(asked.width, torch.float32, compiled=compiled)
    scene.ours(2)  # compiles, where asked
    mine: list[float] = []
    theirs: dict[int, list[float]] = {steps: [] for steps in asked.fitted}
    for _ in range(asked.rounds):
        mine.append(seconds(lambda: scene.ours(asked.steps)))
        for steps, found in theirs.items():
            found.append(seconds(lambda steps=steps: scene.rival(steps)))
    held = {steps: peak_bytes(lambda steps=steps: scene.ours(steps), CPU) for steps in (asked.short, asked.steps, asked.long)}
    graph = [float(peak_bytes(lambda steps=steps: scene.rival(steps), CPU)) for steps in asked.fitted]
    rival = on_line(asked.fitted, graph, asked.steps), on_line(asked.fitted, [float(np.median(x)) for x in theirs.values()], asked.steps)
    stored = scene.ours(2)[1] / 2
    growth = held[asked.long] / (held[asked.short] + stored * (asked.long - asked.short))
    ours = float(held[asked.steps]), float(np.median(mine))
    rows = [
        ("peak, MiB", number(ours[0] / 2**20), number(rival[0] / 2**20), number(rival[0] / ours[0]), ">= 3"),
        ("time, s", number(ours[1]), number(rival[1]), number(ours[1] / rival[1]), "<= 1.2"),
        (f"memory at N = {asked.long} / (N = {asked.short} + states)", number(growth), None, None, "<= 1.1"),
        ("stored a step, MiB", number(stored / 2**20), None, None, None),
    ]
    print(f"\nwidth {asked.width}, N = {asked.steps}, {IPC} images a class, {torch.get_num_threads()} threads")
    print(markdown_table(("", "ours", "one graph", "ratio", "target"), rows))
    benchmark.extra_info |= {"size": size, "compiled": compiled, "ours": ours, "rival": rival, "growth": growth, "stored": stored}
    benchmark.pedantic(lambda: scene.ours(1), rounds=1)
    assert ours[0] < rival[0] / (3 if size == "full" else 1)
    assert ours[1] <= 1.2 * rival[1] or size != "full"
    assert growth <= 1.1
