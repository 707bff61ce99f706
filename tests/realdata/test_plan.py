"""`python -m realdata plan`: memory and disk against what a small run then takes, the arithmetic against made-up rows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from realdata import plan
from realdata.__main__ import main
from realdata.config import AdaptiveConfig, DistillConfig
from realdata.data import cache_folder
from realdata.networks import ConvNetConfig
from realdata.plan import Prepared, Rates, Trial, expected_window, folder_bytes, predict
from tests.realdata.files import write_tree
from tests.realdata.sets import NAME, write_arrays

SETTINGS = ["--dataset", NAME, "--preset", "dev-tiny", "--threads", "1", "--horizon", "12", "--window", "8"]
RUN = """
import sys
from realdata.__main__ import main
from realdata.plan import peak_memory
main(sys.argv[1:])
print(peak_memory())
"""
LARGE = "--method bptt --horizon 40 --network.width 256 --outer-steps 4 --curve-every 4 --curve-networks 1"


def test_memory_lies_within_a_quarter_of_what_a_run_takes_beyond_the_program(tmp_path: Path):
    """In processes of their own, for peaks count from a process's start; the program's own is that of a run on next to nothing."""
    write_arrays(tmp_path / "data", np.random.default_rng(0))
    shared = [*SETTINGS, "--root", str(tmp_path / "data")]
    # Large blocks go back to the system when they are freed: otherwise the peaks of two equal runs differ by a quarter, by fragments.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}

    def peak(out: str, *more: str) -> int:
        words = [sys.executable, "-c", RUN, "distill", *shared, "--out", str(tmp_path / out), *more]
        return int(subprocess.run(words, check=True, capture_output=True, text=True, env=env).stdout.split()[-1])

    program, run = peak("small", "--outer-steps", "1"), peak("large", *LARGE.split())
    place = tmp_path / "plan.json"
    words = [sys.executable, "-m", "realdata", "plan", *shared, *LARGE.split(), "--json", str(place)]
    subprocess.run(words, check=True, capture_output=True, env=env)
    assert run - program > 2e8, "of which a quarter is more than what two runs differ by"
    assert json.loads(place.read_text())["memory"] - program == pytest.approx(run - program, rel=0.25)


def test_disk_lies_within_a_quarter_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The run has 40 outer steps, the trial 3."""
    write_arrays(tmp_path / "data", np.random.default_rng(0))
    more = [*SETTINGS, "--root", str(tmp_path / "data"), "--outer-steps", "40", "--curve-every", "8"]
    main(["plan", *more, "--json", str(tmp_path / "plan.json")])
    said = capfd.readouterr().out
    main(["distill", *more, "--out", str(tmp_path / "run")])
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert planned["disk"] == pytest.approx(folder_bytes(tmp_path / "run"), rel=0.25)
    assert planned["measurements"] == 6
    assert planned["device_memory"] is None
    assert "of it 40 outer steps" in said
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


def pretended(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> list[str]:
    """A made-up trial of images that took 40 seconds to read at first and 10 after it; gives what was asked, in order."""
    order, seconds = [], iter((40.0, 10.0))

    def prepared(*_: object) -> SimpleNamespace:
        order.append("reading")
        return SimpleNamespace(seconds=next(seconds), cache=9)

    monkeypatch.setattr(plan.Prepared, "of", prepared)
    monkeypatch.setattr(plan, "try_out", lambda *_: (order.append("trial"), trial)[1])
    monkeypatch.setattr(plan, "_judging_seconds", lambda *_: 0.5)
    return order


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
    order = pretended(monkeypatch, Trial(took, rows, 10**9, on_gpu, 1000, 80.0))
    found = predict(config, Path(), plan.Runtime(device="cpu"))
    assert found.step_seconds == pytest.approx(step)
    assert found.start_seconds == pytest.approx(67.0)
    assert found.measurement_seconds == pytest.approx(2 * network)
    assert found.seconds == pytest.approx(67.0 + 100 * step + 11 * 2 * network)
    assert (found.memory, found.device_memory) == (10**9, on_gpu)
    assert found.disk == 1000 + 97 * 80 + 7 * plan.POINT_BYTES
    assert order == ["reading", "trial", "reading"], "what the run finds in the cache is no part of the trial"
    assert (found.prepared_seconds, found.cache) == (pytest.approx(30.0), 9)


def test_longer_windows_than_the_trials_add_their_states(monkeypatch: pytest.MonkeyPatch):
    settings = {"method": "at-bptt", "horizon": 20, "window": 8, "adaptive": AdaptiveConfig(spread=4), "outer_steps": 100, "curve_every": 5}
    config = DistillConfig(NAME, **settings)  # pyright: ignore[reportArgumentType]
    rows = [row(12, 20, 20, 0.1, 0.7, 3.0, state=1000) for _ in range(3)]
    pretended(monkeypatch, Trial(100.0, rows, 10**9, None, 1000, 80.0))
    assert predict(config, Path(), plan.Runtime(device="cpu")).memory == 10**9 + 4 * 4 * 1000


def test_stages_that_do_not_fit_into_the_trial(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Ten measurements hold patiences of 4 and 3 slow ones, the three of the trial do not; said with what the cache has of the images."""
    write_arrays(tmp_path, np.random.default_rng(0))
    stages = "--method at-bptt --adaptive.spread 1 --adaptive.early-share 0.4 --adaptive.middle-share 0.3 --outer-steps 40 --curve-every 4"
    main(["plan", *SETTINGS, "--root", str(tmp_path), *stages.split(), "--json", str(tmp_path / "plan.json"), "--transform", "zca"])
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert (planned["steps"], planned["measurements"]) == (40, 11)
    assert planned["cache"] == pytest.approx(2 * 4 * 64**2, rel=0.01)  # the two matrices of the transform
    said = capfd.readouterr()
    assert f"stays in {cache_folder()}" in said.err
    assert "decoding and fitting, done already" in said.out
    assert "in the cache, already" in said.out


def test_decoded_pictures_count_to_the_cache(tmp_path: Path):
    write_tree(tmp_path, np.random.default_rng(0), each=10)
    config = DistillConfig("folders:3x8x8:2", transform="standardise", network=ConvNetConfig(1, 4), real_batch=4)
    assert Prepared.of(config, tmp_path).cache == 2 * 10 * 3 * 8 * 8


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
