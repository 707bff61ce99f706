"""A task from teacher to risk: what is refused, which draws are shared and which are not, what the risk measures."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims import heads, two_phase
from sims.arrays import DTYPES, GaussianStream
from sims.pipeline import (
    ROLES,
    Bench,
    Network,
    Task,
    distil_points,
    draw_samples,
    encode,
    fresh_network,
    label_inputs,
    teacher_network,
)
from theory.distill.problem import Diverged

SEED = np.random.SeedSequence(11)
SMALL = Task(d=6, r=2, L=10, J=2, noise=0.4, samples=20.0, head_samples=300, validation=200, test=250, dtype="float64", chunk=128)


@pytest.fixture(scope="module")
def encoded():
    return encode(SMALL, SEED)


@pytest.fixture(scope="module")
def bench(encoded):
    return Bench.of(encoded)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"L": 11}, "even width: L=11"),
        ({"L": 0}, "even width: L=0"),
        ({"r": 7}, "r=7 > d=6"),
        ({"d": 0}, "d must be >= 1: d=0"),
        ({"r": 0}, "r must be >= 1: r=0"),
        ({"J": 0}, "J must be >= 1: J=0"),
        ({"samples": 0.0}, "N=0"),
        ({"samples": 0.01}, "N=0"),
        ({"samples": float("inf")}, "samples=inf"),
        ({"samples": float("nan")}, "samples=nan"),
        ({"samples": 0.1, "head_samples": 4}, "N > d + 1 samples: N=4"),
        ({"head_samples": 721}, "head_samples=721 > N=720"),
        ({"validation": 0}, "validation=0"),
        ({"test": -1}, "test=-1"),
        ({"chunk": 0}, "chunk=0"),
        ({"link": "septic"}, "unknown link 'septic'; known: cross, cubic"),
        ({"preprocessing": "pca"}, "unknown preprocessing 'pca'"),
        ({"matching": "exact"}, "unknown matching 'exact'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"inner_lr": 0.0}, "inner_lr=0.0"),
        ({"start_norm": float("inf")}, "start_norm=inf"),
        ({"row_norm": -1.0}, "row_norm=-1.0"),
    ],
)
def test_bad_tasks_are_refused_in_one_line_that_names_the_value(wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        dataclasses.replace(SMALL, **wrong)
    assert "\n" not in str(caught.value)


def test_without_least_squares_few_samples_will_do():
    assert dataclasses.replace(SMALL, samples=0.1, head_samples=4, preprocessing="none").N == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_fixes_every_bit_and_another_seed_everything(dtype):
    task = dataclasses.replace(SMALL, dtype=dtype)
    first, again = (encode(task, SEED) for _ in range(2))
    assert first.rows.dtype == dtype
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(distil_points(first, 4), distil_points(again, 4))
    risks = [Bench.of(e).risk(Bench.of(e).fit_real(*fresh_network(e, distil_points(e, 4), "retrain"))) for e in (first, again)]
    assert risks[0] == risks[1]
    other = encode(task, np.random.SeedSequence(12))
    assert not np.isclose(other.rows, first.rows).any()
    assert not np.isclose(other.model.B, first.model.B).any()


def test_roles_draw_from_disjoint_streams(encoded):
    """Training, held-out and test samples share no row; the fresh starts, their biases and the label inputs no number."""
    drawn = [draw_samples(encoded, role).x.ravel() for role in ("train", "validation", "test")]
    drawn += [label_inputs(encoded, 20).ravel(), encoded.rng("points").standard_normal(50), encoded.rng("baselines").standard_normal(50)]
    for role in ("retrain", "retrain-again"):
        theta, biases = encoded.student.init(encoded.rng(role)), fresh_network(encoded, distil_points(encoded, 3), role)[1]
        drawn += [theta[1][: SMALL.L // 2].ravel(), biases]
    drawn += [theta[1][: SMALL.L // 2].ravel() for theta in encoded.starts]
    everything = np.concatenate(drawn)
    assert len(np.unique(everything)) == everything.size
    assert set(encoded.seeds) == set(ROLES)
    assert len({tuple(seed.generate_state(4)) for seed in encoded.seeds.values()}) == len(ROLES)


def test_head_samples_are_the_first_training_samples(encoded):
    x, _ = encoded.stream.head(SMALL.head_samples)
    np.testing.assert_array_equal(draw_samples(encoded, "train").x, x)
    assert encoded.stream.n == SMALL.N == 720


def test_labels_have_noise_and_clean_targets_none(encoded):
    for role in ("train", "validation", "test"):
        sample = draw_samples(encoded, role)
        noise = sample.label - sample.clean
        assert np.std(noise) == pytest.approx(SMALL.noise, rel=0.2)
        removed = encoded.residual.alpha + sample.x @ encoded.residual.beta
        np.testing.assert_allclose(sample.clean + removed, encoded.model.clean(sample.x), atol=1e-12)


def test_risk_is_that_of_the_whole_prediction_against_the_clean_target(encoded, bench):
    """E (alpha + beta.x + a^T relu(W x + b) - f*)^2 / Var f* on the test role's own samples."""
    rng = np.random.default_rng(0)
    network = Network(rng.standard_normal((5, 6)), rng.standard_normal(5), rng.standard_normal(5))
    x, _ = GaussianStream(encoded.seeds["test"], SMALL.test, SMALL.d, chunk=SMALL.chunk).head(SMALL.test)
    prediction = encoded.residual.alpha + x @ encoded.residual.beta + np.maximum(x @ network.rows.T + network.biases, 0) @ network.head
    target = encoded.model.link(x @ encoded.model.B)
    assert bench.risk(network) == pytest.approx(np.mean((prediction - target) ** 2) / encoded.model.link.variance, rel=1e-12)
    with pytest.raises(Diverged, match="test risk is inf"), np.errstate(over="ignore"):
        bench.risk(dataclasses.replace(network, head=network.head * 1e200))


