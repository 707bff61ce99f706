"""One distillation of one task: every method of the table, what is measured of it, and what stops it."""

import dataclasses
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from sims import two_phase
from sims.lab.store import TrialStore
from sims.lab.sweep import attempt
from sims.pipeline import Bench, Task, distil_points, draw_samples, encode, trial_seed
from sims.unroll import methods
from sims.unroll.experiment import Unroll
from sims.unroll.methods import METHODS, Loop, Scene
from sims.unroll.recipe import Recipe
from sims.unroll.trial import Ruler, unroll_trial
from theory import two_layer
from theory.distill.adjoint import unroll
from theory.distill.distiller import meta_gradient
from theory.distill.inner_optim import SGD
from theory.distill.problem import Diverged
from theory.distill.progressive import union
from theory.distill.truncation import Window

RECIPE = Recipe(T=6, W=2, spread=1, states=2, K=4, batch=4.0, experts=2, epochs=3, starts=2, span=2)
CONFIG = Unroll(RECIPE, d=(6,), M1=(4,), L=16, seeds=2, networks=1, checkpoints=3, probes=2, head_samples=400, validation=200, test=300)
LOOPS = [name for name, method in METHODS.items() if isinstance(method, Loop)]


def trial(method, **changes):
    config = next(c for c in CONFIG.configs("numpy") if c["method"] == method and c["draw"] == 0)
    return config | changes


def scene(m1=4, **changes):
    task = Task(d=6, r=2, L=16, J=2, link="quadratic", samples=16.0, head_samples=400, validation=200, test=300, dtype="float64")
    encoded = encode(task, np.random.SeedSequence(3))
    return Scene.of(encoded, dataclasses.replace(RECIPE, **changes), m1, np.random.SeedSequence(4))


@pytest.fixture(scope="module")
def results():
    """A trial of every method."""
    return {method: unroll_trial(trial(method)) for method in METHODS}


def test_every_method_gives_the_same_measurements(results, tmp_path):
    names = {method: {name for name in result if "cosine" not in name and "error" not in name} for method, result in results.items()}
    assert len(set(map(frozenset, names.values()))) == 1
    store = TrialStore(tmp_path)
    for method, result in results.items():
        row = store.put("unroll", trial(method), result)
        assert store.get("unroll", trial(method)) == row
        for name in ("off_points", "off_rows", "off_row_increments"):
            assert 0.0 <= result[name] <= 1.0
        for name in ("angle_points", "angle_rows", "angle_row_increments"):
            assert 0.0 <= result[name] <= 90.0
        for name in ("risk_trained", "risk_erased", "risk_kept"):
            assert result[name] > 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_repeats_to_the_bit(results, method):
    assert unroll_trial(trial(method)) == results[method]
    assert unroll_trial(trial(method, draw=1))["risk_erased"] != results[method]["risk_erased"]


@pytest.mark.parametrize("method", LOOPS)
def test_windows_and_objective_of_every_outer_step_are_kept(results, method):
    result, loop, horizon = results[method], METHODS[method], {"progressive": 3, "dd": 1, "dc": 1}.get(method, RECIPE.T)
    starts, stops = np.array(result["window_starts"]), np.array(result["window_stops"])
    length = {"t-bptt": RECIPE.W, "rat-bptt": RECIPE.W, "dc-path": RECIPE.states}.get(method, horizon)
    assert len(starts) == len(result["values"]) == RECIPE.K
    slack = RECIPE.spread if method == "at-bptt" else 0
    length = RECIPE.W if method == "at-bptt" else length
    assert np.all(np.abs(stops - starts - length) <= slack)
    assert np.all((starts >= 0) & (stops <= horizon))
    assert len(result["profile_start"]) == len(result["profile_end"]) == horizon
    assert result["profile_start"] != result["profile_end"]
    assert result["curve_step"][0] == 0
    assert result["curve_step"][-1] == RECIPE.K
    assert result["curve_off_point_increments"][0] is None
    assert result["off_point_increments"] == result["curve_off_point_increments"][-1]
    assert loop.windows(RECIPE, horizon).horizon == horizon


def test_truncation_is_measured_against_the_whole_unroll(results):
    for method in ("bptt", "dd", "progressive"):
        assert results[method]["cosine_truncation_end"] == pytest.approx(1.0, abs=1e-12)
        assert results[method]["error_truncation_end"] == pytest.approx(0.0, abs=1e-12)
    for method in ("t-bptt", "rat-bptt", "at-bptt"):
        assert results[method]["cosine_truncation_end"] < 1.0 - 1e-6
        assert results[method]["error_truncation_end"] > 1e-3
    for method in ("dc", "dc-path"):
        assert results[method]["cosine_truncation_end"] is None
    assert results["bptt"]["cosine_full_end"] == pytest.approx(1.0, abs=1e-12)
    assert all(-1.0 <= results[method][f"cosine_full_{when}"] <= 1.0 for method in ("t-bptt", "dc", "dc-path") for when in ("start", "end"))


