"""Options of truncated backpropagation on images: classes drawn for each step, patches held together, a stage that stays, memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realdata import data, task
from realdata.augment import Augment
from realdata.bridge import ModuleProblem
from realdata.compare.probe import peak_bytes
from realdata.config import DistillConfig
from realdata.networks import ConvNetConfig, convnet
from realdata.preprocess import Standardise
from realdata.task import Split, build
from sims.lab.files import RunError
from tests.oracles import relative_error
from theory.distill.adjoint import sweep, unroll
from theory.distill.distiller import distil, meta_gradient, start
from theory.distill.inner_optim import SGD, Adam
from theory.distill.patches import Aligned, alignment
from theory.distill.patches import split as split_in
from theory.distill.stages import Stage
from theory.distill.truncation import FixedWindow, Window

CPU = torch.device("cpu")
CLASSES, SHAPE = 5, (1, 4, 4)


def problem_of(ipc: int, k: int | None, n: int | None) -> ModuleProblem:
    module = convnet(ConvNetConfig(depth=1, width=3), SHAPE, CLASSES)
    labels = torch.arange(CLASSES).repeat_interleave(ipc)
    return ModuleProblem(module, CLASSES, ipc, labels, Augment("flip"), k, dtype=torch.float64, classes_per_step=n)


@given(seed=st.integers(0, 2**32 - 1), ipc=st.integers(1, 3), n=st.none() | st.integers(1, CLASSES), data=st.data())
def test_a_step_sees_as_many_classes_and_images_of_each_as_asked(seed: int, ipc: int, n: int | None, data: st.DataObject):
    k = data.draw(st.none() | st.integers(1, ipc))
    xi = problem_of(ipc, k, n).draw(np.random.default_rng(seed))
    if n in (None, CLASSES) and k in (None, ipc):
        assert xi.rows is None
        return
    assert xi.rows is not None
    assert len(set(xi.rows.tolist())) == len(xi.rows) == (n or CLASSES) * (k or ipc)
    classes, counts = np.unique(xi.rows // ipc, return_counts=True)
    assert len(classes) == (n or CLASSES)
    assert set(counts) == {k or ipc}
    if n in (None, CLASSES):  # no class is drawn, so the draws are those of a problem without the option
        other = problem_of(ipc, k, None).draw(np.random.default_rng(seed))
        assert np.array_equal(xi.rows, other.rows)
        assert xi.warp is not None
        assert other.warp is not None
        assert np.array_equal(xi.warp.parameters, other.warp.parameters)


def test_every_class_is_drawn_alike():
    problem, rng = problem_of(1, None, 2), np.random.default_rng(0)
    counts = np.bincount(np.concatenate([problem.draw(rng).rows for _ in range(2000)]), minlength=CLASSES)
    assert np.all(np.abs(counts - 800) < 5 * (2000 * 0.4 * 0.6) ** 0.5)


@pytest.mark.parametrize("n", [0, CLASSES + 1])
def test_impossible_numbers_of_classes_are_refused(n: int):
    with pytest.raises(ValueError, match=f"classes_per_step={n}"):
        problem_of(1, None, n)


def test_classes_outside_the_window_have_exactly_no_gradient():
    problem, rng = problem_of(2, 1, 1), np.random.default_rng(0)
    s = (torch.from_numpy(rng.standard_normal((2 * CLASSES, *SHAPE))),)
    theta, noises = problem.init(rng), [problem.draw(rng) for _ in range(2)]
    tape = unroll(problem, Adam(0.01), s, theta, noises, Window(0, 2))
    grad = sweep(problem, Adam(0.01), s, tape, tuple(torch.ones_like(p) for p in theta)).grad_s[0]
    seen = {int(row) for xi in noises for row in xi.rows}
    moved = {row for row in range(len(grad)) if float(grad[row].abs().max()) > 0}
    assert moved == seen


@pytest.mark.parametrize("optimiser", [SGD(0.01), Adam(0.01)], ids=["sgd", "adam"])
def test_memory_of_a_meta_gradient_is_one_step_and_the_states_it_stores(optimiser: SGD | Adam):
    """T3: sixteen steps take what four do, and twelve states more; a graph a step would take several times that."""
    module = convnet(ConvNetConfig(depth=1, width=8), (3, 8, 8), 10)
    problem = ModuleProblem(module, 10, 2, torch.arange(10).repeat_interleave(2), Augment("flip-rotate"))
    rng = np.random.default_rng(0)
    s, theta = (torch.from_numpy(rng.standard_normal((20, 3, 8, 8), dtype=np.float32)),), problem.init(rng)
    noises = [problem.draw(rng) for _ in range(16)]

    def held(steps: int) -> tuple[int, int]:
        stored = []

        def work() -> None:
            tape = unroll(problem, optimiser, s, theta, noises, Window(0, steps))
            stored.append(4 * tape.cost.stored_floats)
            sweep(problem, optimiser, s, tape, theta)

        work()
        return peak_bytes(work, CPU), stored[0]

    (short, kept), (long, more) = held(4), held(16)
    assert long <= 1.1 * (short + more - kept)
    graph = 20 * 8 * 64 * 4 * 4  # at least four float32 arrays of the first block's size, saved for each step
    assert long - short < 12 * graph


class TestPatches:
    config = DistillConfig("mnist", ipc=2, horizon=4, window=2, outer_steps=10, real_batch=8, init="real", patches=4, alignment=0.5)
    config = replace(config, network=ConvNetConfig(depth=1, width=2), transform="standardise")

    def split(self) -> Split:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
        parts = data.ImageSet(images, np.arange(60) % 10, tuple("abcdefghij"))
        return Split(parts.subset(np.arange(40)), parts.subset(np.arange(40, 60)), data.source("mnist"))

    def test_the_weight_adds_its_term_and_zero_leaves_the_objective_alone(self):
        transform = Standardise(np.zeros(1, np.float32), np.ones(1, np.float32))
        made = [build(replace(self.config, alignment=weight), self.split(), transform, CPU, 64) for weight in (0.0, 0.5)]
        assert [isinstance(t.objective, Aligned) for t in made] == [False, True]
        plain, held = (meta_gradient(t.problem, t.objective, t.distiller, t.first, np.random.SeedSequence(1)) for t in made)
        value, pull = alignment(made[0].first[0], 10, 4)
        assert held.value - plain.value == pytest.approx(0.5 * value, rel=1e-4)
        assert relative_error((held.grad_s[0] - plain.grad_s[0],), (0.5 * pull,)) <= 1e-3

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"patches": 3}, "patches=3"),
            ({"patches": 3, "alignment": 0.0, "by_patch": True}, "patches=3"),
            ({"alignment": 0.0, "by_patch": True, "method": "dc"}, "leave out --by-patch"),
            ({"alignment": -1.0}, "alignment=-1.0"),
            ({"classes_per_step": 11}, "classes_per_step=11"),
        ],
    )
    def test_what_does_not_fit_the_data_set_is_refused(self, changes: dict, words: str):
        with pytest.raises(RunError, match=words):
            replace(self.config, **changes)


def test_a_fixed_window_starts_where_it_is_asked_to():
    config = DistillConfig("mnist", method="t-bptt", horizon=30, window=12)
    assert config.windows() == FixedWindow(30, 12)
    assert replace(config, window_start=5).windows().draw(np.random.default_rng(0)) == Window(5, 17)
    with pytest.raises(ValueError, match="start=19"):
        replace(config, window_start=19)


def test_by_patch_a_run_moves_one_place_an_update():
    config = replace(TestPatches.config, by_patch=True, patches=2)
    transform = Standardise(np.zeros(1, np.float32), np.ones(1, np.float32))
    made = build(config, TestPatches().split(), transform, CPU, 64)
    before = made.first[0]
    for k, record in enumerate(distil(made.problem, made.objective, made.distiller, start(made.distiller, made.first), 0, 5)):
        moved = split_in(record.state.s[0] - before, 2).abs().amax(dim=(0, 2, 3, 4)) > 0
        assert moved.tolist() == [place == k % 4 for place in range(4)]
        before = record.state.s[0]


def test_settings_reach_the_problem_and_the_first_stage():
    config = DistillConfig("mnist", ipc=3, batch_per_class=2, classes_per_step=4, method="at-bptt")
    problem = task.training_problem(config, None, CPU)
    assert (problem.batch_per_class, problem.classes_per_step) == (2, 4)
    assert config.first_stage is Stage.EARLY
    for stage in Stage:
        held = replace(config, adaptive=replace(config.adaptive, stage=stage.value))
        assert (held.first_stage, held.clock()) == (stage, None)
    with pytest.raises(RunError, match="unknown stage 'never'"):
        replace(config.adaptive, stage="never")


def test_first_noise_images_have_the_norm_asked_for():
    """T18: each image by itself."""
    config = replace(TestPatches.config, init="noise", init_norm=2.5, alignment=0.0)
    images = torch.zeros((3, 1, 28, 28))
    (first,) = task.first_set(config, images, np.zeros(3, np.int64), CPU)
    assert torch.allclose(torch.linalg.vector_norm(first.flatten(1), dim=1), torch.full((20,), 2.5))
    assert len({float(x) for x in first[:, 0, 0, 0]}) == 20


@pytest.mark.parametrize("rank", [None, 0, 2])
def test_a_built_task_has_the_clip_the_hessian_and_the_optimisers_it_was_asked_for(rank: int | None):
    """By what its first two updates did."""
    config = replace(TestPatches.config, alignment=0.0, hessian_rank=rank, window=2, outer_lr=0.5)
    transform = Standardise(np.zeros(1, np.float32), np.ones(1, np.float32))
    made = build(config, TestPatches().split(), transform, CPU, 64)
    first, second = distil(made.problem, made.objective, made.distiller, start(made.distiller, made.first), 0, 2)
    assert first.state.clip_average == pytest.approx(first.grad_norm)
    assert second.state.clip_average == pytest.approx(0.9 * first.grad_norm + 0.1 * second.grad_norm)
    assert (first.cost.products, first.cost.mixed) == ((2, 0) if rank is None else (0, 2))
    assert (first.cost.hessian_products > 0) == bool(rank)
    # Adam's first update is the learning rate, wherever the gradient is not 0.
    moved = (first.state.s[0] - made.first[0]).abs()
    assert float(moved[moved > 0].median()) == pytest.approx(0.5, rel=1e-3)
