"""A concrete experiment, and an assumption about it measured as a signed margin.

    value > 0   holds, with that much to spare          value < 0   fails by that much
    value = 0   on the boundary: holds unless the assumption is strict
    upper bound: value = 1 - quantity / bound           lower bound: value = quantity / bound - 1        (several parts: the least)

So every value is relative to its bound. An assumption whose inputs the experiment does not give is not applicable (None). Constants
that the sources leave open are ours throughout and stand in `Thresholds`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from theory.distill.leaves import Leaves
from theory.multi_index import MultiIndexModel


@dataclass(frozen=True)
class Thresholds:
    """Constants that the sources leave open; all ours.

    exact       slack of identities in float64              significance  of statistical tests
    sigma       fluctuations of means, in standard errors   spectral      of sample covariances, times sqrt(d/N) + d/N
    normalised  moments of the target                       rank          least / largest eigenvalue of the mean Hessian
    kappa       largest condition number                    samples       C1 in N >= C1 d^2 kappa^2 r
    raw         C1 in N >= C1 d^3 without preprocessing     dimension     C2 in d >= C2 kappa r^1.5
    residual    linear part left by preprocessing, times d/N and the scale of y
    erase       least growth of the points in one step      points        C3 in M1 >= C3 r^2
    directions  C4 in L J >= C4 r d                         width         C5 in L >= C5 r^p kappa^2p / accuracy
    head_error  parameter error of the retrained head       nontrivial    floats stored over the lesser of data and weights
    """

    exact: float = 1e-10
    significance: float = 1e-3
    sigma: float = 5.0
    spectral: float = 3.0
    normalised: float = 1e-8
    rank: float = 1e-6
    kappa: float = 10.0
    samples: float = 8.0
    raw: float = 8.0
    dimension: float = 1.0
    residual: float = 5.0
    erase: float = 10.0
    points: float = 1.0
    directions: float = 10.0
    width: float = 1.0
    head_error: float = 1e-6
    nontrivial: float = 0.1

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not getattr(self, entry.name) > 0:
                raise ValueError(f"thresholds must be positive: {entry.name}={getattr(self, entry.name)}")


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is known of an experiment; everything is optional, arrays are NumPy's on the host.

    model         the teacher                                       target        x (n, d) -> f*(x), where it is not the model's
    degree        claimed degree p of the link                      preprocessed  mean and linear part are removed from the labels
    samples       N          width  L                               x, y          real inputs and their labels after preprocessing
    starts        J, distinct initialisations in the matching step  theta0        (a, W, b) before the teacher step
    m1            M1                                                points, points0, labels1   D1 after and before distillation
    decay         lambda_1 eta_1 of the teacher and retraining step distil_decay  the same product of the matching step
    centred       the gate is centred or the starts antithetic      rows, biases  the retrained first layer
    features      Phi (M2, L) of the second-layer inputs            head, labels2 a_T and the M2 labels
    lambda_s      ridge of the retrained head                       failure       delta, tolerated probability of failure
    accuracy      risk above noise that the width should allow      seeds         role -> its seeds; see A24
    probe_seed    of the inputs on which functions are compared
    """

    model: MultiIndexModel | None = None
    target: Callable[[Any], Any] | None = None
    degree: int | None = None
    samples: int | None = None
    width: int | None = None
    starts: int | None = None
    m1: int | None = None
    preprocessed: bool | None = None
    x: Float[np.ndarray, "N d"] | None = None
    y: Float[np.ndarray, "N"] | None = None
    theta0: Leaves | None = None
    points: Float[np.ndarray, "M1 d"] | None = None
    points0: Float[np.ndarray, "M1 d"] | None = None
    labels1: Float[np.ndarray, "M1"] | None = None
    decay: float | None = None
    distil_decay: float | None = None
    centred: bool = False
    rows: Float[np.ndarray, "L d"] | None = None
    biases: Float[np.ndarray, "L"] | None = None
    features: Float[np.ndarray, "M2 L"] | None = None
    head: Float[np.ndarray, "L"] | None = None
    labels2: Float[np.ndarray, "M2"] | None = None
    lambda_s: float | None = None
    failure: float | None = None
    accuracy: float | None = None
    seeds: Mapping[str, tuple[int, ...]] | None = None
    probe_seed: int = 0
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        for name in ("samples", "width", "starts", "m1"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"a count must be >= 1: {name}={count}")

    def probe(self, n: int, d: int) -> Float[np.ndarray, "{n} {d}"]:
        """Standard normal inputs on which functions are compared."""
        return np.random.default_rng(self.probe_seed).standard_normal((n, d))


@dataclass(frozen=True)
class Margin:
    """One assumption on one experiment: `value` as in the module docstring."""

    name: str
    value: float
    holds: bool
    statement: str
    source: str


@dataclass(frozen=True)
class Assumption:
    """A named hypothesis. Calling it measures its margin, or gives None where one of `needs` (fields; seeds.test: a key)
    is missing.

    `measure` takes the experiment and the values of `needs` in order; it too may give None.
    """

    name: str
    statement: str
    source: str
    needs: tuple[str, ...]
    strict: bool
    measure: Callable[..., float | None]

    @property
    def label(self) -> str:
        """What it is called in code."""
        return self.measure.__name__

    def missing(self, experiment: Experiment) -> tuple[str, ...]:
        """What it needs and the experiment does not give."""
        return tuple(need for need in self.needs if _given(experiment, need) is None)

    def require(self, experiment: Experiment) -> Margin:
        """The margin; ValueError where it cannot be judged, naming the fields that are missing."""
        found = self(experiment)
        if found is None:
            absent = ", ".join(self.missing(experiment))
            raise ValueError(f"{self.name} ({self.statement}) " + (f"needs {absent}" if absent else "is about another kind of experiment"))
        return found

    def __call__(self, experiment: Experiment) -> Margin | None:
        inputs = [_given(experiment, need) for need in self.needs]
        value = None if any(x is None for x in inputs) else self.measure(experiment, *inputs)
        if value is None:
            return None
        value = -math.inf if math.isnan(value) else float(value)
        return Margin(self.name, value, value > 0 or (value == 0 and not self.strict), self.statement, self.source)


def _given(experiment: Experiment, need: str) -> Any:
    field, _, key = need.partition(".")
    value = getattr(experiment, field)
    return value.get(key) if key and value is not None else value


def assumption(name: str, statement: str, source: str, *needs: str, strict: bool = False) -> Callable[[Callable[..., Any]], Assumption]:
    """Makes an Assumption of the function that measures it."""
    return lambda measure: Assumption(name, statement, source, needs, strict, measure)


def below(quantity: Any, bound: Any) -> float:
    """1 - quantity / bound, for quantity <= bound with bound > 0."""
    return 1.0 - float(quantity) / float(bound)


def above(quantity: Any, bound: Any) -> float:
    """quantity / bound - 1, for quantity >= bound with bound > 0."""
    return float(quantity) / float(bound) - 1.0
