"""Patches: split and merge undo each other, a patch problem moves its patch alone, the alignment by differences and by a loop."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.conformance import InnerProblemConformance, ObjectiveCase, ObjectiveConformance, ProblemCase
from tests.oracles import dense_gradient, relative_error, to_numpy
from tests.strategies import KINK_MARGIN, generators, seeds
from theory.distill.distiller import Distiller, distil, meta_gradient, start
from theory.distill.inner_optim import SGD, Adam, Momentum
from theory.distill.leaves import add, norm, scale
from theory.distill.matching import PerformanceMatching
from theory.distill.patches import Aligned, PatchProblem, PatchTurns, alignment, merge, put, split
from theory.distill.truncation import FullWindow


@dataclass(frozen=True, eq=False)
class ImageStudent:
    """The two-layer student on flattened images."""

    inner: Student

    @staticmethod
    def flat(s):
        return np.reshape(s[0], (s[0].shape[0], -1)), *s[1:]

    def init(self, rng):
        return self.inner.init(rng)

    def draw(self, rng):
        return self.inner.draw(rng)

    def gradient(self, theta, s, xi):
        return self.inner.gradient(theta, self.flat(s), xi)

    def second_order(self, theta, s, xi, c):
        h_c, m_c = self.inner.second_order(theta, self.flat(s), xi, c)
        return h_c, (np.reshape(m_c[0], s[0].shape), *m_c[1:])

    def mixed(self, theta, s, xi, c):
        return self.second_order(theta, s, xi, c)[1]


def scene_of(rng, n=2, place=0, m=2, c=1, side=2):
    images, labels = rng.standard_normal((m, c, side * n, side * n)), rng.standard_normal(m)
    problem = PatchProblem(ImageStudent(Student(c * (side * n) ** 2, 4, "gaussian")), images, n, place)
    return problem, (problem.patch(images), labels)


class TestPatchProblem(InnerProblemConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        rng = draw(generators)
        n = draw(st.integers(1, 2))
        problem, s = scene_of(rng, n, draw(st.integers(0, n * n - 1)))
        theta = problem.init(rng)
        x = ImageStudent.flat(problem.merged(s))[0]
        gap = np.min(np.abs(x @ theta[1].T + theta[2]), axis=0)
        theta = (theta[0], theta[1], theta[2] + np.where(gap < KINK_MARGIN, 50.0, 0.0))
        return ProblemCase(problem, theta, s, None, lambda t, q, xi: problem.whole.inner.loss(t, ImageStudent.flat(problem.merged(q)), xi))


@given(rng=generators, n=st.integers(1, 4), m=st.integers(1, 3), c=st.integers(1, 3), p=st.integers(1, 3), q=st.integers(1, 3))
def test_split_and_merge_are_inverse(xp, rng, n, m, c, p, q):
    images = xp.asarray(rng.standard_normal((m, c, n * p, n * q)))
    parts = split(images, n)
    assert parts.shape == (m, n * n, c, p, q)
    np.testing.assert_array_equal(to_numpy(merge(parts, n)), to_numpy(images))
    np.testing.assert_array_equal(to_numpy(split(merge(parts, n), n)), to_numpy(parts))
    for place in range(n * n):
        i, j = divmod(place, n)
        window = to_numpy(images)[:, :, i * p : (i + 1) * p, j * q : (j + 1) * q]
        np.testing.assert_array_equal(to_numpy(parts[:, place, ...]), window)
        changed = to_numpy(put(images, n, place, parts[:, place, ...] + 1.0)) - to_numpy(images)
        assert np.count_nonzero(np.round(changed)) == m * c * p * q
        assert np.all(np.round(changed[:, :, i * p : (i + 1) * p, j * q : (j + 1) * q]) == 1.0)


@pytest.mark.parametrize(("seed", "place"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_a_patch_receives_its_part_of_the_whole_meta_gradient_and_alone_moves(seed, place):
    rng = np.random.default_rng(seed)
    problem, s = scene_of(rng, 2, place)
    real = PerformanceMatching(RealSample(rng.standard_normal((6, 16)), rng.standard_normal(6)))
    distiller = Distiller(FullWindow(3), Adam(0.05, eps=1e-4), Adam(0.1))
    child = [np.random.SeedSequence(seed) for _ in range(2)]
    whole = meta_gradient(problem.whole, real, distiller, problem.merged(s), child[0]).grad_s
    part = meta_gradient(problem, real, distiller, s, child[1]).grad_s
    assert relative_error(part, (problem.patch(whole[0]), whole[1])) <= 1e-12
    *_, last = distil(problem, real, distiller, start(distiller, s), seed, 2)
    after, before = (split(problem.merged(x)[0], 2) for x in (last.state.s, s))
    moved = np.any(after != before, axis=(0, 2, 3, 4))
    assert moved.tolist() == [k == place for k in range(4)]


@given(rng=generators, classes=st.integers(1, 3), ipc=st.integers(1, 2), n=st.integers(1, 2))
def test_alignment_is_the_mean_square_distance_of_centroids(xp, rng, classes, ipc, n):
    images = rng.standard_normal((classes * ipc, 2, 2 * n, 2 * n))
    value, grad = alignment(xp.asarray(images), classes, n)
    total = 0.0
    for k in range(classes):
        of_class = images[k * ipc : (k + 1) * ipc]
        centre = of_class.mean(axis=(0, 2, 3))
        for i in range(n):
            for j in range(n):
                patch = of_class[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                total += np.sum((patch.mean(axis=(0, 2, 3)) - centre) ** 2)
    assert value == pytest.approx(total / (2 * classes * n * n), rel=1e-12, abs=1e-15)
    numeric = dense_gradient(lambda x: alignment(x[0], classes, n)[0], (images,), 1e-4)[0]
    assert np.max(np.abs(to_numpy(grad) - numeric)) <= 1e-9
    if n > 1:
        assert value > 0


def test_equal_means_are_aligned_and_zero_mean_detail_is_free(xp):
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((2, 4, 3, 2, 2))
    parts += 0.7 - parts.mean(axis=(3, 4), keepdims=True)
    value, grad = alignment(xp.asarray(merge(parts, 2)), 1, 2)
    assert value < 1e-30
    assert np.max(np.abs(to_numpy(grad))) < 1e-15


class TestAligned(ObjectiveConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        rng = draw(generators)
        problem, s = scene_of(rng, 2, draw(st.integers(0, 3)))
        theta = problem.init(rng)
        real = PerformanceMatching(RealSample(rng.standard_normal((5, 16)), rng.standard_normal(5)))
        theta = (theta[0], theta[1], theta[2] + np.where(np.min(np.abs(real.real.x @ theta[1].T), axis=0) < KINK_MARGIN, 50.0, 0.0))
        patched = draw(st.booleans())
        return ObjectiveCase(
            Aligned(real, draw(st.integers(1, 2)), 2, draw(st.floats(0.1, 3.0)), problem if patched else None),
            theta,
            s if patched else problem.merged(s),
        )


@given(seed=seeds, weight=st.floats(0.1, 10.0))
def test_weight_zero_is_the_objective_alone_and_more_is_added(seed, weight):
    rng = np.random.default_rng(seed)
    problem, s = scene_of(rng)
    real = PerformanceMatching(RealSample(rng.standard_normal((5, 16)), rng.standard_normal(5)))
    theta, xi = problem.init(rng), real.draw(rng)
    plain = real.value_and_grad(theta, s, xi)
    off = Aligned(real, 2, 2, 0.0, problem).value_and_grad(theta, s, xi)
    assert off[0] == plain[0]
    assert off[2] is None
    once, twice = (replace(Aligned(real, 2, 2, weight, problem), weight=w).value_and_grad(theta, s, xi) for w in (weight, 2 * weight))
    assert twice[0] - plain[0] == pytest.approx(2 * (once[0] - plain[0]), rel=1e-9, abs=1e-12)
    assert once[0] > plain[0]
    nested = Aligned(Aligned(real, 2, 2, weight, problem), 2, 2, weight, problem).value_and_grad(theta, s, xi)
    assert norm(add(nested[2], scale(-1.0, twice[2]))) <= 1e-12 * norm(twice[2])


def test_alignment_draws_the_patches_of_a_class_together():
    rng = np.random.default_rng(1)
    problem, s = scene_of(rng, m=4)
    whole = problem.merged(s)
    real = PerformanceMatching(RealSample(rng.standard_normal((8, 16)), rng.standard_normal(8)))
    distiller = Distiller(FullWindow(2), SGD(0.01), SGD(2.0))
    spreads = []
    for weight in (0.0, 3.0):
        *_, last = distil(problem.whole, Aligned(real, 2, 2, weight), distiller, start(distiller, whole), 0, 20)
        spreads.append(alignment(last.state.s[0], 2, 2)[0])
    assert spreads[1] < 0.1 * spreads[0]


@pytest.mark.parametrize("optimiser", [SGD(0.1), Momentum(0.1), Adam(0.1)], ids=lambda o: type(o).__name__)
@given(rng=generators, n=st.integers(1, 3), labels=st.booleans())
def test_places_take_turns_and_each_goes_the_optimisers_own_way(optimiser, rng, n, labels):
    """Under gradients that do not change, T n n updates bring every patch where T plain ones do, labels where T n n do."""
    turns, side = 3, 2 * n
    s = (rng.standard_normal((2, 1, side, side)), *([rng.standard_normal((2, 3))] if labels else []))
    g = tuple(rng.standard_normal(x.shape) for x in s)
    outer = PatchTurns(optimiser, n)
    now, slots = s, outer.init(s)
    for t in range(turns * n * n):
        before, (now, slots) = now, outer.step(now, slots, t, g)
        changed = np.any(split(now[0] - before[0], n) != 0.0, axis=(0, 2, 3, 4))
        assert list(np.flatnonzero(changed)) == [t % (n * n)]
    for k, steps in enumerate((turns, turns * n * n)[: len(s)]):
        plain, own = (s[k],), optimiser.init((s[k],))
        for t in range(steps):
            plain, own = optimiser.step(plain, own, t, (g[k],))
        assert relative_error((now[k],), plain) <= 1e-12
        assert all(relative_error((mine[k],), his) <= 1e-12 for mine, his in zip(slots, own, strict=True))


def test_turns_of_places_that_do_not_tile_the_image_are_refused():
    with pytest.raises(ValueError, match="n=0"):
        PatchTurns(SGD(0.1), 0)
    with pytest.raises(ValueError, match="must divide the image"):
        PatchTurns(SGD(0.1), 3).init((np.zeros((1, 1, 4, 4)),))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split(np.zeros((1, 1, 4, 6)), 4), "n=4, image 4 x 6"),
        (lambda: split(np.zeros((1, 1, 4, 4)), 0), "n=0"),
        (lambda: PatchProblem(ImageStudent(Student(16, 4)), np.zeros((1, 1, 4, 4)), 2, 4), "place=4"),
        (lambda: alignment(np.zeros((3, 1, 2, 2)), 2, 1), "3 images, classes=2"),
        (lambda: Aligned(PerformanceMatching(RealSample(np.zeros((1, 1)), np.zeros(1))), 1, 1, -1.0), "weight=-1.0"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
