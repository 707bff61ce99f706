"""The comparison of arms: what each arm changes, equal time, intervals, probes, and the program from runs to report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from realdata import data, distill
from realdata.__main__ import Command, main
from realdata.compare import experiment
from realdata.compare.arms import ARMS, arm_config
from realdata.compare.experiment import Comparison, seconds_of, steps_in_equal_time
from realdata.compare.probe import peak_bytes
from realdata.compare.report import ArmResult, accuracy_numbers, interval, t_interval, verdict
from realdata.config import PRESETS, DistillConfig
from realdata.steps import read_steps
from sims.lab.files import RunError
from sims.lab.options import parse_words, with_preset
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.problem import Diverged
from theory.distill.stages import Stage
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 300, "test": 100}


@st.composite
def shared(draw: st.DrawFn) -> DistillConfig:
    spread = draw(st.integers(0, 4))
    base = draw(st.integers(spread + 1, 10))
    horizon = draw(st.integers(base + spread, 20))
    config = DistillConfig("mnist", horizon=horizon, window=base, outer_steps=1000)
    return replace(config, adaptive=replace(config.adaptive, spread=spread))


@given(config=shared(), rank=st.integers(1, 9))
def test_arms_differ_in_what_they_say_and_in_nothing_else(config: DistillConfig, rank: int):
    horizon, base, spread = config.horizon, config.window, config.adaptive.spread
    made = {name: arm_config(name, config, 7, rank) for name in ARMS}
    adaptive = AdaptiveWindow(horizon, base, spread)
    random = RandomWindow(horizon, base)
    expected = {
        "bptt": FullWindow(horizon),
        "t-bptt": FixedWindow(horizon, base),
        "rat-bptt": random,
        "rat-lengths": RandomWindow(horizon, base, spread=spread),
        "at-bptt": adaptive,
        "position": replace(adaptive, spread=0),
        "window": adaptive,
        "low-rank": random,
        "low-rank-fresh": random,
        "rank-0": random,
        "at-bptt-low-rank": adaptive,
        "at-sharp": replace(adaptive, temperature=1 / 3),
        "at-even": replace(adaptive, temperature=3.0),
        "at-norms": replace(adaptive, scores="norms"),
        "at-range": replace(adaptive, change="range"),
        "at-sigmoid": replace(adaptive, change="sigmoid"),
        "at-start": replace(adaptive, placement="start"),
        "at-current": replace(adaptive, profile="current"),
    }
    assert {name: c.windows() for name, c in made.items()} == expected
    ranks = {name: c.hessian() for name, c in made.items()}
    ages = {"low-rank": (rank, 20), "low-rank-fresh": (rank, 1), "rank-0": (0, 20), "at-bptt-low-rank": (rank, 20)}
    assert {name: (h.rank, h.max_age) for name, h in ranks.items() if h} == ages
    assert {name for name, c in made.items() if c.clock()} == {"position", *(name for name in ARMS if name.startswith("at-"))}
    assert {name for name, c in made.items() if c.first_stage is not Stage.EARLY} == {"window"}
    for c in made.values():
        own = {"adaptive": config.adaptive, "sketch": config.sketch}
        same = replace(c, method=config.method, seed=0, hessian_rank=None, window_spread=0, **own)
        assert same == config


@given(st.lists(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 1000))
def test_equal_time_is_that_of_the_first_arm_to_half_a_step(seconds: list[list[float]], steps: int):
    arms = tuple("abcd"[: len(seconds)])
    config = DistillConfig("mnist", outer_steps=steps)
    found = steps_in_equal_time(config, arms, dict(zip(arms, seconds, strict=True)))
    assert found[arms[0]] == steps
    budget = np.median(seconds[0])
    for arm, own in zip(arms, seconds, strict=True):
        step = np.median(own) / steps
        assert abs(found[arm] * step - budget) <= 0.5001 * step or found[arm] == 1


def test_intervals_are_those_of_normal_theory():
    rng = np.random.default_rng(1)
    stack = 50.0 + rng.standard_normal((40, 1)) + 0.5 * rng.standard_normal((40, 6))
    low, high = interval(stack, rng) or (np.nan, np.nan)
    half = 1.96 * np.std(stack.mean(axis=1)) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(stack.mean(), abs=0.1 * half)
    means = stack.mean(axis=1)
    assert t_interval(means) == pytest.approx(tuple(stats.ttest_1samp(means, 0.0).confidence_interval(0.95)))
    assert interval(stack[:1], rng) is None
    assert t_interval(means[:1]) is None
    assert interval(np.ones((3, 2)), rng) == (1.0, 1.0)


def test_verdicts():
    assert [verdict(x) for x in ((0.1, 2.0), (-2.0, -0.1), (-1.0, 1.0), None)] == ["above", "below", "not told apart", None]


def test_peak_is_the_most_held_at_a_time():
    def work() -> None:
        held = torch.empty(1000, 256)
        del held
        for _ in range(3):
            torch.empty(500, 256).sum()

    assert 1000 * 256 * 4 <= peak_bytes(work, torch.device("cpu")) <= 1010 * 256 * 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": ("rat-bptt", "other")}, "unknown arms 'other'"),
        ({"arms": ("rat-bptt", "rat-bptt")}, "each arm once"),
        ({"arms": ()}, "each arm once"),
        ({"equal": ("time",)}, "at equal steps at least"),
        ({"seeds": 0}, "seeds=0"),
        ({"probes": 0}, "probes=0"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(RunError, match=words):
        Comparison(**settings)


def command(root: Path, out: Path, *more: str) -> list[str]:
    words = ["compare", "--preset", "tiny", "--dataset", "mnist", "--root", str(root), "--out", str(out), "--threads", "1"]
    return [*words, "--checkpoint-every", "1", *more]


def test_from_runs_to_report_with_the_test_split_last(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Cut off in its second run, then done; every run is made once, and the test split is read after the last of them."""
    events: list[str] = []
    original, load = distill.run, data.load

    def logged(config: DistillConfig, root: Path, out: Path, *more: Any) -> Path:
        if len(events) == 1:
            events.append("cut")
            raise KeyboardInterrupt
        events.append(f"{out.parent.name}/{out.name}")
        return original(config, root, out, *more)

    def loaded(name: str, root: Path, split: str) -> Any:
        if split == "test":
            events.append(split)
        return load(name, root, split)

    monkeypatch.setattr(experiment.distill, "run", logged)
    monkeypatch.setattr(data, "load", loaded)
    arms = ("rat-bptt", "bptt")
    words = command(root, tmp_path / "out", "--arms", *arms)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 130
    assert events == ["steps/rat-bptt-0", "cut"]
    main(words)
    made = [event for event in events if "/" in event]
    assert len(made) == len(set(made)), "no run twice"
    assert {event for event in made if event.startswith("steps/")} == {f"steps/{arm}-{seed}" for arm in arms for seed in (0, 1)}
    assert events[-1] == "test"
    assert events.count("test") == 1

    found = json.loads((tmp_path / "out" / "summary.json").read_text())["arms"]
    assert [(x["arm"], x["equal"]) for x in found] == [(arm, equal) for equal in ("steps", "time") for arm in arms]
    by = {(x["arm"], x["equal"]): x for x in found}
    for x in found:
        own = np.array(x["accuracies"])
        assert own.shape == (2, 2)
        assert x["test_mean"] == pytest.approx(own.mean())
        if x["arm"] != arms[0]:
            first = by[arms[0], x["equal"]]
            assert x["difference"] == pytest.approx((own - first["accuracies"]).mean())
            assert x["held_out_difference"] == pytest.approx(x["held_out_mean"] - first["held_out_mean"])
            low, high = x["held_out_difference_t"]
            assert low <= x["held_out_difference"] <= high
    assert by["rat-bptt", "steps"]["accuracies"] == by["rat-bptt", "time"]["accuracies"], "the first arm sets the time"
    whole, random = (by[arm, "steps"] for arm in ("bptt", "rat-bptt"))
    assert (whole["products"], random["products"]) == (4, 2)
    for when in ("start", "end"):
        assert whole[f"cosine_run_{when}"] == whole[f"cosine_full_{when}"] == pytest.approx(1.0)
        assert whole[f"norm_run_{when}"] == pytest.approx(1.0)
        assert random[f"cosine_run_{when}"] < 0.9999
    for equal in ("steps", "time"):
        place = tmp_path / "out" / "runs" / "steps" / "rat-bptt-0"
        assert len(read_steps(place)) == 6
        assert seconds_of(place) > 0
        assert all(sum(by[arm, equal][f"seconds_{p}"] for p in ("plain", "product", "real")) > 0 for arm in arms)
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count(by["bptt", "steps"]["verdict"]) >= 1
    assert "Left out" not in report
    assert {path.suffix for path in (tmp_path / "out" / "figures").iterdir()} == {".png", ".pdf", ".csv"}

    before = (tmp_path / "out" / "summary.json").read_bytes()
    for name in ("probe", "train_arm"):
        monkeypatch.setattr(experiment, name, lambda *_: pytest.fail("measured again"))
    main(words)
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    main([*words, "--equal", "steps"])  # another question to the same runs
    asked = json.loads((tmp_path / "out" / "summary.json").read_text())["arms"]
    assert asked == [x for x in found if x["equal"] == "steps"]
    assert [event for event in events if "/" in event] == made, "nothing is made twice"


