"""Changes that set one quantity of an experiment to a given share f of its bound, and leave the others alone.

The share is reached by construction or by moving the threshold, each computed without the predicate that is to be judged; a law of random
numbers is deformed until its p-value is there.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, kstest, norm

from theory.margins import Experiment
from theory.multi_index import HermiteLink, MultiIndexModel, as_backend, draw_model

Change = Callable[[Any, np.random.Generator], Experiment]
ToShare = Callable[[Any, np.random.Generator, float], Experiment]
COARSE = 1e-6
"""The slack of identities at their bounds, far above rounding."""


def with_link(e: Any, *terms: Any) -> Experiment:
    return replace(e, model=MultiIndexModel(e.model.B, HermiteLink(tuple(terms))))


def of_shape(d: int, r: int, link: str = "quadratic") -> Change:
    return lambda e, rng: replace(e, model=draw_model(d, r, link, rng))


def bounded(e: Any, **thresholds: float) -> Experiment:
    """The same experiment with other thresholds."""
    return replace(e, thresholds=replace(e.thresholds, **thresholds))


def whitened(x: np.ndarray) -> np.ndarray:
    """Columns of mean zero, second moment the identity."""
    u, _, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return math.sqrt(len(x)) * u @ v


def unit(v: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def stretched(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """x times `factor` along a random direction."""
    u = unit(rng.standard_normal(x.shape[1]))
    return x + (factor - 1.0) * np.outer(x @ u, u)


def p_value(x: np.ndarray) -> float:
    """Of the normal law, by Kolmogorov and Smirnov, kept off zero."""
    return max(float(kstest(np.ravel(x), "norm").pvalue), 1e-300)


def to_share(change: Callable[[float], Any], measure: Callable[[Any], float], target: float, span: tuple[float, float]) -> Any:
    """change(t) at the t of `span` where the measure, positive, is the target."""
    t: Any = brentq(lambda t: math.log(measure(change(t)) / target), *span, xtol=1e-10)
    return change(t)


def spectral(e: Any, n: int, d: int) -> float:
    return e.thresholds.spectral * (math.sqrt(d / n) + d / n)


def least(e: Any, n: int, d: int) -> float:
    return 1.0 - math.sqrt(d / n) - e.thresholds.sigma / math.sqrt(n)


# A1: inputs


def input_mean(sign: float) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        x = whitened(e.x)
        x[:, rng.integers(x.shape[1])] += sign * f * e.thresholds.sigma / math.sqrt(len(x))
        return replace(e, x=x)

    return at


def input_spread(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    return replace(e, x=stretched(whitened(e.x), math.sqrt(1.0 + f * spectral(e, *e.x.shape)), rng))


def input_least(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    return replace(e, x=stretched(whitened(e.x), f * least(e, *e.x.shape), rng))


def input_law(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    base = whitened(e.x)

    def bent(t: float) -> np.ndarray:
        x = np.sign(base) * np.abs(base) ** (1.0 - t)
        return x / math.sqrt(np.mean(x * x))

    return replace(e, x=to_share(bent, p_value, f * e.thresholds.significance, (0.0, 0.7)))


# A2 to A7: the teacher


def index_defect(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    rounded = as_backend(e.model, np, np.float32)
    b = rounded.B.astype(np.float64)
    return bounded(replace(e, model=rounded), exact=float(np.max(np.abs(b.T @ b - np.eye(e.model.r)))) / f)


def seen_off(power: int) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        away = rng.standard_normal(e.model.d)
        away -= e.model.B @ (e.model.B.T @ away)
        x = e.probe(64, e.model.d)
        scale = max(1.0, float(np.max(np.abs(e.model.clean(x)))))
        size = f * COARSE * scale / float(np.max(np.abs((x @ away) ** power)))
        return bounded(replace(e, target=lambda x: e.model.clean(x) + size * (x @ away) ** power), exact=COARSE)

    return at


def higher_order(more: int) -> ToShare:
    """He_m(c t) = sum_k m!/(k! (m - 2 k)! 2^k) c^(m - 2 k) (c^2 - 1)^k He_(m - 2 k)(t) on a line whose first coordinate is c."""

    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        m = e.degree + more
        cosines = unit(e.probe(8, e.model.r))[:, 0]
        worst = 0.0
        for k in range((more + 1) // 2):
            j = m - 2 * k
            weight = math.sqrt(math.factorial(m)) / (math.factorial(k) * 2.0**k * math.sqrt(math.factorial(j)))
            worst = max(worst, weight * float(np.max(np.abs(cosines**j * (cosines**2 - 1.0) ** k))))
        orders = (m, *(0 for _ in range(e.model.r - 1)))
        return with_link(e, *e.model.link.terms, (f * e.thresholds.normalised / worst, orders))

    return at


def moment(part: str, sign: float) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        off = sign * f * e.thresholds.normalised
        match part:
            case "variance":
                return with_link(e, (math.sqrt(1.0 + off), (2, 0)))
            case "raw variance":
                return replace(with_link(e, (math.sqrt(1.0 + off), (2, 0))), preprocessed=False)
            case "mean":
                return replace(with_link(e, (1.0, (2, 0)), (off, (0, 0))), preprocessed=False)
            case _:
                return replace(with_link(e, (1.0, (2, 0)), (off, (0, 1))), preprocessed=False)

    return at


def second_direction(c: float, e: Any) -> Experiment:
    """Mean Hessian sqrt(2) diag(1, c)."""
    return with_link(e, (1.0, (2, 0)), (c, (0, 2)))


# A8, A9: the start


def bent(leaf: int) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        a, w, b = (x.copy() for x in e.theta0)
        x, j, k = e.probe(16, w.shape[1]), rng.integers(len(a)), rng.integers(w.shape[1])
        gate = (x @ w[j] > 0).astype(float)
        through = {0: gate * (x @ w[j]), 1: gate * x[:, k] * a[j], 2: gate * a[j]}[leaf]  # what the network's value moves by
        place = (j, k) if leaf == 1 else (j,)
        (a, w, b)[leaf][place] += f * COARSE / max(1.0, float(np.max(np.abs(through))))
        return bounded(replace(e, theta0=(a, w, b)), exact=COARSE)

    return at


def row_length(long: bool) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        a, w, b = (x.copy() for x in e.theta0)
        d, t = w.shape[1], e.thresholds
        w[rng.integers(len(w))] *= 1.0 + f * t.sigma / math.sqrt(d) if long else f * math.sqrt(chi2.ppf(t.significance / len(w), d) / d)
        return replace(e, theta0=(a, w, b))

    return at


def head(sign: float) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        a, w, b = (x.copy() for x in e.theta0)
        a[rng.integers(len(a))] *= 1.0 + sign * f * COARSE
        return bounded(replace(e, theta0=(a, w, b)), exact=COARSE)

    return at


# A12 to A16: labels and points


def label_mean(sign: float) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        return replace(e, y=e.y + sign * f * e.thresholds.normalised * math.sqrt(np.mean(e.y**2)))

    return at


def label_slope(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    x, (n, d) = whitened(e.x), e.x.shape
    rest = e.y - e.y.mean() - x @ (x.T @ e.y) / n
    c = f * e.thresholds.residual * d / n  # |slope| = c scale, scale^2 = E rest^2 + |slope|^2
    slope = c * math.sqrt(np.mean(rest**2) / (1.0 - c * c)) * unit(rng.standard_normal(d))
    return replace(e, x=x, y=rest + x @ slope)


def even_points(e: Any, rng: np.random.Generator) -> np.ndarray:
    """Directions of mean zero and second moment I/d, eight times d of them."""
    q = np.linalg.qr(rng.standard_normal((e.model.d, e.model.d)))[0]
    return np.tile(np.concatenate([q, -q]), (4, 1))


def with_points(e: Any, points0: np.ndarray) -> Experiment:
    return replace(e, points0=points0, points=points0, labels1=np.ones(len(points0)))


def second_moment(n: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(n.shape[1] * n.T @ n / len(n))


def point_mean(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    base, v = even_points(e, rng), np.eye(e.model.d)[rng.integers(e.model.d)]
    target = f * e.thresholds.sigma / math.sqrt(base.size)
    found = to_share(lambda t: unit(base + t * v), lambda n: float(np.max(np.abs(n.mean(axis=0)))), target, (1e-9, 10.0))
    return with_points(e, found)


def point_spread(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    base, seed = even_points(e, rng), int(rng.integers(2**32))
    found = to_share(
        lambda t: unit(stretched(base, t, np.random.default_rng(seed))),
        lambda n: float(second_moment(n)[-1]) - 1.0,
        f * spectral(e, *base.shape),
        (1.0 + 1e-9, 6.0),
    )
    return with_points(e, found)


def point_least(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    base, seed = even_points(e, rng), int(rng.integers(2**32))
    found = to_share(
        lambda t: unit(stretched(base, t, np.random.default_rng(seed))),
        lambda n: math.sqrt(max(float(second_moment(n)[0]), 1e-300)),
        f * least(e, *base.shape),
        (1e-6, 1.0),
    )
    return with_points(e, found)


def point_angle(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    points0, d, m = e.points0.copy(), e.model.d, len(e.points0)
    sine = f * (e.thresholds.significance / (m * len(e.x))) ** (1.0 / (d - 1))
    along = unit(e.x[rng.integers(len(e.x))])
    across = rng.standard_normal(d)
    across = unit(across - along * (along @ across))
    points0[rng.integers(m)] = 3.0 * (math.sqrt(1.0 - sine**2) * along + sine * across)
    return replace(e, points0=points0)


def label_sign(sign: float) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        labels = np.full(len(e.labels1), sign)
        labels[rng.integers(len(labels))] = sign * (f - 1.0)
        return replace(e, labels1=labels)

    return at


# A19, A21, A25: the second phase


def bias_law(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    base = norm.ppf((np.arange(len(e.biases)) + 0.5) / len(e.biases))
    return replace(e, biases=to_share(lambda t: base + t, p_value, f * e.thresholds.significance, (0.0, 3.0)))


def kink_gap(e: Any, rng: np.random.Generator, f: float) -> Experiment:
    biases = norm.ppf((np.arange(len(e.biases)) + 0.5) / len(e.biases))
    biases[-2] = biases[-1] - f * COARSE * float(np.median(np.abs(biases)))  # the largest two: the median stays
    return bounded(replace(e, biases=rng.permutation(biases), rows=None), exact=COARSE)


def features(e: Any, rng: np.random.Generator, least: float) -> np.ndarray:
    """Singular values 1, .., 1, `least`."""
    u, v = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in (e.features.shape, (e.width, e.width)))
    return (u * np.where(np.arange(e.width) == 0, least, 1.0)) @ v.T


def gate_distance(biased: bool) -> ToShare:
    def at(e: Any, rng: np.random.Generator, f: float) -> Experiment:
        (a, w, b), t = (x.copy() for x in e.theta0), f * 1e-2 * 1e-4
        j = rng.integers(len(a) // 2)
        along = unit(w[j])
        p = rng.standard_normal(w.shape[1])
        p = unit(p - along * (along @ p))
        if biased:  # |w.p + b| = t (|p| |w| + |b|) with w.p = 0
            b[j] = t / (1.0 - t) * float(np.linalg.norm(w[j]))
            b[len(a) // 2 + j] = 1.0
        else:
            p = math.sqrt(1.0 - t * t) * p + t * along
        return bounded(replace(e, theta0=(a, w, b), points=np.tile(p, (len(e.points), 1))), exact=1e-4)

    return at


def kappa2(e: Any) -> float:
    """kappa^2 from the eigenvalues of the mean Hessian."""
    return 1.0 / (e.model.r * float(np.min(np.linalg.eigvalsh(e.model.link.hessian @ e.model.link.hessian))))


def stored(e: Any) -> int:
    return e.model.r**2 * e.model.d + e.width
