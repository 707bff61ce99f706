"""Each part of a property can fail: one of the functions that it checks is replaced by a wrong one, and the search finds it."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from proofs_check.lemmas.distilled_point_energy import raw_points
from proofs_check.registry import known
from proofs_check.sampled import raw_rows
from proofs_check.search import search
from sims.population import second_moments
from sims.two_phase import retrained_rows
from theory.distill.adaptive import AdaptiveWindow, PlacedWindow
from theory.distill.curvature import LowRankHessian
from theory.distill.matching import DISTANCES
from theory.distill.stages import Stage, StageClock, StageState
from theory.multi_index import HermiteLink

LEMMAS = known()


class Late(StageClock):
    """The clock with X measurements more than it says."""

    def advance(self, state, accuracy):
        after = super().advance(state, accuracy)
        return replace(after, slow=-1) if after.slow == 1 else after


class Forgetful(StageClock):
    """A fast measurement does not start the count again."""

    def advance(self, state, accuracy):
        after = super().advance(state, accuracy)
        return replace(after, slow=state.slow) if after.stage is state.stage and after.slow == 0 else after


class Back(StageClock):
    """From the late stage a rise leads back to the middle one."""

    def advance(self, state, accuracy):
        rises = state.stage is Stage.LATE and accuracy > state.accuracy
        return StageState(Stage.MIDDLE, 0, accuracy) if rises else super().advance(state, accuracy)


class Fixed(LowRankHessian):
    """Power iterations change nothing; the products are counted as if they did."""

    def sketch(self, hvp, t, theta, rng):
        if self.power == 0:
            return super().sketch(hvp, t, theta, rng)
        for _ in range(self.power * min(self.rank + self.oversample, theta[0].size) if self.rank else 0):
            hvp(theta)
        found = replace(self, power=0).sketch(hvp, t, theta, rng)
        return replace(found, products=found.products + self.power * min(self.rank + self.oversample, theta[0].size))


class Unsigned(LowRankHessian):
    def sketch(self, hvp, t, theta, rng):
        found = super().sketch(hvp, t, theta, rng)
        return replace(found, mu=np.abs(found.mu))


def uniform(policy, stage, profile, true=AdaptiveWindow.at):
    """Early positions drawn by their ranks alone."""
    placed = true(policy, stage, profile)
    ranks = 1.0 + np.argsort(np.argsort(placed.probabilities))
    return PlacedWindow(placed.policy, stage, ranks / ranks.sum() if stage is Stage.EARLY else placed.probabilities, placed.lengths)


def scaled(function, factor):
    return lambda *arguments: factor * function(*arguments)


def module(name):
    return importlib.import_module(f"proofs_check.lemmas.{name}")


BROKEN = {
    "the law of positions": ("adaptive-windows", AdaptiveWindow, "at", uniform),
    "draws follow the law": ("adaptive-windows", PlacedWindow, "draw", lambda self, rng: self.window(0)),
    "patience of the clock": ("adaptive-windows", module("adaptive_windows"), "StageClock", Late),
    "measurements in a row": ("adaptive-windows", module("adaptive_windows"), "StageClock", Forgetful),
    "the clock goes one way": ("adaptive-windows", module("adaptive_windows"), "StageClock", Back),
    "default shares": (
        "adaptive-windows",
        module("adaptive_windows"),
        "StageClock",
        lambda total, early_share=0.15, middle_share=0.125: StageClock(total, early_share=early_share, middle_share=middle_share),
    ),
    "power iterations": ("low-rank-hessian", module("low_rank_hessian"), "LowRankHessian", Fixed),
    "signs of eigenvalues": ("low-rank-hessian", module("low_rank_hessian"), "LowRankHessian", Unsigned),
    "value of the match": (
        "dc-dd-agree",
        module("dc_dd_agree"),
        "DISTANCES",
        {"inner_product": lambda g_s, g_t: (-DISTANCES["inner_product"](g_s, g_t)[0], DISTANCES["inner_product"](g_s, g_t)[1])},
    ),
    "a head that is not recovered": (
        "labels-determine-head",
        module("labels_determine_head"),
        "least_norm_head",
        lambda phi, y: phi[0] * 0.0,
    ),
    "fewer labels leave it open": ("labels-determine-head", module("labels_determine_head"), "LOST", 1.5),
    "captured variance": ("points-span-rows", HermiteLink, "captured_variance", scaled(HermiteLink.captured_variance, 1.001)),
    "rows in the span": (
        "points-span-rows",
        module("points_span_rows"),
        "retrained_rows",
        lambda *arguments: retrained_rows(*arguments) + 1e-6,
    ),
    "raw energy of teacher rows": ("teacher-row-energy", module("teacher_row_energy"), "raw_rows", scaled(raw_rows, 1.02)),
    "raw energy of points": ("distilled-point-energy", module("distilled_point_energy"), "raw_points", scaled(raw_points, 1.02)),
    "second moment of the rows": ("common-mode", module("common_mode"), "second_moments", scaled(second_moments, 1.5)),
    "energy of the common mode": ("common-mode", module("common_mode"), "common_mode_ratio", lambda r, m1: 1.57 * r * (r + 1) / m1),
}
"""What is checked -> (lemma, owner, attribute, wrong one)."""


@pytest.mark.parametrize("part", BROKEN)
def test_a_wrong_one_is_found(part, monkeypatch):
    name, owner, attribute, wrong = BROKEN[part]
    lemma = LEMMAS[name]
    monkeypatch.setattr(owner, attribute, wrong)
    assert not search(lemma.margin, lemma.instances, 30, seed=0, shrink=False).holds
