"""Baselines: counts, classes, nearness to the centres."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from realdata.baselines import BASELINES, baselines, herding_images, kmeans_images, kmeans_means
from sims.lab.files import RunError
from tests.strategies import generators, seeds


def clustered(rng: np.random.Generator, classes: int, clusters: int, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images in `clusters` tight, distant clumps a class; their labels and the clumps' middles."""
    middles = 100.0 * np.arange(classes * clusters)[:, None] + rng.standard_normal((classes * clusters, 8))
    images = np.repeat(middles, each, axis=0) + 0.1 * rng.standard_normal((classes * clusters * each, 8))
    labels = np.repeat(np.arange(classes), clusters * each)
    order = rng.permutation(len(images))
    return images[order].reshape(-1, 2, 2, 2).astype(np.float32), labels[order], middles


@given(name=st.sampled_from(list(BASELINES)), classes=st.integers(1, 3), ipc=st.integers(1, 4), seed=seeds)
def test_counts_classes_and_repeatability(name: str, classes: int, ipc: int, seed: int):
    images, labels, _ = clustered(np.random.default_rng(seed), classes, 2, 5)
    drawn, again = (BASELINES[name](images, labels, ipc, np.random.default_rng(seed)) for _ in range(2))
    assert drawn.shape == (classes * ipc, 2, 2, 2)
    assert drawn.dtype == images.dtype
    assert np.array_equal(drawn, again)
    if name == "means":
        return
    place = {image.tobytes(): row for row, image in enumerate(images)}
    rows = [place[image.tobytes()] for image in drawn]
    assert len(set(rows)) == len(rows)
    assert np.array_equal(labels[rows], np.repeat(np.arange(classes), ipc))


@given(rng=generators, classes=st.integers(1, 3))
def test_one_centre_is_the_class_mean_and_its_nearest_image(rng: np.random.Generator, classes: int):
    images, labels, _ = clustered(rng, classes, 1, 6)
    means = np.stack([images[labels == c].mean(axis=0) for c in range(classes)])
    assert np.allclose(kmeans_means(images, labels, 1, rng), means, rtol=1e-5)
    nearest = kmeans_images(images, labels, 1, rng)
    for c in range(classes):
        own = images[labels == c].reshape(-1, 8)
        assert np.array_equal(nearest[c].ravel(), own[np.argmin(cdist(means[c].reshape(1, 8), own))])


def test_centres_find_the_clumps():
    images, labels, middles = clustered(np.random.default_rng(1), 2, 3, 8)
    found = kmeans_means(images, labels, 3, np.random.default_rng(2)).reshape(-1, 8)
    assert cdist(middles, found).min(axis=1).max() < 1.0


@given(rng=generators, count=st.integers(1, 5))
def test_herding_takes_at_every_step_the_image_that_brings_the_mean_nearest(rng: np.random.Generator, count: int):
    """Against the definition, step by step, in float64; a later image is never better at the moment an earlier one was taken."""
    images = rng.standard_normal((7, 1, 2, 2)).astype(np.float32)
    labels = np.zeros(7, dtype=np.int64)
    chosen = herding_images(images, labels, count, rng).reshape(count, -1).astype(np.float64)
    flat = images.reshape(7, -1).astype(np.float64)
    mean, free = flat.mean(axis=0), list(range(7))
    for k in range(1, count + 1):
        distance = [np.linalg.norm(mean - (flat[row] + chosen[: k - 1].sum(axis=0)) / k) for row in free]
        taken = next(row for row in free if np.array_equal(flat[row], chosen[k - 1]))
        assert np.linalg.norm(mean - chosen[:k].mean(axis=0)) <= min(distance) + 1e-6
        free.remove(taken)


def test_herding_follows_the_mean_better_than_chance_and_draws_nothing():
    images, labels, _ = clustered(np.random.default_rng(3), 2, 4, 10)

    def gap(drawn: np.ndarray) -> float:
        return float(np.linalg.norm(drawn[:8].mean(axis=0) - images[labels == 0].mean(axis=0)))

    herded = [herding_images(images, labels, 8, np.random.default_rng(seed)) for seed in range(2)]
    random = [gap(BASELINES["random"](images, labels, 8, np.random.default_rng(seed))) for seed in range(20)]
    assert np.array_equal(*herded)
    assert gap(herded[0]) < 0.1 * np.median(random)


def test_impossible_requests_are_refused():
    images, labels, _ = clustered(np.random.default_rng(0), 2, 1, 3)
    for ipc in (0, 4):
        with pytest.raises(RunError, match=f"ipc={ipc}"):
            BASELINES["random"](images, labels, ipc, np.random.default_rng(0))
    assert list(baselines(" random, kmeans")) == ["random", "kmeans"]
    assert baselines("") == {}
    with pytest.raises(RunError, match="unknown baseline 'forgetting'"):
        baselines("random,forgetting")
