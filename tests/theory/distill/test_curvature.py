"""The low-rank Hessian: recovery of symmetric matrices, the two ends of its rank in the sweep, its refreshes and what they cost."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.oracles import relative_error, to_numpy
from tests.strategies import OPTIMISERS, generators, normal_like, optimisers, windows
from tests.theory.distill.test_adjoint import Counting, end_cotangent, scene_of, tame_optimisers
from theory.distill.adjoint import sweep, unroll
from theory.distill.curvature import LowRankHessian, Sketch
from theory.distill.inner_optim import SGD, Adam
from theory.distill.leaves import axpy, dot, flatten, norm, scale, size, unflatten, zeros_like
from theory.distill.truncation import Window

EXACT = {"max_age": 1}  # a sketch at every step


def spectrum_and_vectors(rng, p):
    return np.linalg.qr(rng.standard_normal((p, p)))[0]


def matrix_of(sketch):
    u, mu = to_numpy(sketch.u), to_numpy(sketch.mu)
    return u @ np.diag(mu) @ u.T


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric matrix as a map of leaves, split in two."""

    h: np.ndarray
    xp: object = np

    @property
    def like(self):
        x = self.xp.asarray(np.arange(1.0, self.h.shape[0] + 1.0))
        return (x[:1], x[1:])

    def __call__(self, u):
        return unflatten(self.xp.asarray(self.h) @ flatten(u), u)


@given(rng=generators, p=st.integers(2, 14), rank=st.integers(0, 14), power=st.integers(0, 2))
def test_an_exactly_low_rank_matrix_is_recovered_with_its_signs(xp, rng, p, rank, power):
    rank = min(rank, p)
    basis = spectrum_and_vectors(rng, p)[:, :rank]
    mu = rng.uniform(0.5, 2.0, rank) * rng.choice([-1.0, 1.0], rank)
    operator = Operator(basis @ np.diag(mu) @ basis.T, xp)
    sketch = LowRankHessian(rank, 2, power).sketch(operator, 0, operator.like, rng)
    assert np.linalg.norm(matrix_of(sketch) - operator.h) <= 1e-9 * (1.0 + np.linalg.norm(operator.h))
    u = to_numpy(sketch.u)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(np.sort(to_numpy(sketch.mu)), np.sort(mu), atol=1e-9)
    assert sketch.products == (0 if rank == 0 else min(rank + 2, p) * (power + 2))
    c = normal_like(rng, operator.like)
    assert norm(axpy(-1.0, operator(c), sketch.apply(c))) <= 1e-9 * (1.0 + norm(c)) * (1.0 + np.linalg.norm(operator.h))


@given(rng=generators, rank=st.integers(1, 8))
def test_error_is_near_that_of_the_best_approximation(rng, rank):
    """Eigenvalues 2^-j of alternating sign, two power iterations: within a tenth of sigma_{k+1}, the least any rank k can leave."""
    p = 20
    basis = spectrum_and_vectors(rng, p)
    mu = 0.5 ** np.arange(p) * (-1.0) ** np.arange(p)
    operator = Operator(basis @ np.diag(mu) @ basis.T)
    sketch = LowRankHessian(rank).sketch(operator, 0, operator.like, rng)
    error = np.linalg.norm(matrix_of(sketch) - operator.h, 2)
    assert abs(mu[rank]) * (1 - 1e-9) <= error <= 1.1 * abs(mu[rank])


@given(rng=generators)
def test_at_full_rank_it_is_the_students_hessian(rng):
    """Columns of H by products along unit directions, against differences of the gradient and against the sketch."""
    scene = scene_of(rng, 1)
    problem, theta = scene.student, scene.theta
    p = size(theta)
    columns = [flatten(problem.second_order(theta, scene.s, None, unflatten(e, theta))[0]) for e in np.eye(p)]
    h = np.stack(columns, axis=1)
    np.testing.assert_allclose(h, h.T, atol=1e-13 * (1 + np.abs(h).max()))
    sketch = LowRankHessian(p).sketch(lambda u: problem.second_order(theta, scene.s, None, u)[0], 0, theta, rng)
    assert np.linalg.norm(matrix_of(sketch) - h) <= 1e-11 * np.linalg.norm(h)


