"""What a measure makes of its draws: distance, standard error, verdict; a wrong prediction is caught."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.measures.catalogue import ELSEWHERE, MEASURES, QUESTIONS, TRIALS
from sims.measures.costs import COSTS
from sims.measures.experiment import Measures, results, sweeps
from sims.measures.measure import Cell, Grids, Measure, Outcome, Result, distance, evaluate, product

GAUSS = Measure(
    "Q0",
    "a mean",
    "the mean of draws",
    "its expectation",
    "derived here",
    "gauss",
    lambda table, where: float(table["x"].mean()),
    lambda where: where["mean"],
    Grids((Cell({"mean": 1.0}, 50),), ()),
    "mean",
    precision=0.2,
)


def rows(n: int, mean: float, seed: int = 0):
    return [{"failed": None, "x": float(v)} for v in mean + np.random.default_rng(seed).standard_normal(n)]


def outcome(z: float, error: float = 0.01) -> Outcome:
    return Outcome({}, 1.0, 1.0, error, 0.0, z, 10, 0)


def test_the_bootstrap_error_is_that_of_the_mean():
    cell = GAUSS.cells("quick")[0]
    found = [evaluate(GAUSS, cell, rows(50, 1.0, seed)) for seed in range(30)]
    errors = np.array([o.error for o in found])
    assert errors.mean() == pytest.approx(1 / math.sqrt(50), rel=0.1)
    raw = np.array([(o.measured - 1.0) / o.error for o in found])
    assert 0.6 < raw.std() < 1.5
    assert all(o.within for o in found)


def test_a_mutated_prediction_is_caught():
    cell = GAUSS.cells("quick")[0]
    wrong = dataclasses.replace(GAUSS, predicted=lambda where: 1.8 * where["mean"])
    assert Result(GAUSS, (evaluate(GAUSS, cell, rows(50, 1.0)),)).verdict == "PASS"
    assert Result(wrong, (evaluate(wrong, cell, rows(50, 1.0)),)).verdict == "FAIL"


@given(measured=st.floats(-5, 5), predicted=st.floats(-5, 5), allowance=st.floats(0, 2), error=st.floats(0.01, 1))
def test_distance_is_one_sided_for_bounds(measured, predicted, allowance, error):
    equal, most, least = (distance(relation, measured, predicted, allowance, error) for relation in ("equal", "at most", "at least"))
    assert equal == max(most, least)
    assert min(most, least) == 0.0
    assert (equal == 0.0) == (abs(measured - predicted) <= allowance)
    if equal:
        assert equal == pytest.approx((abs(measured - predicted) - allowance) / error)


def test_without_spread_a_number_agrees_or_does_not():
    assert distance("equal", 1e-9, 0.0, 1e-6, 0.0) == 0.0
    assert math.isinf(distance("equal", 1e-3, 0.0, 1e-6, 0.0))


def test_the_verdict_asks_for_95_percent_of_the_cells_and_the_promised_errors():
    good, bad, coarse = outcome(0.5), outcome(3.1), outcome(0.5, error=0.3)
    for cells, verdict in (
        ((good,) * 20, "PASS"),
        ((good,) * 19 + (bad,), "PASS"),
        ((good,) * 18 + (bad,) * 2, "FAIL"),
        ((good,) * 19 + (coarse,), "PASS"),
        ((good,) * 18 + (coarse,) * 2, "COARSE"),
    ):
        assert Result(GAUSS, cells).verdict == verdict
    nothing = dataclasses.replace(coarse, predicted=0.0)
    assert Result(GAUSS, (nothing,)).verdict == "PASS", "no relative error of a prediction of 0"
    free = dataclasses.replace(GAUSS, precision=None)
    assert Result(free, (coarse,)).verdict == "PASS"


def test_failed_trials_are_left_out_and_counted():
    cell = GAUSS.cells("quick")[0]
    broken = [{"failed": "diverged", "x": None}] * 3
    found = evaluate(GAUSS, cell, rows(10, 1.0) + broken)
    assert (found.draws, found.failed) == (10, 3)
    with pytest.raises(FloatingPointError, match=r"Q0 at \{'mean': 1.0\}: 1 of 4 trials are sound \(diverged\)"):
        evaluate(GAUSS, cell, broken + rows(1, 1.0))


def test_every_question_is_answered_here_or_named_elsewhere():
    assert {*QUESTIONS, *ELSEWHERE} == {f"Q{k}" for k in range(1, 20)}
    assert len({m.name for m in MEASURES}) == len(MEASURES)
    for m in MEASURES:
        assert m.trial in TRIALS
        assert m.cells("quick")
        assert m.cells("full")
        assert all(
            math.isfinite(m.predicted(cell.where)) and m.allowance(cell.where) >= 0.0 for g in ("quick", "full") for cell in m.cells(g)
        )
        assert m.source.startswith(("derived here", "stated in", "order of", "plateau", "independence"))


def test_measures_share_the_trials_they_have_in_common():
    alone = sum(len(s.configs) for name in ("Q1", "Q2") for s in sweeps(Measures(only=(name,)), "numpy"))
    (together,) = sweeps(Measures(only=("Q1,Q2",)), "numpy")
    assert 2 * len(together.configs) == alone


def test_only_takes_questions_single_measures_and_commas():
    assert [m.name for m in Measures(only=("Q3.kernel,Q2",)).chosen] == ["Q2", "Q3.kernel"]
    assert {m.question for m in Measures(only=("Q6", "Q7")).chosen} == {"Q6", "Q7"}
    assert len(Measures().chosen) == len(MEASURES)
    for bad, words in (("Q99", "unknown measure 'Q99'"), ("Q10", "Q10 is a sweep of its own: .*sims scaling")):
        with pytest.raises(ValueError, match=words):
            Measures(only=(bad,))
    with pytest.raises(ValueError, match="effort=0"):
        Measures(effort=0.0)


def test_product_is_every_combination():
    assert product(a=(1, 2), b=("x",)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


def test_results_follow_the_cells_not_the_order_of_the_rows():
    config = Measures(only=("Q16",), effort=0.3)
    (sweep,) = sweeps(config, "numpy")
    found = {"matching": [{"failed": None, **c, "gaps": [10.0**-k for k in (2, 4, 6)]} for c in sweep.configs]}
    (result,) = results(config, found)
    assert result.cells[0].measured == pytest.approx(4.0, rel=0.1)
    assert result.verdict == "FAIL"


def test_counted_costs_follow_samples_and_directions():
    for kind, size in (("directions", "sets"), ("kernel", "sets")):
        config = next(c.config for m in MEASURES if m.trial == kind for c in m.cells("full") if c.config["d"] == 64)
        base, more = COSTS[kind](config), COSTS[kind](config | {"per_d2": 2 * config["per_d2"]})
        assert more.normals - base.normals == 2 * config["per_d2"] * 64**3, "two passes, nothing is stored"
        assert more.products == pytest.approx(2 * base.products, rel=0.1)
        assert COSTS[kind](config | {size: 2 * config[size]}).products == pytest.approx(2 * base.products, rel=0.1)
    for sweep in sweeps(Measures(), "numpy"):
        if sweep.cost is not None:
            assert all(sweep.cost(config).products > 0 for config in sweep.configs[:2])
