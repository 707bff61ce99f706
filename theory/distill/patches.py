"""Distilled images in patches: an n x n grid of each image as the unknown, one patch at a time, the others constant.

    images   (m, c, h, w)      split -> patches (m, n n, c, h / n, w / n), row by row;  merge is its inverse
    PatchProblem               training on the merged images, seen as a function of the patch at one place: M c restricted to it
    L_align                    (1 / 2 K n n) sum_k sum_p || mu_kp - mu_k ||^2,  k = 1 .. K classes, p = 1 .. n n places
    PatchTurns                 an outer optimiser that moves one place an update, in turn: patch by patch, for M c restricted to a patch
                               is the whole one's part there
    mu_kp                      mean over the images of class k and the pixels of patch p: its centroid, in R^c;  mu_k = mean_p mu_kp

Distilling large images patch by patch with a term that keeps patches near their global prototype is AT-BPTT's patch-wise semantic
preservation (Li et al., arXiv:2510.04838), n = 4 there. Its term and weight were not found; this L_align is our choice: it holds the coarse
content of a class's patches together and leaves everything of zero mean in a patch free. Weight 0 leaves the objective untouched.
"""

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from theory.distill.inner_optim import Slots
from theory.distill.leaves import Array, Leaves
from theory.distill.outer import OuterOptimiser
from theory.distill.problem import InnerProblem, Noise, Objective


def _check(images: Array, n: int) -> None:
    h, w = images.shape[-2:]
    if n < 1 or h % n or w % n:
        raise ValueError(f"an n x n grid must divide the image: n={n}, image {h} x {w}")


def split(images: Array, n: int) -> Array:
    """(m, c, h, w) -> (m, n n, c, h / n, w / n)."""
    _check(images, n)
    xp = array_namespace(images)
    m, c, h, w = images.shape
    grid = xp.permute_dims(xp.reshape(images, (m, c, n, h // n, n, w // n)), (0, 2, 4, 1, 3, 5))
    return xp.reshape(grid, (m, n * n, c, h // n, w // n))


def merge(patches: Array, n: int) -> Array:
    """(m, n n, c, h / n, w / n) -> (m, c, h, w)."""
    xp = array_namespace(patches)
    m, _, c, p, q = patches.shape
    grid = xp.permute_dims(xp.reshape(patches, (m, n, n, c, p, q)), (0, 3, 1, 4, 2, 5))
    return xp.reshape(grid, (m, c, n * p, n * q))


def put(images: Array, n: int, place: int, patch: Array) -> Array:
    """The images with `patch` (m, c, h / n, w / n) at `place`."""
    parts = split(images, n)
    xp = array_namespace(images)
    return merge(xp.concat([parts[:, :place, ...], patch[:, None, ...], parts[:, place + 1 :, ...]], axis=1), n)


@dataclass(frozen=True, eq=False)
class PatchProblem:
    """`whole` as an inner problem of S = (patch (m, c, h / n, w / n), further leaves): `images` gives all other places."""

    whole: InnerProblem
    images: Array
    n: int
    place: int

    def __post_init__(self) -> None:
        _check(self.images, self.n)
        if not 0 <= self.place < self.n**2:
            raise ValueError(f"the place must lie in [0, {self.n**2}): place={self.place}")

    def patch(self, images: Array) -> Array:
        """What lies at this place."""
        return split(images, self.n)[:, self.place, ...]

    def merged(self, s: Leaves) -> Leaves:
        """S with whole images."""
        return put(self.images, self.n, self.place, s[0]), *s[1:]

    def init(self, rng: np.random.Generator) -> Leaves:
        return self.whole.init(rng)

    def draw(self, rng: np.random.Generator) -> Noise:
        return self.whole.draw(rng)

    def gradient(self, theta: Leaves, s: Leaves, xi: Noise) -> Leaves:
        return self.whole.gradient(theta, self.merged(s), xi)

    def second_order(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> tuple[Leaves, Leaves]:
        h_c, m_c = self.whole.second_order(theta, self.merged(s), xi, c)
        return h_c, (self.patch(m_c[0]), *m_c[1:])

    def mixed(self, theta: Leaves, s: Leaves, xi: Noise, c: Leaves) -> Leaves:
        m_c = self.whole.mixed(theta, self.merged(s), xi, c)
        return self.patch(m_c[0]), *m_c[1:]


def alignment(images: Array, classes: int, n: int) -> tuple[float, Array]:
    """(L_align, its gradient in the images); images class-major, the same number of each class."""
    m = images.shape[0]
    if classes < 1 or m % classes:
        raise ValueError(f"images must come class by class in equal numbers: {m} images, classes={classes}")
    xp = array_namespace(images)
    patches = split(images, n)
    pixels = patches.shape[-1] * patches.shape[-2]
    centroids = xp.mean(xp.reshape(xp.mean(patches, axis=(3, 4)), (classes, m // classes, n * n, -1)), axis=1)
    away = centroids - xp.mean(centroids, axis=1, keepdims=True)
    # The deviations sum to 0 over the places, so the mean's own derivative drops out.
    share = away / (classes * n * n * (m // classes) * pixels)
    spread = xp.reshape(share[:, None, ...] + xp.zeros((1, m // classes, 1, 1), dtype=images.dtype), (m, n * n, -1, 1, 1))
    return float(xp.sum(away * away)) / (2 * classes * n * n), merge(spread + xp.zeros_like(patches), n)


@dataclass(frozen=True, eq=False)
class Aligned:
    """objective + weight L_align over the whole images; `problem` None: S holds them, else S is that problem's patch."""

    objective: Objective
    classes: int
    n: int
    weight: float
    problem: PatchProblem | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < float("inf"):
            raise ValueError(f"the weight of the alignment must be >= 0 and finite: weight={self.weight}")

    def draw(self, rng: np.random.Generator) -> Noise:
        return self.objective.draw(rng)

    def value_and_grad(self, theta: Leaves, s: Leaves, xi: Noise) -> tuple[float, Leaves, Leaves | None]:
        value, grad, direct = self.objective.value_and_grad(theta, s, xi)
        if self.weight == 0.0:
            return value, grad, direct
        extra, pull = alignment((s if self.problem is None else self.problem.merged(s))[0], self.classes, self.n)
        first = self.weight * (pull if self.problem is None else self.problem.patch(pull))
        rest = tuple(array_namespace(x).zeros_like(x) for x in s[1:]) if direct is None else direct[1:]
        return value + self.weight * extra, grad, (first if direct is None else first + direct[0], *rest)


@dataclass(frozen=True)
class PatchTurns:
    """Update t moves the patch at place t mod n n of every image, its (t // n n)-th move; further leaves of S move at every update."""

    optimiser: OuterOptimiser
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"a grid of patches needs n >= 1: n={self.n}")

    def init(self, theta: Leaves) -> Slots:
        _check(theta[0], self.n)
        return self.optimiser.init(theta)

    def step(self, theta: Leaves, slots: Slots, t: int, g: Leaves) -> tuple[Leaves, Slots]:
        turn, place = divmod(t, self.n**2)

        def patch(images: Array) -> Array:
            return split(images, self.n)[:, place, ...]

        (moved,), own = self.optimiser.step((patch(theta[0]),), tuple((patch(slot[0]),) for slot in slots), turn, (patch(g[0]),))
        rest, others = self.optimiser.step(theta[1:], tuple(slot[1:] for slot in slots), t, g[1:])
        kept = zip(slots, own, others, strict=True)
        images = put(theta[0], self.n, place, moved)
        return (images, *rest), tuple((put(slot[0], self.n, place, a), *more) for slot, (a,), more in kept)
