"""Trajectory and gradient matching on images: exact gradients, what a run leaves, refusals, interruption, first sets."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tyro
from hypothesis import given
from hypothesis import strategies as st

from realdata import cells, data, distill
from realdata.__main__ import Distill, Experts, main
from realdata.artefact import read_set
from realdata.augment import Augment
from realdata.bridge import Batch, ModuleProblem, RealImages, Tensors
from realdata.checkpoint import RunState, read_checkpoint
from realdata.experts import FlatConfig, Recipe, StoredExperts, open_experts
from realdata.experts import run as run_experts
from realdata.experts.quality import Quality
from realdata.gradient_matching import ClassGradients
from realdata.machine import Runtime
from realdata.networks import ConvNetConfig, convnet
from realdata.second_order import forward
from realdata.trajectory import SHARED, understood
from sims.lab.files import RunError
from tests.oracles import one_graph, relative_error
from tests.realdata.test_bridge import CLASSES, batch_of, cross_entropy, problems
from tests.realdata.test_meta_gradient import CONFIG, SHAPE, plain_logits
from tests.strategies import generators
from theory.distill.adjoint import unroll
from theory.distill.curvature import LowRankHessian
from theory.distill.distiller import Distiller, meta_gradient
from theory.distill.inner_optim import SGD
from theory.distill.outer import PerLeaf
from theory.distill.step_size import with_step_size
from theory.distill.trajectory import StartRange, TrajectoryMatching
from theory.distill.truncation import FullWindow, Window

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 300, "test": 40}
NETWORK = ConvNetConfig(depth=2, width=3)
RECIPE = Recipe("mnist", network=NETWORK, transform="standardise", epochs=3, batch=100, lr=0.05)
CPU = torch.device("cpu")
COMMANDS = (("distill", Distill), ("experts", Experts))


@pytest.fixture(scope="module")
def experts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two experts of each kind."""
    store, quality = tmp_path_factory.mktemp("store"), Quality(measured=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], counts=COUNTS))
        recipes = {"plain": RECIPE, "flat": replace(RECIPE, flat=FlatConfig(rho=0.05, alpha=0.3))}
        return {name: run_experts(recipe, 2, root, store, Runtime(threads=1), quality) for name, recipe in recipes.items()} | {
            "store": store
        }


class Drawn:
    """Experts made of noise, in float64."""

    count, epochs = 2, 3

    def __init__(self, problem: ModuleProblem, rng: np.random.Generator) -> None:
        self.runs = [[problem.init(rng) for _ in range(4)] for _ in range(2)]

    def snapshot(self, expert: int, epoch: int) -> Tensors:
        return self.runs[expert][epoch]


@given(drawn=st.data(), rng=generators, alpha=st.floats(1e-3, 0.3), steps=st.integers(1, 4))
def test_the_gradient_in_images_labels_and_step_size_is_that_of_one_graph(
    drawn: st.DataObject, rng: np.random.Generator, alpha: float, steps: int
):
    """A ConvNet, any warps, labels and batches, replayed; float64 to 1e-10. TESLA's equals it for one step only."""
    problem, data = drawn.draw(problems(convnet(CONFIG, SHAPE, CLASSES), SHAPE, ipc=2))
    objective = TrajectoryMatching(Drawn(problem, rng), StartRange(2), 2)
    outer = PerLeaf(tuple(SGD(1.0) for _ in range(len(data) + 1)))
    s, distiller = with_step_size(data, alpha), Distiller(FullWindow(steps), SGD(1.0), outer, learn_step=True)
    seed = int(rng.integers(2**31))
    meta = meta_gradient(problem, objective, distiller, s, np.random.SeedSequence(seed))
    _, _, noise, real, _, _ = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6))
    xi, noises = objective.draw(real), [problem.draw(noise) for _ in range(steps)]
    span = sum(((a - b) ** 2).sum() for a, b in zip(xi.start, xi.target, strict=True))

    def loss(theta: Tensors, s: Tensors, xi: Batch) -> torch.Tensor:
        images, target = batch_of(problem, s, xi)
        return cross_entropy(plain_logits(theta, images), target)

    def distance(theta: Tensors, s: Tensors) -> torch.Tensor:
        return sum(((a - b) ** 2).sum() for a, b in zip(theta, xi.target, strict=True)) / span + 0.0 * sum(x.sum() for x in s)

    reference = one_graph(loss, distance, SGD(alpha), data, xi.start, noises, 0, steps)
    assert meta.value == pytest.approx(reference.value, rel=1e-12)
    assert relative_error(meta.grad_s[:-1], reference.grad_s) <= 1e-10
    assert float(meta.grad_s[-1]) == pytest.approx(reference.grad_log_lr, rel=1e-8, abs=1e-10)
    tesla = meta_gradient(problem, objective, replace(distiller, hessian=LowRankHessian(0)), s, np.random.SeedSequence(seed))
    assert (relative_error(tesla.grad_s, meta.grad_s) <= 1e-10) == (steps == 1)


