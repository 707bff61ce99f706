"""The whole pipeline with real samples at d = 64, N = 32 d^2: a distilled set trains a fresh network almost as well as the full data do."""

from pathlib import Path

import numpy as np
import pytest
import tyro

from sims.encode.experiment import Encode, encode_trial
from sims.lab.options import preset_options
from sims.lab.sweep import attempt

PRESETS = Path(__file__).parents[2] / "sims" / "presets" / "encode"
TEACHER = {2: 0.03, 3: 0.03, 4: 0.05}


@pytest.mark.slow
@pytest.mark.parametrize("r", [2, 3, 4])
def test_the_distilled_set_trains_a_fresh_network_almost_as_well_as_the_full_data(r: int) -> None:
    config = tyro.cli(Encode, args=preset_options(PRESETS, f"r{r}"))
    assert config.seeds >= 8
    outcomes = [attempt(encode_trial, trial) for trial in config.configs("numpy")]
    assert all(outcome.failed is None for outcome in outcomes)
    risk = {name: float(np.median([o.result[f"risk_{name}"] for o in outcomes])) for name in ("teacher", "distilled")}
    assert risk["teacher"] <= TEACHER[r]
    assert risk["distilled"] <= 1.5 * risk["teacher"]
    for baseline in ("random_features", "random_subset"):
        assert np.median([o.result[f"risk_{baseline}"] for o in outcomes]) >= 0.8


def test_one_seed_at_a_quarter_of_the_size_is_already_far_below_its_baselines() -> None:
    config = tyro.cli(Encode, args=[*preset_options(PRESETS, "r2"), "--d", "32", "--J", "4", "--L", "128", "--seeds", "1"])
    outcome = attempt(encode_trial, config.configs("numpy")[0])
    assert outcome.failed is None
    assert outcome.result["risk_distilled"] < 0.15
    assert outcome.result["off_energy"] < 0.1
    assert min(outcome.result["risk_random_subset"], outcome.result["risk_k_means"]) > 0.6
