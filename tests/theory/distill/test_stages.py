"""The stage clock: against its rule read off the whole history, on a scripted run, and for every total it admits."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from theory.distill.problem import Diverged
from theory.distill.stages import Stage, StageClock, StageState

shares = st.floats(0.001, 0.6)
totals = st.integers(3, 1000)


def history(clock, accuracies):
    """The stage after each measurement."""
    state, out = StageState(), []
    for accuracy in accuracies:
        state = clock.advance(state, accuracy)
        out.append(state.stage)
    return out


def by_rule(clock, accuracies):
    """The same, from the gains: a stage ends where its last `patience` gains are all below its threshold."""
    gains = [after - before for before, after in itertools.pairwise(accuracies)]
    out, began = [Stage.EARLY], 0
    rules = {Stage.EARLY: (clock.early_gain, clock.early_patience), Stage.MIDDLE: (clock.middle_gain, clock.middle_patience)}
    for j in range(1, len(accuracies)):
        stage = out[-1]
        if stage is not Stage.LATE:
            gain, patience = rules[stage]
            recent = gains[began:j][-patience:]
            if len(recent) == patience and max(recent) < gain:
                stage, began = (Stage.MIDDLE if stage is Stage.EARLY else Stage.LATE), j
        out.append(stage)
    return out


@st.composite
def clocks(draw):
    total, early, middle = draw(totals), draw(shares), draw(shares)
    assume(max(1, math.ceil(early * total)) + max(1, math.ceil(middle * total)) < total)
    return StageClock(total, draw(st.floats(-1.0, 3.0)), draw(st.floats(-1.0, 3.0)), early, middle)


@given(clock=clocks(), accuracies=st.lists(st.integers(0, 100).map(float), min_size=1, max_size=60))
def test_stages_follow_the_rule_and_never_go_back(clock, accuracies):
    found = history(clock, accuracies)
    assert found == by_rule(clock, accuracies)
    order = list(Stage)
    places = [order.index(stage) for stage in found]
    assert places == sorted(places)


@given(clock=clocks(), level=st.floats(0.0, 100.0))
def test_a_flat_accuracy_passes_every_stage_exactly_on_time_whatever_the_total(clock, level):
    assume(clock.early_gain > 0 and clock.middle_gain > 0)
    found = history(clock, [level] * (clock.total + 1))
    assert found.index(Stage.MIDDLE) == clock.early_patience
    assert found.index(Stage.LATE) == clock.early_patience + clock.middle_patience < clock.total


@given(clock=clocks(), step=st.floats(0.6, 2.0))
def test_an_accuracy_that_rises_fast_enough_never_leaves_the_first_stage(clock, step):
    accuracies = [2.0 * step * max(clock.early_gain, 1.0) * j for j in range(clock.total + 1)]
    assert set(history(clock, accuracies)) == {Stage.EARLY}


def test_a_scripted_run():
    """X = 3, Y = 2: a gain of exactly the threshold resets the counter, and the switch comes with the measurement that fills it."""
    clock = StageClock(10, 1.5, 1.0, 0.3, 0.2)
    assert (clock.early_patience, clock.middle_patience) == (3, 2)
    accuracies = [10.0, 11.0, 12.0, 13.5, 14.5, 15.5, 16.5, 17.0, 18.0, 18.5, 18.0, 30.0]
    expected = [Stage.EARLY] * 6 + [Stage.MIDDLE] * 4 + [Stage.LATE] * 2
    assert history(clock, accuracies) == expected
    counts, state = [], StageState()
    for accuracy in accuracies[:7]:
        state = clock.advance(state, accuracy)
        counts.append(state.slow)
    assert counts == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("total", "share", "patience"), [(300, 0.125, 38), (200, 0.15, 30), (600, 0.05, 30), (600, 1 / 24, 25), (100, 0.07, 7), (5, 0.01, 1)]
)
def test_patiences_are_rounded_up(total, share, patience):
    """37.5 becomes 38; 0.07 of 100, in floating point a little above 7, stays 7."""
    assert StageClock(total, early_share=share, middle_share=0.01).early_patience == patience


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_accuracy_stops_the_run(bad):
    with pytest.raises(Diverged, match=f"is {bad}"):
        StageClock(10).advance(StageState(), bad)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"total": 2}, "total=2 with patiences 1 and 1"),
        ({"total": 10, "early_share": 0.8, "middle_share": 0.2}, "patiences 8 and 2"),
        ({"total": 10, "early_share": 0.0}, "early_share=0.0"),
        ({"total": 10, "middle_share": 1.0}, "middle_share=1.0"),
        ({"total": 10, "middle_gain": math.nan}, "middle_gain=nan"),
    ],
)
def test_clocks_that_cannot_run_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        StageClock(**arguments)