@given(rng=generators, optimiser=tame_optimisers, policy=windows(), batch=st.sampled_from([None, 2]))
def test_a_full_rank_sweep_is_the_exact_one(rng, optimiser, policy, batch):
    window = policy.draw(rng)
    scene = scene_of(rng, window.stop, batch=batch)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, window)
    lam = end_cotangent(scene, tape)
    assume(norm(lam) > 1e-6)
    exact = sweep(scene.student, optimiser, scene.s, tape, lam)
    low = sweep(scene.student, optimiser, scene.s, tape, lam, LowRankHessian(size(scene.theta), 0, 0, **EXACT), rng)
    together = [(*found.grad_s, *found.lam, np.asarray(float(found.grad_log_lr))) for found in (low, exact)]
    assert relative_error(*together) <= 1e-10


@dataclass(frozen=True, eq=False)
class WithoutCurvature(Counting):
    """A student whose gradient is taken not to move with theta."""

    def second_order(self, theta, s, xi, c):
        return zeros_like(theta), self.inner.mixed(theta, s, xi, c)


@given(rng=generators, optimiser=optimisers, policy=windows())
def test_rank_zero_is_the_identity_jacobian_gradient(rng, optimiser, policy):
    """The rest of the optimiser's adjoint stays: Adam's moments carry cotangents as before. It costs no Hessian-vector product."""
    window = policy.draw(rng)
    scene = scene_of(rng, window.stop)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, window)
    lam = end_cotangent(scene, tape)
    low = sweep(scene.student, optimiser, scene.s, tape, lam, LowRankHessian(0), rng)
    control = sweep(WithoutCurvature(scene.student), optimiser, scene.s, tape, lam)
    assert relative_error((*low.grad_s, *low.lam), (*control.grad_s, *control.lam)) <= 1e-12
    assert (low.cost.hessian_products, low.cost.mixed, low.cost.products) == (0, window.length, 0)


@given(rng=generators, data=st.data(), steps=st.integers(1, 5))
def test_rank_zero_with_sgd_is_a_sum_of_mixed_products(rng, data, steps):
    """theta_T = theta_0 - lr sum_t g_t with each g_t a function of S alone: d / d S = -lr sum_t M_t^T lam."""
    optimiser = data.draw(OPTIMISERS["sgd"].filter(lambda o: o.weight_decay == 0.0))
    scene = scene_of(rng, steps)
    tape = unroll(scene.student, optimiser, scene.s, scene.theta, scene.noises, Window(0, steps))
    lam = end_cotangent(scene, tape)
    total = zeros_like(scene.s)
    for entry in tape.entries:
        total = axpy(-optimiser.lr, scene.student.mixed(entry.state.theta, scene.s, entry.xi, lam), total)
    low = sweep(scene.student, optimiser, scene.s, tape, lam, LowRankHessian(0), rng)
    assert relative_error(low.grad_s, total) <= 1e-12


def test_the_error_falls_with_the_rank_on_average():
    """Means over 4 runs of an 8-step window of the student; signs lost (|mu| for mu) must show as an error that rank does not mend."""
    ranks = (0, 5, 25)
    errors = np.zeros((4, len(ranks)))
    signless = np.zeros(4)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scene = scene_of(rng, 8, m=4)
        tape = unroll(scene.student, SGD(0.2), scene.s, scene.theta, scene.noises, Window(0, 8))
        lam = end_cotangent(scene, tape)
        exact = sweep(scene.student, SGD(0.2), scene.s, tape, lam).grad_s
        for j, rank in enumerate(ranks):
            low = sweep(scene.student, SGD(0.2), scene.s, tape, lam, LowRankHessian(rank, 4, 1, **EXACT), rng).grad_s
            errors[seed, j] = relative_error(low, exact)
        signless[seed] = relative_error(sweep(scene.student, SGD(0.2), scene.s, tape, lam, Signless(25, 4, 1, **EXACT), rng).grad_s, exact)
    mean = errors.mean(axis=0)
    assert np.all(np.diff(mean) < 0), mean
    assert mean[-1] < 1e-10
    assert signless.mean() > 0.01


class Signless(LowRankHessian):
    """The mistake of a singular value decomposition read as U diag(sigma) U^T."""

    def sketch(self, hvp, t, theta, rng):
        found = super().sketch(hvp, t, theta, rng)
        return Sketch(found.u, np.abs(found.mu), found.t, found.theta, found.products)


