"""Real images at the count of a distilled set: what distillation has to beat.

    random   ipc images of each class, drawn without replacement
    kmeans   per class, k-means with ipc centres on the transformed images, and for each centre the nearest real image (Lloyd, k-means++)
    means    the centres themselves
    herding  per class, one after the other the image that brings the mean of those taken nearest to the class mean mu: the k-th is
             argmin_x || mu - (x + x_1 + .. + x_{k-1}) / k ||, each taken once (Welling 2009; iCaRL, Rebuffi et al. 2017, algorithm 4, on
             transformed pixels in the place of its network's features)

Each takes transformed images (n, channels, height, width), indexed by rows, and labels (n,); it gives (classes * ipc, channels, height,
width), class-major. The images of one class are in memory at a time. Herding draws nothing: it gives the same images for every generator.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from realdata.streaming import HostRows
from sims.lab.files import RunError

Baseline = Callable[[HostRows, np.ndarray, int, np.random.Generator], np.ndarray]


def _class_rows(labels: np.ndarray, ipc: int) -> list[np.ndarray]:
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    smallest = min(len(r) for r in rows)
    if not 1 <= ipc <= smallest:
        raise RunError(f"need between 1 and {smallest} images per class (the smallest class has {smallest}): ipc={ipc}")
    return rows


def random_rows(labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `ipc` random images of each class."""
    return np.concatenate([rng.choice(rows, size=ipc, replace=False) for rows in _class_rows(labels, ipc)])


def random_images(images: HostRows, labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
    """Random real images."""
    return images[random_rows(labels, ipc, rng)]


def kmeans_images(images: HostRows, labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
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


def kmeans_means(images: HostRows, labels: np.ndarray, ipc: int, rng: np.random.Generator) -> np.ndarray:
    """The centres, shaped and typed as images."""
    centres = [_centres(images[rows].reshape(len(rows), -1), ipc, rng) for rows in _class_rows(labels, ipc)]
    return np.concatenate(centres).reshape(-1, *images.shape[1:]).astype(images.dtype)


def herding_images(images: HostRows, labels: np.ndarray, ipc: int, _: np.random.Generator) -> np.ndarray:
    """Real images whose running means follow the class means."""
    chosen = [rows[_herded(images[rows].reshape(len(rows), -1), ipc)] for rows in _class_rows(labels, ipc)]
    return images[np.concatenate(chosen)]


def _herded(x: np.ndarray, count: int) -> list[int]:
    x = x.astype(np.float64)
    mean, squares = x.mean(axis=0), np.einsum("ij,ij->i", x, x)
    picked: list[int] = []
    taken = np.zeros_like(mean)
    for k in range(1, count + 1):
        # || k mu - taken - x ||^2 without its first, constant part
        distance = squares - 2.0 * (x @ (k * mean - taken))
        distance[picked] = np.inf
        picked.append(int(np.argmin(distance)))
        taken += x[picked[-1]]
    return picked


def _centres(flat: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)  # such a centre stays where it was
        return kmeans2(flat, k, iter=20, minit="++", rng=rng)[0]


BASELINES: dict[str, Baseline] = {"random": random_images, "kmeans": kmeans_images, "means": kmeans_means, "herding": herding_images}
DETERMINISTIC = ("herding",)


def baselines(names: str) -> dict[str, Baseline]:
    """The baselines in a list such as "random,kmeans"; an empty list gives none."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in BASELINES]
    if unknown:
        raise RunError(f"unknown baseline {unknown[0]!r}: choose from {', '.join(BASELINES)}")
    return {name: BASELINES[name] for name in asked}
