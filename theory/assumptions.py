"""The hypotheses of the theory, A1 to A25, each a signed margin on one concrete experiment (see theory.margins).

Notation: d, r, kappa, p of the teacher (theory.multi_index), N samples, L neurons, J starts, D1 = M1 points with labels y1, Phi the
M2 x L second-layer features. A statement's source says who makes it; the constants C and the tolerances are ours.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import chi2, kstest

from theory import hermite, memory, two_layer
from theory.distill.leaves import Leaves
from theory.margins import Assumption, Experiment, Margin, Thresholds, above, assumption, below
from theory.multi_index import MultiIndexModel

DAMIAN = "Damian, Lee, Soltanolkotabi, COLT 2022"
CHEN = "Chen, Huang, Weng, NeurIPS 2024"
PAPER = "Kinoshita et al., arXiv:2603.14830, abstract"
HERE = "derived here"

FRESH = ("test", "retrain", "bias")
"""Roles whose seeds must differ from those of every other role (A24)."""


def _relative_to(values: np.ndarray) -> float:
    return max(1.0, float(np.max(np.abs(values))))


def _isotropic(rows: np.ndarray, thresholds: Thresholds) -> float:
    """How near rows (n, d) are to mean zero and second moment I: the least of three margins.

    Largest mean of a column, largest eigenvalue of the second moment, and its least one, which for Gaussian rows is below
    (1 - sqrt(d/n) - t/sqrt(n))^2 with probability exp(-t^2/2) at most (Davidson and Szarek); nothing is asked of it where that is void.
    """
    n, d = rows.shape
    mean = below(np.max(np.abs(rows.mean(axis=0))), thresholds.sigma / math.sqrt(n))
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows / n)
    spread = below(max(eigenvalues[-1] - 1.0, 1.0 - eigenvalues[0]), thresholds.spectral * (math.sqrt(d / n) + d / n))
    least = 1.0 - math.sqrt(d / n) - thresholds.sigma / math.sqrt(n)
    return min(mean, spread, above(math.sqrt(max(eigenvalues[0], 0.0)), least) if least > 0 else math.inf)


def _normal_law(x: np.ndarray, thresholds: Thresholds) -> float:
    """Whether the numbers follow N(0, 1), by the test of Kolmogorov and Smirnov."""
    return above(kstest(np.ravel(x), "norm").pvalue, thresholds.significance)


@assumption("A1", "inputs are N(0, I_d): mean, covariance and law of the sample's entries fluctuate no more", DAMIAN, "x")
def gaussian_inputs(e: Experiment, x: np.ndarray) -> float:
    return min(_isotropic(x, e.thresholds), _normal_law(x, e.thresholds))


@assumption("A2", "index directions are orthonormal and fewer than dimensions", DAMIAN, "model")
def orthonormal_index(e: Experiment, model: MultiIndexModel) -> float:
    b = np.asarray(model.B, dtype=np.float64)
    defect = np.max(np.abs(b.T @ b - np.eye(model.r)))
    return min(below(defect, e.thresholds.exact), above(model.d - model.r, 1))


@assumption("A3", "the target depends on x through P x alone", PAPER, "model")
def multi_index(e: Experiment, model: MultiIndexModel) -> float:
    target = e.target or model.clean
    x, b = e.probe(64, model.d), np.asarray(model.B, dtype=np.float64)
    full, projected = np.asarray(target(x)), np.asarray(target(x @ b @ b.T))
    return below(np.max(np.abs(full - projected)), e.thresholds.exact * _relative_to(full))


@assumption(
    "A4",
    "the link is a polynomial of the claimed degree p: on lines in S*, Hermite coefficients p+1 .. p+6 vanish",
    DAMIAN,
    "model",
    "degree",
)
def polynomial_degree(e: Experiment, model: MultiIndexModel, degree: int) -> float:
    target, b = e.target or model.clean, np.asarray(model.B, dtype=np.float64)
    top, worst, size = degree + 6, 0.0, 1.0
    scales = np.sqrt([float(math.factorial(k)) for k in range(top + 1)])
    for u in e.probe(8, model.r):
        line = b @ (u / np.linalg.norm(u))
        found = np.abs(hermite.coefficients(lambda t, line=line: np.asarray(target(t[:, None] * line)), top, nodes=64)) / scales
        worst, size = max(worst, float(np.max(found[degree + 1 :]))), max(size, float(np.max(found)))
    return below(worst, e.thresholds.normalised * size)


@assumption("A5", "E f* = 0, E[f* x] = 0, E f*^2 = 1 (of the residual where preprocessing is on)", DAMIAN, "model")
def normalised(e: Experiment, model: MultiIndexModel) -> float:
    link, linear = model.link, float(np.linalg.norm(model.link.linear))
    if e.preprocessed:
        return below(abs(link.variance - linear**2 - 1.0), e.thresholds.normalised)
    defects = (abs(link.mean), linear, abs(link.variance + link.mean**2 - 1.0))
    return below(max(defects), e.thresholds.normalised)


@assumption("A6", "the mean Hessian has rank r", DAMIAN, "model", strict=True)
def hessian_rank(e: Experiment, model: MultiIndexModel) -> float:
    singular = np.linalg.svd(model.link.hessian, compute_uv=False)
    return above(singular[-1], e.thresholds.rank * singular[0]) if singular[0] > 0 else -1.0


@assumption("A7", "the normalised condition number kappa = ||A^-1|| / sqrt(r) is bounded", DAMIAN, "model")
def kappa_bounded(e: Experiment, model: MultiIndexModel) -> float:
    return below(model.link.kappa, e.thresholds.kappa)


@assumption("A8", "even width and a symmetric start: a_j = -a_(j+L/2), w_j = w_(j+L/2), b = 0, so f = 0", DAMIAN, "theta0")
def symmetric_start(e: Experiment, theta0: Leaves) -> float:
    a, w, b = theta0
    if a.shape[0] % 2:
        return -1.0
    half = a.shape[0] // 2
    f = two_layer.value(theta0, e.probe(16, w.shape[1]))
    defects = (a[:half] + a[half:], w[:half] - w[half:], b, f)
    return below(max(float(np.max(np.abs(x))) for x in defects), e.thresholds.exact)


@assumption("A9", "rows of the start have norm about 1 and heads are +-1", f"{DAMIAN}; the shortest row {HERE}", "theta0")
def row_norms(e: Experiment, theta0: Leaves) -> float:
    a, w, _ = theta0
    (width, d), lengths = w.shape, np.linalg.norm(w, axis=1)
    long = below(np.max(np.abs(lengths - 1.0)), e.thresholds.sigma / math.sqrt(d))
    # Of L rows from N(0, I/d) the shortest is as short as this with the probability of the significance level.
    short = above(np.min(lengths), math.sqrt(chi2.ppf(e.thresholds.significance / width, d) / d))
    return min(long, short, below(np.max(np.abs(np.abs(a) - 1.0)), e.thresholds.exact))


@assumption("A10", "N >= C1 d^2 kappa^2 r, with preprocessing", DAMIAN, "model", "samples", "preprocessed")
def enough_samples(e: Experiment, model: MultiIndexModel, samples: int, preprocessed: bool) -> float | None:
    return above(samples, e.thresholds.samples * model.d**2 * model.link.kappa**2 * model.r) if preprocessed else None


@assumption("A10-raw", "N >= C1 d^3, without preprocessing", HERE, "model", "samples", "preprocessed")
def enough_samples_raw(e: Experiment, model: MultiIndexModel, samples: int, preprocessed: bool) -> float | None:
    return None if preprocessed else above(samples, e.thresholds.raw * model.d**3)


@assumption("A11", "d >= C2 kappa r^1.5", DAMIAN, "model")
def dimension_large(e: Experiment, model: MultiIndexModel) -> float:
    return above(model.d, e.thresholds.dimension * model.link.kappa * model.r**1.5)


@assumption("A12", "preprocessed labels have no mean, and no linear part beyond C d/N", f"{DAMIAN}; the bound {HERE}", "x", "y")
def preprocessing_done(e: Experiment, x: np.ndarray, y: np.ndarray) -> float:
    n, d = x.shape
    scale = float(np.sqrt(np.mean(y * y))) or 1.0
    mean = below(abs(float(y.mean())), e.thresholds.normalised * scale)
    return min(mean, below(np.linalg.norm(x.T @ y / n), e.thresholds.residual * scale * d / n))


@assumption("A13", "weight decay erases the start: lambda_1 eta_1 = 1", DAMIAN, "decay")
def start_erased(e: Experiment, decay: float) -> float:
    return below(abs(decay - 1.0), e.thresholds.exact)


@assumption("A14", "the matching step erases the random points, by its size or by decay", HERE, "points", "points0")
def points_erased(e: Experiment, points: np.ndarray, points0: np.ndarray) -> float:
    step = above(np.linalg.norm(points - points0) / np.linalg.norm(points0), e.thresholds.erase)
    return step if e.distil_decay is None else max(step, below(abs(e.distil_decay - 1.0), e.thresholds.exact))


@assumption("A15", "labels of D1 have one sign", HERE, "labels1", strict=True)
def label_sign_constant(e: Experiment, labels1: np.ndarray) -> float:
    largest = float(np.max(np.abs(labels1)))
    return max(float(np.min(labels1)), -float(np.max(labels1))) / largest if largest > 0 else -1.0


@assumption("A16", "random points are isotropic, and none is aligned with a real input", HERE, "points0")
def isotropic_points(e: Experiment, points0: np.ndarray) -> float:
    (m, d), lengths = points0.shape, np.linalg.norm(points0, axis=1, keepdims=True)
    if not np.all(lengths > 0):
        return -1.0
    n = points0 / lengths
    worst = _isotropic(math.sqrt(d) * n, e.thresholds)
    if e.x is None:
        return worst
    # P(|cos| > t) <= (1 - t^2)^((d-1)/2) for one pair; the union over all pairs is held at the significance level.
    sine = np.sqrt(np.maximum(0.0, 1.0 - np.max(np.abs(n @ (e.x / np.linalg.norm(e.x, axis=1, keepdims=True)).T)) ** 2))
    return min(worst, above(sine, (e.thresholds.significance / (m * e.x.shape[0])) ** (1.0 / max(d - 1, 1))))


@assumption("A17", "M1 >= r, necessary; for r = 1 also M1 >= log(1/delta)", HERE, "model", "m1")
def enough_points(e: Experiment, model: MultiIndexModel, m1: int) -> float:
    floor = math.log(1.0 / e.failure) if model.r == 1 and e.failure is not None else 0.0
    return above(m1, max(model.r, floor))


@assumption("A17-sufficient", "M1 >= C3 r^2", HERE, "model", "m1")
def points_condition_features(e: Experiment, model: MultiIndexModel, m1: int) -> float:
    return above(m1, e.thresholds.points * model.r**2)


@assumption("A18", "L J >= C4 r d, or the gate is centred or the starts antithetic", HERE, "model", "width", "starts")
def directions_diverse(e: Experiment, model: MultiIndexModel, width: int, starts: int) -> float:
    return math.inf if e.centred else above(width * starts, e.thresholds.directions * model.r * model.d)


@assumption("A19", "biases are redrawn from N(0, 1) and all kinks on a line differ", DAMIAN, "biases")
def biases_redrawn(e: Experiment, biases: np.ndarray) -> float:
    law = _normal_law(biases, e.thresholds)
    slopes = np.ones_like(biases) if e.rows is None else e.rows @ e.probe(1, e.rows.shape[1])[0]
    if not np.all(slopes):
        return -1.0
    kinks = -biases / slopes
    gaps = np.diff(np.sort(kinks))
    return min(law, above(np.min(gaps, initial=1.0), e.thresholds.exact * (float(np.median(np.abs(kinks))) or 1.0)))


@assumption("A20", "L >= C5 r^p kappa^(2p) / accuracy", DAMIAN, "model", "width", "accuracy")
def width_for_accuracy(e: Experiment, model: MultiIndexModel, width: int, accuracy: float) -> float:
    p = model.link.degree
    return above(width, e.thresholds.width * model.r**p * model.link.kappa ** (2 * p) / accuracy)


@assumption(
    "A21",
    "M2 >= L labels: Phi has rank L and its condition number leaves the digits asked for",
    f"{HERE}; labels only: {CHEN}, theorem 4.2",
    "features",
)
def labels_determine_head(e: Experiment, features: np.ndarray) -> float:
    m2, width = features.shape
    singular = np.linalg.svd(features, compute_uv=False)
    if m2 < width:
        return above(m2, width)
    if not singular[0] > 0:
        return -1.0
    rank = above(singular[-1], e.thresholds.exact * singular[0])
    error = singular[0] / singular[-1] * np.finfo(np.float64).eps if singular[-1] > 0 else math.inf
    return min(rank, below(error, e.thresholds.head_error))


@assumption(
    "A22",
    "ridge of the retrained head: lambda_S <= 1/(4 s^2), s the largest singular value of y^+ a_T, or 0",
    f"{CHEN}, theorem 4.1",
    "lambda_s",
    "head",
    "labels2",
)
def ridge_reachable(e: Experiment, lambda_s: float, head: np.ndarray, labels2: np.ndarray) -> float:
    # y^+ a_T^T has rank one; labels that all vanish reach no head at any ridge.
    size = float(np.linalg.norm(labels2))
    return below(lambda_s * 4.0 * (float(np.linalg.norm(head)) / size) ** 2, 1.0) if size > 0 else -math.inf


@assumption(
    "A23",
    "r^2 d + L floats are few beside the data and the weights",
    f"{PAPER}; the inequality and its 0.1 {HERE}",
    "model",
    "samples",
    "width",
)
def nontrivial(e: Experiment, model: MultiIndexModel, samples: int, width: int) -> float:
    stored = memory.distilled(model.r**2, model.d, width).floats
    return below(stored, e.thresholds.nontrivial * min(samples * model.d, width * model.d))


@assumption("A24", "test, retraining and bias seeds are used for nothing else", HERE, "seeds", "seeds.test", "seeds.retrain")
def seeds_disjoint(e: Experiment, seeds: Mapping[str, tuple[int, ...]], *_: tuple[int, ...]) -> float:
    # Biases need no seed of their own: they may be drawn along with the retraining start.
    used = {seed for role, values in seeds.items() if role not in FRESH for seed in values}
    fresh = [seed for role in FRESH for seed in seeds.get(role, ())]
    shared = sum(seed in used for seed in fresh) + len(fresh) - len(set(fresh))
    return -float(shared) if shared else 1.0


@assumption("A25", "no point lies on a gate boundary, where 1{0} = 1 is a convention", HERE, "theta0", "points")
def gates_off_boundary(e: Experiment, theta0: Leaves, points: np.ndarray) -> float:
    _, w, b = theta0
    size = np.linalg.norm(points, axis=1)[:, None] * np.linalg.norm(w, axis=1) + np.abs(b)
    # A point at zero lies on every boundary through zero.
    return above(np.min(np.abs(points @ w.T + b) / np.where(size > 0, size, 1.0)), 1e-2 * e.thresholds.exact)


ASSUMPTIONS: dict[str, Assumption] = {
    one.name: one
    for one in (
        gaussian_inputs,
        orthonormal_index,
        multi_index,
        polynomial_degree,
        normalised,
        hessian_rank,
        kappa_bounded,
        symmetric_start,
        row_norms,
        enough_samples,
        enough_samples_raw,
        dimension_large,
        preprocessing_done,
        start_erased,
        points_erased,
        label_sign_constant,
        isotropic_points,
        enough_points,
        points_condition_features,
        directions_diverse,
        biases_redrawn,
        width_for_accuracy,
        labels_determine_head,
        ridge_reachable,
        nontrivial,
        seeds_disjoint,
        gates_off_boundary,
    )
}
"""By name, in the order of the theory."""


def margins(experiment: Experiment) -> dict[str, Margin | None]:
    """Every assumption on this experiment; None where it is not applicable."""
    return {name: one(experiment) for name, one in ASSUMPTIONS.items()}