@given(
    t=st.integers(0, 100),
    older=st.integers(-1, 1),
    limit=st.integers(1, 30),
    further=st.integers(-1, 1),
    allowed=st.integers(1, 16),
    size_=st.sampled_from([0.25, 1.0, 4.0]),
)
def test_a_sketch_is_made_anew_exactly_at_its_age_or_drift(t, older, limit, further, allowed, size_):
    """One below, at and one above either bound; sixteenths, so that equality is exact. Or there is no sketch yet."""
    age, drift = limit + older, allowed + further
    rule = LowRankHessian(4, max_age=limit, max_drift=allowed / 16)
    old = (np.array([size_, 0.0]),)
    sketch = Sketch(np.zeros((2, 0)), np.zeros(0), t + age, old, 0)
    now = (np.array([size_, size_ * drift / 16]),)
    assert rule.stale(sketch, t, now) == (age >= limit or drift >= allowed)
    assert rule.stale(None, t, now)
    still = Sketch(np.zeros((2, 0)), np.zeros(0), t, (np.zeros(2),), 0)
    assert not rule.stale(still, t, (np.zeros(2),))
    assert rule.stale(still, t, now)


@given(rng=generators, length=st.integers(1, 9), age=st.integers(1, 10), power=st.integers(0, 2))
def test_costs_are_those_that_were_paid(rng, length, age, power):
    """One sketch every `age` steps where drift is let pass; a second sweep pays again, since no sketch outlives its run."""
    scene = scene_of(rng, length)
    problem = Counting(scene.student)
    tape = unroll(problem, Adam(0.01), scene.s, scene.theta, scene.noises, Window(0, length))
    hessian = LowRankHessian(3, 1, power, age, np.inf)
    for repeat in (1, 2):
        found = sweep(problem, Adam(0.01), scene.s, tape, end_cotangent(scene, tape), hessian, rng)
        sketches = -(-length // age)
        assert found.cost.hessian_products == 4 * (power + 2) * sketches
        assert problem.calls["second_order"] == repeat * found.cost.hessian_products
        assert (found.cost.products, found.cost.mixed) == (0, length)
    exact = sweep(problem, Adam(0.01), scene.s, tape, end_cotangent(scene, tape))
    assert (exact.cost.products, exact.cost.mixed, exact.cost.hessian_products) == (length, 0, 0)


def test_drift_along_a_run_asks_for_a_new_sketch():
    """A window in which theta moves: more sketches than age alone would ask for, fewer than one a step."""
    scene = scene_of(np.random.default_rng(3), 12)
    tape = unroll(scene.student, SGD(0.1), scene.s, scene.theta, scene.noises, Window(0, 12))
    lam = end_cotangent(scene, tape)
    paid = [
        sweep(scene.student, SGD(0.1), scene.s, tape, lam, LowRankHessian(3, 1, 0, 100, drift), np.random.default_rng(0)).cost
        for drift in (1e-9, 0.02, 1e9)
    ]
    each = 4 * 2
    assert paid[0].hessian_products == 12 * each
    assert each < paid[1].hessian_products < 12 * each
    assert paid[2].hessian_products == each


@given(rng=generators, shapes=st.lists(st.sampled_from([(), (3,), (2, 2), (1, 2, 3), (0,)]), min_size=1, max_size=4))
def test_flattened_leaves_come_back(xp, rng, shapes):
    x = tuple(xp.asarray(rng.standard_normal(shape)) for shape in shapes)
    back = unflatten(flatten(x), x)
    assert all(np.array_equal(to_numpy(a), to_numpy(b)) for a, b in zip(x, back, strict=True))
    assert float(dot(scale(2.0, back), x)) == pytest.approx(2.0 * float(np.sum(to_numpy(flatten(x)) ** 2)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": -1}, "rank=-1"),
        ({"oversample": -1}, "oversample=-1"),
        ({"power": -1}, "power=-1"),
        ({"max_age": 0}, "max_age=0"),
        ({"max_drift": 0.0}, "max_drift=0.0"),
        ({"max_drift": float("nan")}, "max_drift=nan"),
    ],
)
def test_impossible_sketches_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        LowRankHessian(**arguments)


def test_a_sweep_without_a_generator_is_refused():
    scene = scene_of(np.random.default_rng(0), 1)
    tape = unroll(scene.student, SGD(0.1), scene.s, scene.theta, scene.noises, Window(0, 1))
    with pytest.raises(ValueError, match="rng=None"):
        sweep(scene.student, SGD(0.1), scene.s, tape, end_cotangent(scene, tape), LowRankHessian(1))
