"""`python -m realdata plan`: memory and disk against what a small run then takes, the arithmetic against made-up rows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from realdata import plan
from realdata.config import AdaptiveConfig, DistillConfig
from realdata.plan import Rates, Trial, expected_window, folder_bytes, predict
from tests.realdata.sets import NAME, write_arrays

SETTINGS = ["--dataset", NAME, "--preset", "dev-tiny", "--threads", "1", "--horizon", "12", "--window", "8"]
RUN = """
import sys
from realdata.__main__ import main
from realdata.plan import peak_memory
main(sys.argv[1:])
print(peak_memory())
"""


def test_memory_and_disk_lie_within_a_quarter_of_a_run(tmp_path: Path):
    """In processes of their own, as a user would: peaks count from a process's start. The run has 40 outer steps, the trial 3."""
    write_arrays(tmp_path / "data", np.random.default_rng(0))
    more = [*SETTINGS, "--root", str(tmp_path / "data"), "--outer-steps", "40", "--curve-every", "8"]
    place, out = tmp_path / "plan.json", tmp_path / "run"
    said = subprocess.run(
        [sys.executable, "-m", "realdata", "plan", *more, "--json", str(place)], check=True, capture_output=True, text=True
    )
    run = subprocess.run([sys.executable, "-c", RUN, "distill", *more, "--out", str(out)], check=True, capture_output=True, text=True)
    planned = json.loads(place.read_text())
    assert planned["memory"] == pytest.approx(int(run.stdout.split()[-1]), rel=0.25)
    assert planned["disk"] == pytest.approx(folder_bytes(out), rel=0.25)
    assert planned["measurements"] == 6
    assert planned["device_memory"] is None
    assert "of it 40 outer steps" in said.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plan.json", "run"]


def row(start: int, stop: int, gradients: int, plain: float, product: float, real: float, state: int = 10) -> plan.Row:
    """A step at the given rates; the first of a run may take longer than its parts."""
    times = {"seconds_plain": gradients * plain, "seconds_product": (stop - start) * product, "seconds_real": real}
    return {
        "start": start,
        "stop": stop,
        "gradients": gradients,
        "stored_floats": state * (stop - start),
        **times,
        "seconds": sum(times.values()),
    }


def test_rates_are_recovered_from_rows():
    rates = Rates.of([row(2, 10, 10, 0.1, 0.7, 3.0), row(0, 8, 8, 0.1, 0.7, 5.0)])
    assert (rates.plain, rates.recorded, rates.real) == pytest.approx((0.1, 0.7, 4.0))


@pytest.mark.parametrize("on_gpu", [None, 5_000_000])
def test_the_plan_of_a_made_up_trial(monkeypatch: pytest.MonkeyPatch, on_gpu: int | None):
    """Every part in closed form: steps of 20 plain and 8 recorded inner steps, 100 of them, 11 measurements of 2 networks."""
    config = DistillConfig(NAME, method="t-bptt", horizon=20, window=8, outer_steps=100, curve_every=10, curve_networks=2)
    rows = [row(12, 20, 20, 0.1, 0.7, 3.0) for _ in range(3)]
    rows[0]["seconds"] += 60.0  # what a first step meets
    step, network = 20 * 0.1 + 8 * 0.7 + 3.0, 20 * 0.1 + 0.5
    took = 7.0 + 60.0 + 3 * step + 4 * network
    monkeypatch.setattr(plan, "try_out", lambda *_: Trial(took, rows, 10**9, on_gpu, 1000, 80.0))
    monkeypatch.setattr(plan, "_judging_seconds", lambda *_: 0.5)
    found = predict(config, Path(), plan.Runtime(device="cpu"))
    assert found.step_seconds == pytest.approx(step)
    assert found.start_seconds == pytest.approx(67.0)
    assert found.measurement_seconds == pytest.approx(2 * network)
    assert found.seconds == pytest.approx(67.0 + 100 * step + 11 * 2 * network)
    assert (found.memory, found.device_memory) == (10**9, on_gpu)
    assert found.disk == 1000 + 97 * 80 + 7 * plan.POINT_BYTES


def test_longer_windows_than_the_trials_add_their_states(monkeypatch: pytest.MonkeyPatch):
    settings = {"method": "at-bptt", "horizon": 20, "window": 8, "adaptive": AdaptiveConfig(spread=4), "outer_steps": 100, "curve_every": 5}
    config = DistillConfig(NAME, **settings)  # pyright: ignore[reportArgumentType]
    rows = [row(12, 20, 20, 0.1, 0.7, 3.0, state=1000) for _ in range(3)]
    monkeypatch.setattr(plan, "try_out", lambda *_: Trial(100.0, rows, 10**9, None, 1000, 80.0))
    monkeypatch.setattr(plan, "_judging_seconds", lambda *_: 0.5)
    assert predict(config, Path(), plan.Runtime(device="cpu")).memory == 10**9 + 4 * 4 * 1000


@pytest.mark.parametrize(
    ("settings", "stop", "length", "longest"),
    [
        ({"method": "bptt"}, 20, 20, 20),
        ({"method": "t-bptt"}, 20, 8, 8),
        ({"method": "rat-bptt"}, 14, 8, 8),
        ({"method": "at-bptt", "adaptive": AdaptiveConfig(spread=3)}, 14, 8, 11),
        ({"method": "at-bptt", "adaptive": AdaptiveConfig(spread=3, profile="current")}, 20, 8, 20),
    ],
)
def test_expected_windows(settings: dict[str, object], stop: float, length: float, longest: int):
    found = expected_window(DistillConfig(NAME, horizon=20, window=8, **settings))  # pyright: ignore[reportArgumentType]
    assert found[:2] == pytest.approx((stop, length), abs=0.4)
    assert found[2] == longest