@pytest.mark.parametrize("method", LOOPS)
def test_the_algorithms_are_those_of_the_theory(method):
    """The first outer step of every loop from its parts: meta-gradient of the table's objective through the table's window."""
    stage, loop = scene(), METHODS[method]
    shots = iter(loop.run(stage))
    first, second = next(shots), next(shots)
    distiller = loop.distiller(stage)
    seed = int(stage.rng(2).integers(2**63))
    child = int(np.random.SeedSequence(seed).generate_state(len(first.subsets), np.uint64)[0])
    problem = loop.training(stage).phase(first.subsets[:1])
    meta = meta_gradient(problem, loop.objective(stage), distiller, first.subsets[0], np.random.SeedSequence(child, spawn_key=(0,)))
    moved, _ = distiller.outer.step(first.subsets[0], distiller.outer.init(first.subsets[0]), 0, meta.grad_s)
    assert second.value == meta.value
    assert all(np.array_equal(a, b) for a, b in zip(second.subsets[0], moved, strict=True))
    assert second.step == 1
    for mine, theirs in zip(second.subsets[1:], first.subsets[1:], strict=True):
        assert mine is theirs, "later subsets wait for their phase"


@pytest.mark.parametrize("method", LOOPS)
def test_constant_labels_stay_one_and_are_not_stored(method):
    stage = scene(learn_labels=False)
    shots = list(METHODS[method].run(stage))
    assert all(len(part) == 1 for shot in shots for part in shot.subsets)
    problems = METHODS[method].training(stage).problems
    assert all(np.array_equal(problem.labels, np.ones(len(problem.labels))) for problem in problems)
    assert problems[-1].labels.shape == (4,)
    result = unroll_trial(trial(method, learn_labels=False))
    assert result["floats_set"] == 4 * 6
    assert result["floats_head"] == 4 * 6 + 16


def test_learned_labels_move_and_are_counted(results):
    shots = list(METHODS["bptt"].run(scene()))
    assert not np.any(shots[0].subsets[0][1] == shots[-1].subsets[0][1])
    assert {results[m]["floats_set"] for m in LOOPS} == {4 * 7}
    assert results["one-step"]["floats_set"] == 4 * 6
    assert results["full-data"]["floats_set"] == 16 * 36 * 7


def test_phases_share_the_points_and_the_outer_steps():
    stage = scene(m1=5, phases=2)
    shots = list(METHODS["progressive"].run(stage))
    assert [shot.step for shot in shots] == list(range(RECIPE.K + 1))
    assert [part[0].shape[0] for part in shots[0].subsets] == [3, 2]
    first, last = ([not np.array_equal(a.subsets[p][0], b.subsets[p][0]) for a, b in pairwise(shots)] for p in (0, 1))
    np.testing.assert_array_equal(first, [True, True, False, False])
    np.testing.assert_array_equal(last, [False, False, True, True])
    assert METHODS["progressive"].phases(scene(m1=1, phases=2)) == 1


def test_the_idealised_set_is_the_pipeline_s_and_its_rows_are_the_erased_ones():
    """After one step from the symmetric start the increment of the rows is what retraining with erasing weight decay gives."""
    stage = scene()
    shot = next(METHODS["one-step"].run(stage))
    points = distil_points(stage.encoded, 4)
    assert np.array_equal(shot.subsets[0][0], points)
    training = METHODS["one-step"].training(stage)
    before, after = training(shot.subsets, np.random.default_rng(7))
    rows = two_phase.retrained_rows(stage.encoded.student, before, points, 1.0, False)
    np.testing.assert_allclose(two_phase.unit_rms(after[1] - before[1], "rows"), rows, atol=1e-10)