def test_an_arm_that_diverges_is_left_out_with_its_reason_and_the_others_go_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    original, tried = distill.run, []

    def run(config: DistillConfig, root: Path, out: Path, *more: Any) -> Path:
        tried.append(out.name)
        if out.name == "t-bptt-1":
            out.mkdir(parents=True)
            raise Diverged("outer step 3: objective nan")
        return original(config, root, out, *more)

    monkeypatch.setattr(experiment.distill, "run", run)
    words = command(root, tmp_path / "out", "--arms", "rat-bptt", "t-bptt", "bptt")
    main(words)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {(x["arm"], x["equal"]) for x in summary["arms"]} == {
        (arm, equal) for arm in ("rat-bptt", "bptt") for equal in ("steps", "time")
    }
    assert summary["left_out"] == {"t-bptt, equal steps": "diverged with seed 1: outer step 3: objective nan"}
    assert "Left out: **t-bptt, equal steps**: diverged with seed 1" in (tmp_path / "out" / "report.md").read_text()
    tried.clear()
    main(words)
    assert tried == [], "what diverged is not tried again"

    monkeypatch.setattr(experiment.distill, "run", lambda config, root, out, *more: out.mkdir(parents=True) or _diverge())
    with pytest.raises(SystemExit) as caught:
        main(command(root, tmp_path / "other"))
    assert caught.value.code == 1
    assert "rat-bptt, which the others are held against, diverged with seed 0" in capfd.readouterr().err