@pytest.mark.parametrize("name", ["none", "dsa", "flip-rotate"])
def test_gradient_matching_is_the_slope_of_the_cosine_distances(name: str):
    """Against one graph per class and state, with the warps that `draw` fixed; the same warp for real and distilled images."""
    rng, ipc = np.random.default_rng(0), 2
    module = convnet(replace(CONFIG, activation="sigmoid"), SHAPE, CLASSES)
    problem = ModuleProblem(module, CLASSES, ipc, torch.arange(CLASSES).repeat_interleave(ipc), Augment("none"), dtype=torch.float64)
    images, labels = torch.from_numpy(rng.standard_normal((20, *SHAPE))), torch.from_numpy(np.arange(20) % CLASSES)
    rows = tuple(np.flatnonzero(labels.numpy() == c) for c in range(CLASSES))
    objective = ClassGradients(RealImages(module, images, labels, 20, Augment("none")), rows, 4, ipc, Augment(name, shared=True))
    s = (torch.from_numpy(rng.standard_normal((CLASSES * ipc, *SHAPE))),)
    tape = unroll(problem, SGD(0.1), s, problem.init(rng), [problem.draw(rng) for _ in range(2)], Window(0, 2))
    xi = objective.draw(rng)
    value, grad = objective.along(problem, s, tape, xi)
    leaf = s[0].clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for t, entry in enumerate(tape.entries):
        theta = tuple(p.clone().requires_grad_() for p in entry.state.theta)
        for c, (real_rows, seed) in enumerate(xi):
            assert (labels[torch.from_numpy(real_rows)] == c).all()

            def gradient(batch: torch.Tensor, c: int = c, seed: int = seed, theta: Tensors = theta, t: int = t) -> Tensors:
                warp = objective.augment.draw(np.random.default_rng((seed, t)), len(batch))
                logits = forward(module, theta, batch if warp is None else warp(batch))
                return torch.autograd.grad(F.cross_entropy(logits, torch.full((len(batch),), c)), theta, create_graph=True)

            theirs, ours = gradient(images[torch.from_numpy(real_rows)]), gradient(leaf[c * ipc : (c + 1) * ipc])
            for a, b in zip(ours, theirs, strict=True):
                if a.ndim > 1:
                    total = total + (1.0 - F.cosine_similarity(a.flatten(1), b.flatten(1))).sum() / len(tape.entries)
    assert value == pytest.approx(float(total.detach()), rel=1e-9)
    assert relative_error(grad, torch.autograd.grad(total, (leaf,))) <= 1e-8


def words(root: Path, out: Path, experts: Path | None, *more: str) -> list[str]:
    small = "--transform standardise --network.depth 2 --network.width 3 --init real --inner sgd --inner-lr 0.02 --horizon 3"
    curve = "--outer-steps 4 --curve-every 2 --curve-networks 2 --curve-images 20 --trajectory.curve-steps 3"
    segments = "--trajectory.experts 2 --trajectory.high 2 --trajectory.length 1"
    given = [] if experts is None else ["--experts", str(experts)]
    fixed = [*small.split(), *curve.split(), *segments.split(), "--threads", "1", "--checkpoint-every", "1"]
    return ["distill", "--dataset", "mnist", "--root", str(root), "--out", str(out), *given, *fixed, *more]


@pytest.fixture(scope="module")
def finished(root: Path, experts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], counts=COUNTS))
        main(words(root, out, experts["flat"], "--method", "ftd", "--trajectory.ema", "0.9"))
    return out


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(out / "distilled").iterdir(), out / "figures" / "curve.csv"]}