def test_measurements_are_their_definitions():
    stage = scene()
    bench, method = Bench.of(stage.encoded), METHODS["t-bptt"]
    ruler = Ruler(stage, bench, method.training(stage), 1)
    shots = list(method.run(stage))
    found = ruler.measure(shots[-1], shots[0])
    index = stage.encoded.model.B
    x, x0 = (union(shots[k].subsets)[0] for k in (-1, 0))

    def off(y):
        return np.sum((y - y @ index @ index.T) ** 2) / np.sum(y**2)

    assert found["off_points"] == pytest.approx(off(x), rel=1e-9)
    assert found["off_point_increments"] == pytest.approx(off(x - x0), rel=1e-9)
    rng = stage.rng(4, 0)
    start = stage.student().init(rng)
    assert np.sqrt(np.mean(np.sum(start[1] ** 2, axis=1))) == pytest.approx(RECIPE.init_scale)
    end = unroll(stage.student(), SGD(RECIPE.inner_lr), shots[-1].subsets[0], start, [None] * 6, Window(5, 6)).end.theta
    biases = rng.standard_normal(16)
    assert found["off_row_increments"] == pytest.approx(off(end[1] - start[1]), rel=1e-9)
    cosines = np.linalg.svd(index.T @ np.linalg.svd(end[1])[2][:2].T, compute_uv=False)
    assert np.cos(np.radians(found["angle_rows"])) == pytest.approx(cosines[-1], abs=1e-9)
    value = two_layer.value(end, bench.test.x)
    assert found["risk_trained"] == pytest.approx(np.mean((value - bench.test.clean) ** 2), rel=1e-9)
    rows = end[1] - start[1]
    rows = rows / np.sqrt(np.mean(np.sum(rows**2, axis=1)))
    assert found["risk_erased"] == bench.risk(bench.fit_real(rows, biases))
    assert ruler.angle(np.ones((1, 6))) == 90.0, "one row spans no two directions"
    assert ruler.off(index.T) == pytest.approx(0.0, abs=1e-12)
    assert ruler.angle(index.T) == pytest.approx(0.0, abs=1e-5)


def test_many_steps_encode_the_subspace_where_a_real_subset_does_not():
    """Sixty outer steps on a small task: increments of rows in S*, a risk far under that of as many real samples."""
    sizes = {"d": 8, "T": 20, "K": 60, "M1": 6, "L": 32, "checkpoints": 1, "task_J": 4, "head_samples": 1000, "batch": 2.0}
    bptt, subset = (unroll_trial(trial(method, **sizes)) for method in ("bptt", "subset"))
    assert bptt["off_row_increments"] < 0.1
    assert bptt["angle_row_increments"] < 20.0
    assert bptt["risk_erased"] < 0.15
    assert bptt["risk_trained"] < 0.6
    assert subset["off_row_increments"] > 0.3
    assert subset["risk_erased"] > 3 * bptt["risk_erased"]


@pytest.mark.parametrize("method", ["dd", "dc"])
def test_many_steps_with_one_label_are_a_power_iteration(method):
    """H has one positive and one negative eigenvalue: points of label 1 keep the first direction, both signs keep both."""
    task = Task(d=8, r=2, L=32, J=4, link="quadratic", samples=64.0, head_samples=400, validation=200, test=300, dtype="float64")
    encoded, kept = encode(task, np.random.SeedSequence(5)), {}
    assert np.linalg.eigvalsh(encoded.model.link.hessian)[0] < 0 < encoded.model.link.hessian[0, 0]
    for learned in (False, True):
        recipe = Recipe(K=60, batch=4.0, learn_labels=learned, distance="inner_product")
        shots = list(METHODS[method].run(Scene.of(encoded, recipe, 8, np.random.SeedSequence(6))))
        x = shots[-1].subsets[0][0]
        kept[learned] = np.mean((x @ encoded.model.B) ** 2, axis=0)
    assert kept[False][0] > 10 * kept[False][1]
    assert kept[True].max() < 10 * kept[True].min()


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("bptt", {"outer": "sgd", "outer_lr": 1e200}, "outer step 0: outer update diverged"),
        ("bptt", {"outer": "sgd", "outer_lr": 1e100}, "outer step 1: inner run diverged"),
        ("dc", {"outer": "sgd", "outer_lr": 1e100}, "outer step 1: "),
        ("progressive", {"outer": "sgd", "outer_lr": 1e100}, "outer step 1: inner run diverged"),
        ("subset", {"inner_lr": 1e100}, "inner run diverged"),
    ],
)
def test_what_diverges_stops_with_its_name(method, changes, words):
    outcome = attempt(unroll_trial, trial(method, **changes))
    assert outcome.failed is not None
    assert words in outcome.failed