def test_an_arm_that_is_sound_for_fewer_seeds_gets_its_own_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It diverged with one of two seeds; asked again with the other alone, its steps in equal time are not those at equal steps."""
    original = distill.run

    def run(config: DistillConfig, root: Path, out: Path, *more: Any) -> Path:
        if out.name == "bptt-1":
            out.mkdir(parents=True)
            _diverge()
        return original(config, root, out, *more)

    monkeypatch.setattr(experiment.distill, "run", run)
    monkeypatch.setattr(experiment, "seconds_of", lambda place: 3.0 if place.name.startswith("bptt") else 1.0)
    words = command(root, tmp_path / "out", "--arms", "rat-bptt", "bptt")
    main(words)
    main([*words, "--seeds", "1"])
    found = {(x["arm"], x["equal"]): x for x in json.loads((tmp_path / "out" / "summary.json").read_text())["arms"]}
    assert found["bptt", "time"]["outer_steps"] == 2
    assert found["bptt", "steps"]["outer_steps"] == 6


def test_arms_that_are_the_same_under_the_shared_settings_are_refused(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(command(root, tmp_path / "out", "--arms", "at-bptt", "at-norms", "--adaptive.scores", "norms"))
    assert "at-bptt and at-norms are the same" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def _diverge() -> None:
    raise Diverged("outer step 0: objective inf")


def test_an_arm_too_slow_for_its_stages_in_equal_time_is_left_out_there_alone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "steps_in_equal_time", lambda shared, arms, seconds: {"rat-bptt": 6, "at-bptt": 1})
    main(command(root, tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(x["arm"], x["equal"]) for x in summary["arms"]] == [("rat-bptt", "steps"), ("at-bptt", "steps"), ("rat-bptt", "time")]
    assert "would make 1 outer steps in that time: the late stage would not begin" in summary["left_out"]["at-bptt, equal time"]


def test_seeds_can_be_added_and_the_steps_of_equal_time_stay(root: Path, tmp_path: Path):
    words = command(root, tmp_path / "out", "--arms", "rat-bptt", "bptt")
    main(words)
    budget = (tmp_path / "out" / experiment.EQUAL_TIME).read_bytes()
    before = json.loads((tmp_path / "out" / "summary.json").read_text())["arms"]
    main([*words, "--seeds", "3"])
    after = json.loads((tmp_path / "out" / "summary.json").read_text())["arms"]
    assert (tmp_path / "out" / experiment.EQUAL_TIME).read_bytes() == budget
    for old, new in zip(before, after, strict=True):
        assert new["accuracies"][:2] == old["accuracies"]
        assert len(new["accuracies"]) == 3
        assert new["outer_steps"] == old["outer_steps"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--hessian-rank", "0"], "--hessian-rank"),
        (["--method", "bptt"], "--method"),
        (["--adaptive.stage", "late"], "--adaptive.stage"),
        (["--window-spread", "1"], "--window-spread"),
    ],
)
def test_what_the_arms_set_is_not_shared(words: list[str], named: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(command(root, tmp_path / "out", *words))
    assert caught.value.code == 2
    assert f"arms of a comparison set {named} themselves" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_an_arm_are_told_apart_by_seed_and_measured_as_often_at_any_length(tmp_path: Path):
    config = DistillConfig("mnist", horizon=30, window=12, outer_steps=120, curve_every=10)
    for count in (40, 120, 300):
        made = list(experiment.entries(config, Comparison(seeds=3), tmp_path, "time", {"rat-bptt": count, "at-bptt": count}))
        assert [(e.seed, e.arm) for e in made] == [(seed, arm) for seed in (0, 1, 2) for arm in ("rat-bptt", "at-bptt")]
        for e in made:
            assert (e.config.seed, e.config.outer_steps, e.config.method) == (e.seed, count, e.arm)
            assert count / e.config.curve_every == pytest.approx(12, rel=0.15)
            assert e.place.name == f"{e.arm}-{e.seed}"


def test_differences_are_paired_by_seed():
    """Arms one point apart at every seed, whose seeds are many points apart."""
    rng = np.random.default_rng(0)
    base = np.array([[0.2], [0.5], [0.9]]) + 0.001 * rng.standard_normal((3, 4))
    first, other = (ArmResult(name, "steps", x, [0.1, 0.4, 0.8], [[]] * 3, []) for name, x in (("a", base), ("b", base + 0.01)))
    found = accuracy_numbers(other, first)
    assert found["difference"] == pytest.approx(1.0)
    assert found["difference_t"] == pytest.approx((1.0, 1.0))
    assert found["held_out_difference"] == 0.0
    assert found["verdict"] == "above"
    assert np.allclose(found["accuracies"], 100 * (base + 0.01))


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "compare").glob("*.toml")))
def test_every_preset_is_a_comparison_whose_arms_can_be_made(preset: str):
    words = ["compare", "--preset", preset, *(["--dataset", "mnist"] if preset == "tiny" else [])]
    command = parse_words(Command, with_preset(words, {"compare": PRESETS / "compare"}), "realdata")
    made = {arm_config(arm, command.config, 0, command.comparison.rank) for arm in command.comparison.arms}
    assert len(made) == len(command.comparison.arms)
