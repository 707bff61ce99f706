"""Real images at the count of a distilled set: what distillation has to beat.

    random   ipc images of each class, drawn without replacement
    kmeans   per class, k-means with ipc centres on the transformed images, and for each centre the nearest real image (Lloyd, k-means++)
    means    the centres themselves

Each takes transformed images (n, channels, height, width), labels (n,), and gives (classes * ipc, channels, height, width), class-major.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from sims.lab.files import RunError

Baseline = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]


def _class_rows(labels: np.ndarray, ipc: int) -> list[np.ndarray]:
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    smallest = min(len(r) for r in rows)
    if not 1 <= ipc <= smallest:
        raise RunError(f"need between 1 and {smallest} images per class (the smallest class has {smallest}): ipc={ipc}")
    return rows


def random_images(images: np.ndarray, labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
    """Random real images."""
    return images[np.concatenate([rng.choice(rows, size=ipc, replace=False) for rows in _class_rows(labels, ipc)])]


def kmeans_images(images: np.ndarray, labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
    """The real images nearest to the centres, each taken once: centres choose in turn, the closest match first."""
    chosen = []
    for rows in _class_rows(labels, ipc):
        flat = images[rows].reshape(len(rows), -1)
        distance = cdist(_centres(flat, ipc, rng), flat)
        picked: dict[int, int] = {}
        for centre in np.argsort(distance.min(axis=1), kind="stable"):
            picked[int(centre)] = nearest = int(np.argmin(distance[centre]))
            distance[:, nearest] = np.inf
        chosen.append(rows[[picked[centre] for centre in range(ipc)]])
    return images[np.concatenate(chosen)]


def kmeans_means(images: np.ndarray, labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
    """The centres, shaped and typed as images."""
    centres = [_centres(images[rows].reshape(len(rows), -1), ipc, rng) for rows in _class_rows(labels, ipc)]
    return np.concatenate(centres).reshape(-1, *images.shape[1:]).astype(images.dtype)


def _centres(flat: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)  # such a centre stays where it was
        return kmeans2(flat, k, iter=20, minit="++", rng=rng)[0]


BASELINES: dict[str, Baseline] = {"random": random_images, "kmeans": kmeans_images, "means": kmeans_means}


def baselines(names: str) -> dict[str, Baseline]:
    """The baselines in a list such as "random,kmeans"; an empty list gives none."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in BASELINES]
    if unknown:
        raise RunError(f"unknown baseline {unknown[0]!r}: choose from {', '.join(BASELINES)}")
    return {name: BASELINES[name] for name in asked}