def test_the_ridge_is_picked_on_held_out_labels(bench):
    """The penalty follows the validation role and nothing else: labels made by one head of the path pick that head."""
    rows, biases = fresh_network(bench.encoded, distil_points(bench.encoded, 16), "retrain")
    path = heads.ridge_path(heads.features(rows, biases, bench.train.x), bench.train.label)
    held = heads.features(rows, biases, bench.validation.x)
    for k in (6, 12, 20):
        made = dataclasses.replace(bench, validation=dataclasses.replace(bench.validation, label=held @ path[:, k]))
        np.testing.assert_array_equal(made.fit_real(rows, biases).head, path[:, k])
    other_test = dataclasses.replace(bench, test=dataclasses.replace(bench.test, clean=-bench.test.clean))
    np.testing.assert_array_equal(other_test.fit_real(rows, biases).head, bench.fit_real(rows, biases).head)


def test_teacher_rows_are_the_full_gradient_step_of_the_first_start(encoded, bench):
    network = teacher_network(bench)
    a, w, _ = encoded.starts[0]
    x, xi = encoded.stream.head(SMALL.N)
    y = encoded.residual(x, encoded.model.labels(x, xi))
    step = a[:, None] * ((x @ w.T >= 0) * y[:, None]).T @ x
    np.testing.assert_allclose(network.rows, step / np.sqrt(np.mean(np.sum(step**2, axis=1))), rtol=1e-9)
    assert np.std(network.biases) > 0.3


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@given(st.integers(1, 6), st.integers(0, 6))
def test_point_sets_are_nested(encoded, m1, more):
    """Up to the common scale: exactly for the inner product, where points do not see each other, to the start's norm otherwise."""
    for matching, atol in (("inner_product", 1e-12), ("squared", 0.05)):
        there = dataclasses.replace(encoded, task=dataclasses.replace(SMALL, matching=matching))
        few, many = distil_points(there, m1), distil_points(there, m1 + more)
        np.testing.assert_allclose(unit(many)[:m1], unit(few), atol=atol)
        assert np.mean(np.sum(many**2, axis=1)) == pytest.approx(1.0, rel=1e-12)


def test_every_matching_finds_the_same_points_from_a_small_start(encoded):
    """DC and DD encode the same thing; the start's norm times the inner step is what separates them."""
    found = {}
    for matching in two_phase.MATCHING:
        there = dataclasses.replace(encoded, task=dataclasses.replace(SMALL, matching=matching))
        found[matching] = unit(distil_points(there, 8))
    for matching in ("squared", "performance"):
        assert np.min(np.sum(found[matching] * found["inner_product"], axis=1)) > 0.99
    assert np.min(np.sum(found["cosine"] * found["inner_product"], axis=1)) < 0.99, "normalised rows weigh neurons otherwise"


def test_no_points_are_refused(encoded):
    with pytest.raises(ValueError, match="at least one distilled point: M1=0"):
        distil_points(encoded, 0)


@given(st.integers(1, 9), st.integers(0, 9))
def test_label_inputs_are_nested(encoded, m2, more):
    np.testing.assert_array_equal(label_inputs(encoded, m2 + more)[:m2], label_inputs(encoded, m2))


def test_fresh_networks_differ_by_role_and_by_reflection(encoded):
    points = distil_points(encoded, 5)
    reflected = dataclasses.replace(encoded, task=dataclasses.replace(SMALL, reflected=True))
    rows = [fresh_network(e, points, role)[0] for e in (encoded, reflected) for role in ("retrain", "retrain-again")]
    assert all(np.mean(np.sum(r**2, axis=1)) == pytest.approx(SMALL.row_norm**2) for r in rows)
    assert all(not np.allclose(a, b) for i, a in enumerate(rows) for b in rows[:i])


@pytest.fixture(scope="module")
def curve():
    """Median risk over M1 = 1, 2, 4, 16 and the teacher's, five seeds of a small noiseless task."""
    task = Task(d=12, r=2, L=48, J=8, samples=32.0, head_samples=1500, validation=500, test=1000)
    rows = []
    for seed in range(5):
        e = encode(task, np.random.SeedSequence(seed))
        b = Bench.of(e)
        fits = [b.risk(b.fit_real(*fresh_network(e, distil_points(e, m1), "retrain"))) for m1 in (1, 2, 4, 16)]
        rows.append([*fits, b.risk(teacher_network(b))])
    return np.median(rows, axis=0)


def test_risk_falls_with_points_towards_the_teacher(curve):
    one, two, four, many, teacher = curve
    assert one > two > four > many
    assert one > 0.3, "one point spans one of the two directions"
    assert many < 2.5 * teacher
    assert teacher < 0.15
