"""Gradient matching on images, class by class, real and distilled images under one warp (DC with DSA).

    for each class c and state theta_t of the window:   g_S from the distilled images of c, g_T from `real` images of c,
    both turned by the same drawn warp (one for the whole batch);   objective = mean over t of sum over c of dist(g_S, g_T)

dist is the sum over the rows of each weight of 1 - cos (theory.distill.matching.cosine); parameters of one axis are left out, for a bias
that a norm follows has a gradient of pure rounding, whose direction is noise. Zhao, Mopuri, Bilen, "Dataset Condensation with
Gradient Matching", ICLR 2021, algorithm 1, and Zhao and Bilen, "Differentiable Siamese Augmentation", ICML 2021. The states are those of a
training run on the whole set; here one update an outer step follows a window of them, where the paper updates the set at every state.
"""

from dataclasses import dataclass

import numpy as np

from realdata.augment import Augment
from realdata.bridge import Batch, RealImages
from theory.distill.adjoint import Tape
from theory.distill.leaves import Leaves, axpy, zeros_like
from theory.distill.matching import cosine, gradient_matching
from theory.distill.problem import InnerProblem


def weight_cosine(g_s: Leaves, g_t: Leaves) -> tuple[float, Leaves]:
    """The cosine distance of the leaves with at least two axes, and its gradient in g_S."""
    kept = [k for k, g in enumerate(g_s) if g.ndim > 1]
    value, parts = cosine(tuple(g_s[k] for k in kept), tuple(g_t[k] for k in kept))
    cotangent = list(zeros_like(g_s))
    for k, part in zip(kept, parts, strict=True):
        cotangent[k] = part
    return value, tuple(cotangent)


@dataclass(frozen=True, eq=False)
class ClassGradients:
    """The objective, as a PathObjective; `rows[c]` are the real images of class c, `count` of which make a batch of that class."""

    real: RealImages
    rows: tuple[np.ndarray, ...]
    count: int
    ipc: int
    augment: Augment

    def draw(self, rng: np.random.Generator) -> tuple[tuple[np.ndarray, int], ...]:
        """For each class its real rows and the seed of its warps."""
        picked = [rng.choice(rows, size=min(self.count, len(rows)), replace=False) for rows in self.rows]
        return tuple((rows, int(rng.integers(2**63))) for rows in picked)

    def along(self, problem: InnerProblem, s: Leaves, tape: Tape, xi: tuple[tuple[np.ndarray, int], ...]) -> tuple[float, Leaves]:
        value, grad_s, share = 0.0, zeros_like(s), 1.0 / len(tape.entries)
        for t, entry in enumerate(tape.entries):
            for label, (rows, seed) in enumerate(xi):
                own = np.arange(label * self.ipc, (label + 1) * self.ipc)
                # Two generators in one state: a shared warp comes out the same for batches of any two sizes.
                warp, real_warp = (self.augment.draw(np.random.default_rng((seed, t)), n) for n in (len(own), len(rows)))
                theta = entry.state.theta
                g_t = self.real.loss_and_gradient(theta, Batch(rows, real_warp))[1]
                one, part = gradient_matching(problem, weight_cosine, theta, s, Batch(own, warp), g_t)
                value, grad_s = value + share * one, axpy(share, part, grad_s)
        return value, grad_s
