"""The stage clock of AT-BPTT: a one-way machine early -> middle -> late, driven by how fast an accuracy still rises.

    A_j            accuracy of training on S at measurement j, in per cent, at one fixed inner length and on held-out real data
    early -> middle    after X measurements in a row with A_j - A_{j-1} < M
    middle -> late     after Y measurements in a row with A_j - A_{j-1} < N
    X = ceil(early_share * total),  Y = ceil(middle_share * total),  total: planned measurements after the first

The rule is that of AT-BPTT (Li et al., arXiv:2510.04838): M = 1.5 points and X = 5 % of all epochs are stated there; N = 1 point and
Y = 1/24 are those of the released code at 600 epochs. Derived here: which accuracy is measured, shares rounded up and counters compared
with >=, so that a flat accuracy passes through every stage whatever the total. An outer loop without classes may feed any score on the
scale of the thresholds.

A deviation of ours: M and N are gains from one outer epoch to the next in the paper and the released code, here from one measurement to
the next, whatever lies between. Where a measurement spans k epochs, an accuracy gains about k times as much between two of them, so it
counts as slow less often and the stages come later than by the rule; where it spans a part of one, they come earlier. M and N are options
(early_gain, middle_gain): k M and k N ask for the same mean gain an epoch.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from theory.distill.problem import Diverged


class Stage(StrEnum):
    """Where a distillation stands: which positions its window prefers."""

    EARLY = "early"
    MIDDLE = "middle"
    LATE = "late"


@dataclass(frozen=True)
class StageState:
    """The stage, slow measurements in a row since it began, and the last accuracy (None before the first)."""

    stage: Stage = Stage.EARLY
    slow: int = 0
    accuracy: float | None = None


def _part(share: float, total: int) -> int:
    """ceil(share * total), at least 1; the tolerance keeps 0.07 of 100, a little above 7 in floating point, at 7."""
    return max(1, math.ceil(share * total - 1e-9))


@dataclass(frozen=True)
class StageClock:
    """Thresholds in points of accuracy, patiences as shares of `total`, the number of planned measurements after the first."""

    total: int
    early_gain: float = 1.5
    middle_gain: float = 1.0
    early_share: float = 0.05
    middle_share: float = 1 / 24

    def __post_init__(self) -> None:
        for name in ("early_gain", "middle_gain"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"a threshold of the stage clock must be finite: {name}={getattr(self, name)}")
        for name in ("early_share", "middle_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"a patience of the stage clock is a share in (0, 1): {name}={getattr(self, name)}")
        if self.early_patience + self.middle_patience >= self.total:
            raise ValueError(
                f"the late stage would not begin before the last measurement: total={self.total} with patiences "
                f"{self.early_patience} and {self.middle_patience}; measure more often or lower the shares"
            )

    @property
    def early_patience(self) -> int:
        """X: slow measurements in a row that end the early stage."""
        return _part(self.early_share, self.total)

    @property
    def middle_patience(self) -> int:
        """Y: slow measurements in a row that end the middle stage."""
        return _part(self.middle_share, self.total)

    def advance(self, state: StageState, accuracy: float) -> StageState:
        """The state after one more measurement, `accuracy` in per cent."""
        if not math.isfinite(accuracy):
            raise Diverged(f"the accuracy that drives the stages is {accuracy}")
        if state.accuracy is None or state.stage is Stage.LATE:
            return replace(state, accuracy=accuracy)
        early = state.stage is Stage.EARLY
        gain, patience = (self.early_gain, self.early_patience) if early else (self.middle_gain, self.middle_patience)
        slow = state.slow + 1 if accuracy - state.accuracy < gain else 0
        if slow < patience:
            return StageState(state.stage, slow, accuracy)
        return StageState(Stage.MIDDLE if early else Stage.LATE, 0, accuracy)