def test_the_stage_clock_reads_held_out_data_and_leaves_the_run_before_it_alone(monkeypatch):
    """Scores planted at the measurements: level ones bring the middle stage, then the late one; up to then the run is the early stage's."""
    stage = scene(K=8, measurements=4)
    staged = METHODS["at-bptt"]
    early = list(dataclasses.replace(staged, staged=False).run(stage))
    scores, asked = iter([0.0, 50.0, 50.0, 50.0]), []

    def planted(*words):
        asked.append(words[2])
        return next(scores)

    monkeypatch.setattr(methods, "fitted", planted)
    shots = list(staged.run(stage))
    assert [shot.stage for shot in shots[1:]] == ["early"] * 4 + ["middle"] * 2 + ["late"] * 2
    assert all(subsets[0] is shots[k].subsets[0] for k, subsets in zip((0, 2, 4, 6), asked, strict=True))
    for mine, theirs in zip(shots[:5], early[:5], strict=True):
        assert (mine.window, mine.value) == (theirs.window, theirs.value)
        assert all(np.array_equal(a, b) for a, b in zip(mine.subsets[0], theirs.subsets[0], strict=True))


def test_the_score_of_the_clock_is_the_share_of_held_out_variance_explained():
    stage = scene()
    training, subsets = METHODS["at-bptt"].training(stage), METHODS["at-bptt"].start(stage)
    samples = draw_samples(stage.encoded, "validation")
    end = training(subsets, stage.rng(6))[1]
    error = samples.label - two_layer.value(end, samples.x)
    expected = 100.0 * (1.0 - np.sum(error**2) / np.sum(samples.label**2))
    assert methods.fitted(stage, training, subsets) == pytest.approx(expected, rel=1e-12)
    assert expected < 100.0


def test_trajectory_matching_follows_the_experts_of_the_real_sample(results):
    """Segments start at snapshots; experts see the real sample; flat ones are others, and only these two methods have any."""
    stage = scene()
    objective, experts = METHODS["mtt"].objective(stage), stage.plain_experts
    assert METHODS["ftd"].objective(stage).experts is stage.flat_experts
    assert (experts.count, experts.epochs, objective.length, objective.starts.high) == (2, 3, 2, 2)
    xi = objective.draw(np.random.default_rng(0))
    assert objective.start(xi) is experts.snapshot(xi.expert, xi.epoch)
    start = experts.runs[0][0]
    assert start.loss == pytest.approx(np.mean(stage.real.y**2) / 2, rel=1e-9), "the start is the function 0, labels are residuals"
    plain, flat = results["mtt"], results["ftd"]
    assert flat["expert_loss"] <= plain["expert_loss"]
    assert flat["expert_distance"] != plain["expert_distance"]
    assert plain["values"] != flat["values"]
    for method, result in results.items():
        assert (result["expert_sharpness"] is None) == (method not in ("mtt", "ftd"))


def test_energy_of_nothing_is_refused():
    stage = scene()
    ruler = Ruler(stage, Bench.of(stage.encoded), METHODS["dc"].training(stage), 1)
    with pytest.raises(Diverged, match="the total energy is 0"):
        ruler.off(np.zeros((2, 6)))


def test_a_set_without_a_loop_is_one_snapshot():
    shots = list(METHODS["subset"].run(scene()))
    assert [(shot.step, shot.window, shot.value) for shot in shots] == [(0, None, None)]
    x, y = shots[0].subsets[0]
    stage = scene()
    rows = [int(np.flatnonzero(np.all(stage.real.x == point, axis=1))[0]) for point in x]
    assert len(set(rows)) == 4
    np.testing.assert_array_equal(stage.real.y[rows], y)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"T": 0}, "T=0"),
        ({"W": 7}, "T=6 inner steps: W=7"),
        ({"spread": 2}, "W=2, spread=2, T=6"),
        ({"states": 9}, "states=9"),
        ({"phases": 5}, "phases=5, K=4"),
        ({"J": 0}, "J=0"),
        ({"inner_lr": 0.0}, "inner_lr=0.0"),
        ({"batch": float("nan")}, "batch=nan"),
        ({"epochs": 2}, "last segment would end at epoch 3: starts=2, span=2, epochs=2"),
        ({"rho": -0.1}, "rho=-0.1"),
        ({"inner": "lamb"}, "unknown inner 'lamb'; known: adam, momentum, sgd"),
        ({"distance": "l1"}, "unknown distance 'l1'"),
    ],
)
def test_bad_recipes_are_refused_in_one_line_that_names_the_value(wrong, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        dataclasses.replace(RECIPE, **wrong)
    assert "\n" not in str(caught.value)


def test_all_settings_of_a_recipe_reach_the_trial():
    assert asdict(RECIPE).items() <= trial("bptt").items()
    assert trial_seed(trial("bptt"), 6, 2, 16).entropy == CONFIG.seed
