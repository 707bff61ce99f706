"""Experts of the two-layer network: plain runs, flat ones matched to them in loss, and how flat each is."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.student import RealSample, Student
from sims.unroll.experts import QUALITIES, ExpertStore, ExpertTraining, quality
from theory import two_layer
from theory.distill.flatness import Flat
from theory.distill.leaves import axpy, norm
from theory.distill.problem import Diverged
from theory.distill.trajectory import Experts

D, WIDTH, N = 4, 12, 60


def training(seed: int = 0, batch: int | None = None, lr: float = 0.2, epochs: int = 4, experts: int = 2) -> ExpertTraining:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D))
    seeds = tuple(np.random.SeedSequence(seed, spawn_key=(k,)) for k in range(experts))
    return ExpertTraining(Student(D, WIDTH, init_scale=0.5), RealSample(x, x[:, 0] ** 2 - 1.0, batch), lr, epochs, seeds)


def distinct(store: ExpertStore) -> bool:
    return all(norm(axpy(-1.0, a.theta, b.theta)) > 0 for run in store.runs for a, b in pairwise(run))


def test_plain_experts_are_sgd_on_fresh_batches_with_a_snapshot_an_epoch():
    how = training(batch=20)
    store = how.plain()
    assert isinstance(store, Experts)
    assert (store.count, store.epochs, how.epoch) == (2, 4, 3)
    rng = np.random.default_rng(how.seeds[1])
    theta = how.student.init(rng)
    for step in range(13):
        if step % 3 == 0:
            at = store.runs[1][step // 3]
            assert at.step == step
            assert norm(axpy(-1.0, theta, at.theta)) == 0.0
            assert at.loss == pytest.approx(two_layer.loss(theta, (how.real.x, how.real.y)), rel=1e-12)
            assert store.snapshot(1, step // 3) is at.theta
        rows = rng.choice(N, 20, replace=False)
        theta = axpy(-0.2, two_layer.gradient(theta, (how.real.x[rows], how.real.y[rows])), theta)
    assert distinct(store)
    assert norm(axpy(-1.0, store.snapshot(0, 0), store.snapshot(1, 0))) > 0.1, "experts start apart"


@given(seed=st.integers(0, 1000), rho=st.floats(0.01, 0.2), batch=st.sampled_from([None, 20]))
@settings(max_examples=5)
def test_flat_experts_stop_as_soon_as_they_have_the_loss_of_their_twins(seed, rho, batch):
    """On SAM's path, retraced here: the first step under the twin's loss, and none between two snapshots."""
    how = training(seed, batch, lr=0.05, epochs=2, experts=1)
    (twin,) = how.plain().runs
    (run,) = how.flat(Flat(rho), ExpertStore((twin,))).runs
    rng = np.random.default_rng(how.seeds[0])
    theta, wanted, whole = how.student.init(rng), 1, (how.real.x, how.real.y)
    for step in range(1, run[-1].step + 1):
        rows = how.real.draw(rng)
        seen = whole if rows is None else tuple(x[rows] for x in whole)
        g = two_layer.gradient(theta, seen)
        theta = axpy(-0.05, two_layer.gradient(axpy(rho / norm(g), g, theta), seen), theta)
        loss = two_layer.loss(theta, whole)
        assert (loss <= twin[wanted].loss) == (step == run[wanted].step)
        if step == run[wanted].step:
            assert run[wanted].loss == pytest.approx(loss, rel=1e-9)
            wanted += 1
    assert wanted == 3
    assert distinct(ExpertStore((run,)))
    assert norm(axpy(-1.0, run[0].theta, twin[0].theta)) == 0.0


def test_without_a_radius_flat_experts_are_plain():
    how = training(lr=0.05)
    twins = how.plain()
    losses = [at.loss for at in twins.runs[0]]
    assert losses == sorted(losses, reverse=True)
    for run, twin in zip(how.flat(Flat(0.0), twins).runs, twins.runs, strict=True):
        assert [at.step for at in run] == [at.step for at in twin]
        assert all(norm(axpy(-1.0, a.theta, b.theta)) == 0.0 for a, b in zip(run, twin, strict=True))


def test_qualities_are_their_definitions():
    how, rng = training(3), np.random.default_rng(0)
    store = how.plain()
    found = quality(store, how.real, 0.1, 4, rng)
    assert tuple(found) == QUALITIES
    ends = [run[4] for run in store.runs]
    assert found["expert_loss"] == pytest.approx(np.mean([at.loss for at in ends]))
    assert found["expert_steps"] == 4
    assert found["expert_distance"] == pytest.approx(np.mean([norm(axpy(-1.0, run[0].theta, run[4].theta)) for run in store.runs]))
    s, sharp, top = (how.real.x, how.real.y), [], []
    for at in ends:
        g = two_layer.gradient(at.theta, s)
        sharp.append(two_layer.loss(axpy(0.1 / norm(g), g, at.theta), s) - at.loss)
        size = WIDTH * (D + 2)
        basis = np.eye(size)
        shapes = [x.shape for x in at.theta]
        cuts = np.cumsum([x.size for x in at.theta])[:-1]
        columns = []
        for e in basis:
            c = tuple(part.reshape(shape) for part, shape in zip(np.split(e, cuts), shapes, strict=True))
            columns.append(np.concatenate([x.ravel() for x in two_layer.second_order(at.theta, s, c)[0]]))
        top.append(np.linalg.eigvalsh(np.array(columns))[-1])
    assert found["expert_sharpness"] == pytest.approx(np.mean(sharp), rel=1e-9)
    assert found["expert_lambda"] == pytest.approx(np.mean(top), rel=0.02)


def test_what_cannot_be_trained_or_matched_is_named():
    with pytest.raises(Diverged, match=r"the loss of an expert is (inf|nan) after \d+ steps: lower its step size \(lr=1e\+200\)"):
        training(lr=1e200).plain()
    how = training(epochs=2)
    twins = how.plain()
    best = ExpertStore(tuple((run[0], *(replace(at, loss=-1.0) for at in run[1:])) for run in twins.runs))
    with pytest.raises(Diverged, match=r"a flat expert has loss .* after 6 steps, its plain twin -1 after 1: lower the radius \(rho=0.1\)"):
        how.flat(Flat(0.1), best)
