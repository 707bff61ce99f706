"""A search over instances: Hypothesis draws them, steers towards small margins, and shrinks the first failure to a simplest one.

Everything is a function of the seed and the sources: no database, no deadline, and the noise of an instance comes from the instance.
(The sources count because Hypothesis mixes constants that it finds in the loaded modules into its draws.)
"""

import hashlib
import json
import math
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from proofs_check.lemma import Example, Instance, Margin, Search, Strategies

_SETTINGS = settings(
    database=None,
    deadline=None,
    derandomize=False,
    print_blob=False,
    report_multiple_bugs=False,
    verbosity=Verbosity.quiet,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
)


class NotPlain(TypeError):
    """A strategy drew something that JSON cannot hold, so it could not be stored and run again."""


class _Failure(Exception):
    """Tells Hypothesis that an example fails, and carries it out."""

    def __init__(self, example: Example) -> None:
        super().__init__(example)
        self.example = example


def canonical(instance: Instance) -> str:
    """The instance as one JSON line; floats keep every bit."""
    try:
        return json.dumps(instance, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise NotPlain(f"instances must be plain finite JSON values ({error}): {instance!r}") from error


def evaluate(margin: Margin, instance: Instance) -> Example:
    """The margin at the instance as JSON gives it back, so that a stored counterexample is exactly what was run."""
    text = canonical(instance)
    plain = json.loads(text)
    digest = hashlib.sha256(text.encode()).digest()
    rng = np.random.default_rng(np.random.SeedSequence(int.from_bytes(digest)))
    try:
        value = float(margin(rng, **plain))
    except HypothesisException:
        raise
    except Exception as error:  # whatever a lemma's code raises is a finding about that lemma
        return Example(plain, None, f"{type(error).__name__}: {error}")
    return Example(plain, value) if math.isfinite(value) else Example(plain, None, f"the margin is {value}")


class _Log:
    """What has been seen so far, in the order of evaluation."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.failed = 0
        self.worst: Example | None = None
        self.first: Example | None = None

    def note(self, example: Example) -> None:
        key = canonical(example.instance)
        if self.first is None and key not in self.seen:
            self.seen.add(key)
            self.failed += not example.holds
        if self.worst is None or _rank(example) < _rank(self.worst):
            self.worst = example


def _rank(example: Example) -> float:
    return -math.inf if example.margin is None else example.margin


def search(margin: Margin, instances: Strategies, examples: int, seed: int, shrink: bool = True) -> Search:
    """Draws up to `examples` instances until one fails, then shrinks that one (where asked)."""
    log = _Log()
    phases = (Phase.generate, Phase.target, *((Phase.shrink,) if shrink else ()))

    def body(example: Example) -> None:
        log.note(example)
        # Shrinking stays with the first kind of failure: a wrong value must not end as an error at some degenerate instance.
        if not example.holds and (log.first is None or (log.first.error is None) == (example.error is None)):
            log.first = log.first or example
            raise _Failure(example)
        if example.margin is not None:
            hypothesis.target(-example.margin)

    return _run(margin, instances, settings(_SETTINGS, max_examples=examples, phases=phases), seed, log, body)


def survey(margin: Margin, instances: Strategies, examples: int, seed: int) -> Search:
    """Draws `examples` instances whether they fail or not, and counts."""
    log = _Log()
    return _run(margin, instances, settings(_SETTINGS, max_examples=examples, phases=(Phase.generate,)), seed, log, log.note)


def _run(margin: Margin, instances: Strategies, how: settings, seed: int, log: _Log, body: Any) -> Search:
    @hypothesis.seed(seed)
    @how
    @given(instance=st.fixed_dictionaries(dict(instances)))
    def run(instance: Instance) -> None:
        body(evaluate(margin, instance))

    found, error = None, None
    try:
        run()
    except _Failure as failure:
        found = failure.example
    except (HypothesisException, NotPlain) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Search(len(log.seen), log.failed, log.worst, found, error)
