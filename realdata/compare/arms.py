"""The arms of a comparison: each one a change of the settings that all of them share.

    T  horizon, M  window, d  adaptive.spread;  an exact reverse sweep unless a rank is told
    first three   what AT-BPTT is held against;  position, window, low-rank: one of its three parts each, on top of RaT-BPTT
    rat-lengths   control of the window's length (random instead of adaptive);  rank-0: control of the low-rank Hessian (none at all)
    at-..         at-bptt with one of its open constants moved from the default (preset choices)

Sources: RaT-BPTT and the fixed window of its released scripts, Feng, Vedantam, Kempe, arXiv:2311.07025; AT-BPTT, Li et al.,
arXiv:2510.04838. The controls are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from realdata.config import DistillConfig
from sims.lab.files import RunError

Change = Callable[[DistillConfig, int], DistillConfig]


@dataclass(frozen=True)
class Arm:
    """What an arm is, in words, and as a change of the shared settings and the rank of low-rank arms."""

    about: str
    change: Change


def _adaptive(c: DistillConfig, **changes: object) -> DistillConfig:
    return replace(c, method="at-bptt", adaptive=replace(c.adaptive, **changes))


ARMS: dict[str, Arm] = {
    "bptt": Arm("all T steps", lambda c, rank: replace(c, method="bptt")),
    "t-bptt": Arm("M steps with a fixed start", lambda c, rank: replace(c, method="t-bptt")),
    "rat-bptt": Arm("M steps at a random place", lambda c, rank: replace(c, method="rat-bptt")),
    "rat-lengths": Arm(
        "M - d to M + d steps at random, at a random place",
        lambda c, rank: replace(c, method="rat-bptt", window_spread=c.adaptive.spread),
    ),
    "at-bptt": Arm("place by gradient norms in three stages, length by their change", lambda c, rank: _adaptive(c)),
    "position": Arm("at-bptt with d = 0: the place alone", lambda c, rank: _adaptive(c, spread=0)),
    "window": Arm("at-bptt held in its middle stage: the length alone", lambda c, rank: _adaptive(c, stage="middle")),
    "low-rank": Arm("rat-bptt with a low-rank Hessian", lambda c, rank: replace(c, method="rat-bptt", hessian_rank=rank)),
    "low-rank-fresh": Arm(
        "rat-bptt with a low-rank Hessian made anew at every step",
        lambda c, rank: replace(c, method="rat-bptt", hessian_rank=rank, sketch=replace(c.sketch, max_age=1)),
    ),
    "rank-0": Arm("rat-bptt without curvature", lambda c, rank: replace(c, method="rat-bptt", hessian_rank=0)),
    "at-sharp": Arm("at-bptt at a third of the temperature", lambda c, rank: _adaptive(c, temperature=c.adaptive.temperature / 3)),
    "at-even": Arm("at-bptt at three times the temperature", lambda c, rank: _adaptive(c, temperature=c.adaptive.temperature * 3)),
    "at-norms": Arm("at-bptt with raw gradient norms as scores, as in the paper", lambda c, rank: _adaptive(c, scores="norms")),
    "at-range": Arm("at-bptt, length by the range of changes", lambda c, rank: _adaptive(c, change="range")),
    "at-sigmoid": Arm("at-bptt, length by a sigmoid of changes", lambda c, rank: _adaptive(c, change="sigmoid")),
    "at-start": Arm("at-bptt, a position is its window's start", lambda c, rank: _adaptive(c, placement="start")),
    "at-current": Arm("at-bptt by the norms of the very run that is cut", lambda c, rank: _adaptive(c, profile="current")),
    "at-bptt-low-rank": Arm("at-bptt with a low-rank Hessian, as published", lambda c, rank: replace(_adaptive(c), hessian_rank=rank)),
}


def arm_config(name: str, shared: DistillConfig, seed: int, rank: int) -> DistillConfig:
    """The settings of an arm's run."""
    return replace(ARMS[name].change(shared, rank), seed=seed)


def refuse_what_arms_set(shared: DistillConfig) -> None:
    """An arm is a change of settings that all share; what arms are told apart by is theirs to set."""
    plain = DistillConfig(shared.dataset)
    set_ = {
        "--method": shared.method != plain.method,
        "--hessian-rank": shared.hessian_rank is not None,
        "--window-spread": shared.window_spread != 0,
        "--adaptive.stage": shared.adaptive.stage != plain.adaptive.stage,
    }
    own = [name for name, changed in set_.items() if changed]
    if own:
        raise RunError(f"the arms of a comparison set {', '.join(own)} themselves: leave out what is set there, and choose --arms")