def test_a_run_keeps_its_step_size_its_average_and_its_experts_key(
    root: Path, experts: dict[str, Path], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The average follows S_bar <- d S_bar + (1 - d) S from the first set on; keeping one changes nothing else."""
    distilled = read_set(finished)
    assert distilled.images_ema is not None
    assert distilled.images_ema.shape == distilled.images.shape
    assert distilled.step_size is not None
    assert distilled.step_size != pytest.approx(0.02, rel=1e-6)
    assert distilled.config.trajectory.recipe == experts["flat"].name.split("-")[-1]
    states: list[RunState] = []
    write = distill.write_checkpoint
    monkeypatch.setattr(distill, "write_checkpoint", lambda folder, state: (states.append(state), write(folder, state)))
    main(words(root, tmp_path / "raw", experts["flat"], "--method", "ftd"))
    whole = read_checkpoint(finished, CPU)
    assert whole is not None
    assert whole.outer.s_average is not None
    assert [state.outer.step for state in states] == [0, 1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.outer.s, states[-1].outer.s, strict=True))
    assert [point.mean for point in whole.curve] == [point.mean for point in states[-1].curve]
    assert [point.ema_mean for point in states[-1].curve] == [None] * 3
    assert whole.curve[0].ema_mean == whole.curve[0].mean
    averages = [states[0].outer.s[0]]
    for state in states[1:]:
        averages.append(0.9 * averages[-1] + 0.1 * state.outer.s[0])
    assert torch.allclose(averages[-1], whole.outer.s_average[0], rtol=1e-4, atol=1e-5)
    chosen = max(whole.curve, key=lambda point: point.mean).step
    assert np.array_equal(distilled.images, states[chosen].outer.s[0].numpy())
    assert np.array_equal(distilled.images, read_set(tmp_path / "raw").images)


def test_the_set_and_its_average_are_chosen_each_by_itself(
    root: Path, experts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores = iter([0.1, 0.1, 0.3, 0.2, 0.2, 0.5])  # set and average at steps 0, 2 and 4
    monkeypatch.setattr(distill, "_held_out", lambda *rest: (next(scores), 0.0))
    states: list[RunState] = []
    write = distill.write_checkpoint
    monkeypatch.setattr(distill, "write_checkpoint", lambda folder, state: (states.append(state), write(folder, state)))
    main(words(root, tmp_path, experts["flat"], "--method", "ftd", "--trajectory.ema", "0.9"))
    distilled, last = read_set(tmp_path), states[4].outer
    assert last.s_average is not None
    assert distilled.images_ema is not None
    assert np.array_equal(distilled.images, states[2].outer.s[0].numpy())
    assert np.array_equal(distilled.images_ema, last.s_average[0].numpy())
    assert distilled.optimiser().lr == pytest.approx(float(states[2].outer.s[-1].exp()), rel=1e-6)
    assert distilled.optimiser(average=True).lr == pytest.approx(float(last.s[-1].exp()), rel=1e-6)
    held_out = json.loads((tmp_path / "summary.json").read_text())["held_out"]
    assert (held_out["best"]["step"], held_out["best_average"]["step"]) == (2, 4)


def test_a_shard_damaged_in_mid_run_loses_no_step(
    root: Path, experts: dict[str, Path], finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    command = words(root, tmp_path / "run", experts["flat"], "--method", "ftd", "--trajectory.ema", "0.9", "--checkpoint-every", "100")
    snapshot, asked = StoredExperts.snapshot, []

    def damaged(self: StoredExperts, *place: Any) -> Any:
        asked.append(place)
        if len(asked) > 5:  # two an outer step
            raise RunError("a shard is damaged")
        return snapshot(self, *place)

    with monkeypatch.context() as patch:
        patch.setattr(StoredExperts, "snapshot", damaged)
        with pytest.raises(SystemExit):
            main(command)
    assert "a shard is damaged" in capfd.readouterr().err
    state = read_checkpoint(tmp_path / "run", CPU)
    assert state is not None
    assert state.outer.step == 2
    main(command)
    assert results(tmp_path / "run") == results(finished)


def test_interrupted_and_run_again(root: Path, experts: dict[str, Path], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = distill.distil

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for record in original(*arguments):
            yield record
            if record.step == 2:
                raise KeyboardInterrupt

    command = words(root, tmp_path / "run", experts["flat"], "--method", "ftd", "--trajectory.ema", "0.9")
    with monkeypatch.context() as patch:
        patch.setattr(distill, "distil", interrupted)
        with pytest.raises(SystemExit):
            main(command)
    main(command)
    assert results(tmp_path / "run") == results(finished)
    main(words(root, tmp_path / "run", None, "--method", "ftd", "--trajectory.ema", "0.9"))  # a finished run asks for no experts


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        (None, ["--method", "mtt"], "give their folder as --experts"),
        ("flat", ["--method", "mtt"], "are flat (rho = 0.05), mtt takes the others: use --method ftd"),
        ("plain", ["--method", "ftd"], "are plain (rho = 0.0), ftd takes the others: use --method mtt"),
        ("plain", ["--method", "mtt", "--trajectory.experts", "3"], "2 complete experts, 3 are asked for"),
        ("plain", ["--method", "mtt", "--trajectory.length", "3"], "would end at epoch 4, the experts at 3"),
        ("plain", ["--method", "mtt", "--network.width", "4"], "have network ="),
        ("plain", ["--method", "mtt", "--transform", "zca"], "have transform = standardise, the run has zca"),
        ("plain", ["--method", "mtt", "--held-out", "0.2"], "have held_out = 0.1, the run has 0.2"),
        ("plain", ["--method", "mtt", "--trajectory.recipe", "abc"], "the run asks for abc"),
        ("plain", ["--method", "mtt", "--inner", "adam"], "inner=adam, use --inner sgd"),
        ("store", ["--method", "tesla"], "has 2 recipes that tesla can take here (mnist-flat-"),
        ("store", ["--method", "mtt", "--network.depth", "1"], "has 0 recipes that mtt can take here (none)"),
        ("plain", ["--method", "datm"], "datm learns the labels"),
        ("plain", ["--method", "mtt", "--trajectory.batch", "11"], "batch=11"),
        ("plain", ["--method", "mtt", "--trajectory.image-lr", "-1"], "image_lr=-1"),
        ("plain", ["--method", "mtt", "--trajectory.ema", "1"], "ema=1"),
        ("plain", ["--method", "mtt", "--trajectory.low", "2"], "low=2"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(
    root: Path, experts: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str | None, more: list[str], said: str
):
    with pytest.raises(SystemExit) as caught:
        main(words(root, tmp_path / "run", None if kind is None else experts[kind], *more))
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("distil ", "note: "))]
    assert caught.value.code == 2, lines
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_step_size_neither_turns_negative_nor_explodes(
    root: Path, experts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However large the rate is, it at most doubles or halves in an update."""
    sizes: list[float] = []
    write = distill.write_checkpoint
    monkeypatch.setattr(distill, "write_checkpoint", lambda folder, state: (sizes.append(float(state.outer.s[-1])), write(folder, state)))
    main(words(root, tmp_path, experts["plain"], "--method", "mtt", "--trajectory.step-lr", "1e9"))
    assert len(sizes) == 5
    assert np.allclose(np.abs(np.diff(sizes)), np.log(2.0), rtol=1e-5)


def test_images_that_explode_are_named_and_the_set_is_kept(
    root: Path, experts: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        main(words(root, tmp_path, experts["plain"], "--method", "mtt", "--trajectory.image-lr", "1e36"))
    assert caught.value.code == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "error: outer step 0: outer update diverged: ||S|| = inf after it; lower the outer step size; " in line
    assert "with a lower --trajectory.image-lr (now 1e+36), --trajectory.step-lr" in line
    state = read_checkpoint(tmp_path, CPU)
    assert state is not None
    assert state.outer.step == 0
    assert torch.isfinite(state.outer.s[0]).all()


def test_a_store_gives_the_one_recipe_that_fits(root: Path, experts: dict[str, Path], tmp_path: Path):
    for method, kind in (("mtt", "plain"), ("ftd", "flat")):
        main(words(root, tmp_path / method, experts["store"], "--method", method, "--outer-steps", "1"))
        assert read_set(tmp_path / method).config.trajectory.recipe == experts[kind].name.split("-")[-1]


def test_datm_learns_labels_and_leaves_out_what_is_above_the_threshold(root: Path, experts: dict[str, Path], tmp_path: Path):
    datm = ["--method", "datm", "--learn-labels", "--ipc", "2", "--trajectory.first", "1", "--trajectory.growth", "3"]
    main(words(root, tmp_path / "run", experts["plain"], *datm, "--trajectory.batch", "7"))
    distilled = read_set(tmp_path / "run")
    assert distilled.labels.shape == (20, 10)
    assert np.allclose(distilled.labels.sum(axis=1), 1.0, atol=1e-6)
    main(words(root, tmp_path / "still", experts["plain"], *datm, "--trajectory.skip-above", "1e-9"))
    states = [read_checkpoint(tmp_path / name, CPU) for name in ("run", "still")]
    assert states[0] is not None
    assert states[1] is not None
    first = states[1].best
    assert all(torch.equal(a, b) for a, b in zip(states[1].outer.s, first, strict=True))
    assert not torch.equal(states[0].outer.s[0], first[0])


def test_datm_s_first_set_is_understood_by_experts(experts: dict[str, Path]):
    """Rightly classified where there are such images; logits are the mean over the experts that are right, over all where none is."""
    rng = np.random.default_rng(0)
    stored = open_experts(experts["plain"], 2, CPU)
    module = stored.recipe.module()
    problem = ModuleProblem(module, 10, 2, None, Augment("none"))
    images = torch.from_numpy(rng.standard_normal((200, 1, 28, 28))).float()
    theta = [stored.snapshot(k, 3) for k in range(2)]

    labels = forward(module, theta[0], images).argmax(1).numpy()
    labels[:40] = np.arange(40) % 10  # mostly wrong ones beside
    first, soft = understood(problem, stored, images, labels, rng)
    truth = np.arange(10).repeat(2)
    own = [forward(module, one, first) for one in theta]
    right = [one.argmax(1).numpy() == truth for one in own]
    for i in range(20):
        said = [own[k][i] for k in range(2) if right[k][i]] or [own[k][i] for k in range(2)]
        assert torch.allclose(soft[i], torch.stack(said).mean(0), atol=1e-5)
    assert torch.isfinite(soft).all()


def test_gradient_matching_runs_without_experts(root: Path, tmp_path: Path):
    main(words(root, tmp_path, None, "--method", "dc", "--window", "2", "--real-batch", "100", "--outer-lr", "0.1", "--inner-lr", "0.1"))
    state = read_checkpoint(tmp_path, CPU)
    assert state is not None
    assert state.curve[-1].loss is not None
    assert read_set(tmp_path).step_size is None
    assert "dsa-no-flip" in (tmp_path / "distilled" / "card.md").read_text()


@pytest.mark.parametrize("name", sorted(cells.known("experts")))
def test_a_cell_s_distillation_and_experts_belong_together(name: str):
    """Both groups parse, agree in what they share, and no segment ends beyond the experts' last epoch."""
    parsed = [tyro.cli(kind, args=cells.with_cell([word, "--preset", name], {})[1:], console_outputs=False) for word, kind in COMMANDS]
    config, (recipe, count) = parsed[0].config, (parsed[1].recipe, parsed[1].count)
    assert all(getattr(config, shared) == getattr(recipe, shared) for shared in SHARED)
    assert config.trajectory.high - 1 + config.trajectory.length <= recipe.epochs
    assert config.trajectory.experts <= count
    assert (config.method == "ftd") == (recipe.flat.rho > 0)
    assert name.startswith(config.method)


def test_the_small_methods_differ_in_their_experts_alone():
    mtt, ftd = (cells.PRESETS[name]["distill"] for name in ("mtt-cpu", "ftd-cpu"))
    assert {key for key in mtt if mtt[key] != ftd[key]} == {"method"}
    mtt, ftd = (cells.PRESETS[name]["experts"] for name in ("mtt-cpu", "ftd-cpu"))
    assert {key for key in mtt.keys() | ftd.keys() if mtt.get(key) != ftd.get(key)} == {"flat"}
