"""The subspace that the first gradient of a two-layer network picks out of a task, and its rank, estimated from samples.

    z_n, y_n   inputs in R^d, centred and whitened, and label vectors in R^C after preprocessing; N of them in B blocks of equal size
    w_i, a_i   first-layer directions, uniform on the unit sphere, and heads of signs +-1 in R^C: K neurons of fresh initialisations
    g_i        (1/N) sum_n (a_i.y_n) z_n 1{w_i.z_n >= 0}: up to sign the first-layer gradient at a start whose output is zero
    v_bi       g_i + (w_i.g_i) w_i on block b, v_i their mean over blocks
    G          (1/K) sum_i E[v_i] E[v_i]^T over samples: the average outer product of population gradients
    r, r_eff   number of eigenvalues of G above the cut, and (sum lambda)^2 / sum lambda^2 over them

For Gaussian inputs E[g_i] = (2 pi)^(-1/2) H_i w_i + O(1/d), H_i the mean Hessian of a_i.y (Damian, Lee, Soltanolkotabi, COLT 2022, for
one output): the range of G is S* where the Hessians span it. Where the inputs are not Gaussian, G is still what the first gradient
step writes into the first layer, but nothing makes its range a subspace that the labels depend on. Derived here:

Gate. For links of degree <= 3, E[g_i] = (2 pi)^(-1/2) [H w - (1/2)(w^T H w) w] (theory.predictions); the second term, the gate's own, is
not in S*. As w.E[g_i] = (2 pi)^(-1/2) (1/2) w^T H w, the rows g_i + (w_i.g_i) w_i have it taken out; they make G below.
Moment. The mean of noisy gradients has a noise floor; taking its estimated covariance away leaves an unbiased estimate of G,
    G^ = (1/K) sum_i [v_i v_i^T - C_i],   C_i = sum_b (v_bi - v_i)(v_bi - v_i)^T / (B (B - 1)).
Blocks must be independent: preprocessing is done in each by itself (one fit for all would leave the mean with less noise than the blocks
tell, and G^ with less than nothing off S*). It takes the amplitude factor 1 - (d + 4) B / N from the signal (theory.predictions).
Null. For signs e_b with sum_b e_b = 0 the flipped mean n_i = (1/B) sum_b e_b v_bi holds no E[v_i], and the other contrasts of the blocks
estimate its covariance: C'_i = ((B - 1) C_i - n_i n_i^T)/(B - 2). For Gaussian blocks n and C' have the joint law of the noise in v and
of C (but for one degree of freedom), whatever their covariance: so n_i n_i^T - C'_i is G^ without its signal, also where the noise
differs from direction to direction (permuted labels would change that). The cut is the 95th percentile of its largest eigenvalue:
a task without a subspace shows one in about 5 % of the cases (18 of 250 tasks at d = 24, B = 20). Flipping signs of the entries of a
matrix for this purpose is the idea of Hong, Sheng, Dobriban, arXiv:2012.02985; balanced flips of blocks are ours.
Fresh samples. v_i projected on the directions above the cut, plus one flipped mean, is what another sample of this size would give, once
the noise that the projected mean brings along is taken off too; estimates from many such draws carry the intervals. They tell of the
directions found: what lies below the cut is invisible at this N.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

FALSE_ALARM = 0.05
REMOVED = ("mean", "linear")
ROUNDING = 1e-9  # of r_eff for equal eigenvalues


class Neurons(NamedTuple):
    """Directions w (K, d) and heads a (K, C) of a first layer."""

    w: Float[Any, "K d"]
    a: Float[Any, "K C"]


class Estimate(NamedTuple):
    """Eigenvalues of G^ in decreasing order, eigenvectors as columns, and the cut between signal and noise."""

    values: Float[np.ndarray, "d"]
    basis: Float[np.ndarray, "d d"]
    cut: float

    @property
    def rank(self) -> int:
        """r: eigenvalues above the cut."""
        return int(np.sum(self.values > self.cut))

    @property
    def effective_rank(self) -> float:
        """r_eff, between 1 and r; 0 where nothing is above the cut."""
        found = self.values[: self.rank]
        return participation(found) if len(found) else 0.0

    @property
    def found(self) -> Float[np.ndarray, "d r"]:
        """Orthonormal basis of the directions above the cut."""
        return self.basis[:, : self.rank]

    @property
    def subspace(self) -> Float[np.ndarray, "d k"]:
        """The leading k = ceil(r_eff) of them: all where they weigh alike, those that carry the task where many weak ones follow."""
        return self.basis[:, : math.ceil(self.effective_rank - ROUNDING)]


def participation(values: Float[np.ndarray, "n"]) -> float:
    """(sum v)^2 / sum v^2: n for n equal values, 1 where one outweighs the rest."""
    return float(np.sum(values) ** 2 / np.sum(values**2))


def draw_neurons(d: int, outputs: int, k: int, rng: np.random.Generator) -> Neurons:
    """K neurons of fresh initialisations, as NumPy float64."""
    if min(d, outputs, k) < 1:
        raise ValueError(f"neurons need d, C, K >= 1: d={d}, C={outputs}, K={k}")
    w = rng.standard_normal((k, d))
    return Neurons(w / np.linalg.norm(w, axis=1, keepdims=True), rng.choice((-1.0, 1.0), (k, outputs)))


def gradient_rows(neurons: Neurons, z: Float[Any, "n d"], y: Float[Any, "n C"]) -> Float[Any, "K d"]:
    """g_i of every neuron."""
    xp = array_namespace(z)
    gated = xp.astype(z @ neurons.w.T >= 0, z.dtype) * (y @ neurons.a.T)
    return gated.T @ z / z.shape[0]


def without_gate(neurons: Neurons, rows: Float[Any, "K d"]) -> Float[Any, "K d"]:
    """g_i + (w_i.g_i) w_i."""
    return rows + array_namespace(rows).sum(rows * neurons.w, axis=1)[:, None] * neurons.w


def block_rows(neurons: Neurons, z: Float[Any, "N d"], y: Float[Any, "N C"], blocks: int, remove: str = "linear") -> Float[Any, "B K d"]:
    """v_bi on consecutive blocks of N // B samples (the rest is left out); the samples must come in random order.

    remove   what preprocessing takes from the labels of each block, by least squares: "linear" (mean and linear part) or "mean"
    """
    if remove not in REMOVED:
        raise ValueError(f"unknown preprocessing {remove!r}; known: {', '.join(REMOVED)}")
    n, d = z.shape
    size = n // blocks if blocks > 0 else 0
    if blocks < 4 or blocks % 2 or size < d + 2:
        raise ValueError(f"need an even number >= 4 of blocks with more than d + 1 = {d + 1} samples each: blocks={blocks}, N={n}")
    parts = [slice(b * size, (b + 1) * size) for b in range(blocks)]
    return array_namespace(z).stack([without_gate(neurons, gradient_rows(neurons, z[p], _prepared(z[p], y[p], remove))) for p in parts])


def _prepared(z: Any, y: Any, remove: str) -> Any:
    xp = array_namespace(z)
    design = xp.ones((z.shape[0], 1), dtype=z.dtype)
    if remove == "linear":
        design = xp.concat([design, z], axis=1)
    return y - design @ xp.linalg.solve(design.T @ design, design.T @ y)


def set_moment(neurons: Neurons, z: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "d d"]:
    """(1/K) sum_i g_i g_i^T of a finite set taken as it is: its rank is at most the number of points."""
    rows = gradient_rows(neurons, z, y)
    return rows.T @ rows / len(rows)


def leading(moment: Float[np.ndarray, "d d"], k: int) -> Float[np.ndarray, "d k"]:
    """The k leading eigenvectors of a second moment, as columns; fewer where its rank is below k."""
    values, basis = np.linalg.eigh(moment)
    rank = int(np.sum(values > values[-1] * len(values) * np.finfo(values.dtype).eps))
    return basis[:, ::-1][:, : min(k, rank)]


def overlap(found: Float[np.ndarray, "d p"], reference: Float[np.ndarray, "d q"]) -> float:
    """Share of the reference subspace inside the found one: mean squared cosine, ||found^T reference||_F^2 / q; orthonormal columns.

    A random p-dimensional subspace has p/d in the mean.
    """
    return float(np.sum((found.T @ reference) ** 2) / reference.shape[1])


def captured(u: Float[np.ndarray, "d p"], task: Estimate) -> float:
    """Share of the task's gradient energy inside span u (orthonormal columns): sum_j lambda_j |u^T u_j|^2 / sum_j lambda_j over the r
    directions above the cut; nan where there is none. Equals `overlap` where all lambda_j are equal.
    """
    values = task.values[: task.rank]
    return float(values @ np.sum((u.T @ task.found) ** 2, axis=0) / np.sum(values)) if len(values) else math.nan


def estimate(rows: Float[np.ndarray, "B K d"], rng: np.random.Generator, draws: int = 200) -> Estimate:
    """G^ from block gradients, and the cut from `draws` flipped means. FloatingPointError where a gradient is not finite."""
    if not np.all(np.isfinite(rows)):
        raise FloatingPointError(f"{int(np.sum(~np.isfinite(rows)))} entries of the first-layer gradients are NaN or infinite")
    tops = [np.linalg.eigvalsh(_moment(n) - c)[-1] for n, c in _noise(rows, rng, draws)]
    return _decomposed(_moment(np.mean(rows, axis=0)) - _covariance(rows), float(np.quantile(tops, 1.0 - FALSE_ALARM)))


def fresh_estimates(rows: Float[np.ndarray, "B K d"], found: Estimate, rng: np.random.Generator, draws: int = 200) -> Iterator[Estimate]:
    """Estimates from `draws` samples like this one, with the directions found and independent noise."""
    onto = found.found @ found.found.T
    signal, own = np.mean(rows, axis=0) @ onto, onto @ _covariance(rows) @ onto
    for n, c in _noise(rows, rng, draws):
        yield _decomposed(_moment(signal + n) - own - c, found.cut)


def _decomposed(moment: np.ndarray, cut: float) -> Estimate:
    values, basis = np.linalg.eigh(moment)
    return Estimate(values[::-1], basis[:, ::-1], cut)


def _moment(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows / len(rows)


def _covariance(rows: np.ndarray) -> np.ndarray:
    """(1/K) sum_i C_i."""
    blocks, k, d = rows.shape
    deviations = (rows - np.mean(rows, axis=0)).reshape(-1, d)
    return deviations.T @ deviations / (k * blocks * (blocks - 1))


def _noise(rows: np.ndarray, rng: np.random.Generator, draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(n, C') of random balanced signs."""
    blocks, covariance = len(rows), _covariance(rows)
    signs = np.repeat((1.0, -1.0), blocks // 2)
    for _ in range(draws):
        n = np.tensordot(rng.permutation(signs), rows, axes=1) / blocks
        yield n, ((blocks - 1) * covariance - _moment(n)) / (blocks - 2)
