"""Plain against reflected sets: nested points, the pair, what the laws make of planted rows, the program."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sims.__main__ import main
from sims.command import PRESETS, Facts
from sims.lab.files import RunError, toml_text
from sims.lab.laws import SampledLaw, Slope, slope
from sims.lab.store import TrialStore
from sims.pipeline import Bench, distil_points, encode, fresh_network, task_of, teacher_network, trial_seed
from sims.reflected import laws, report
from sims.reflected.command import PROGRAM
from sims.reflected.experiment import Reflected, least_grid, paired_trial, sweeps
from tests.sims.programs import preset_config, refuses
from theory.multi_index import make_link
from theory.retrained import retrained_spectrum
from theory.spectrum import criteria

TINY = Reflected(
    d=6,
    r=2,
    L=12,
    links=("cubic", "quadratic-plus"),
    r_over=(1, 2),
    L_over=(16,),
    diversity_over=(1.0,),
    samples_over=(1.5,),
    noise_over=(0.5,),
    matching_over=("performance",),
    shares=(1.0, 2.0, 4.0),
    r_least=(1, 2, 3),
    samples=8.0,
    seeds=3,
    head_samples=100,
    validation=60,
    test=60,
)
CONFIG = sweeps(TINY, "numpy")[1].configs[0] | {"m1": [2, 4, 8]}


@pytest.fixture(autouse=True)
def _planted_form(monkeypatch: pytest.MonkeyPatch):
    """The form of the risk takes seconds an r and has tests of its own: 3 r^1.2 in its place, none below r = 4."""
    form = lambda r, ratio, fit, reflected: 3.0 * r**1.2 if r >= 4 else None  # noqa: E731
    monkeypatch.setattr(laws, "predicted_risk_points", form)


# Trials.


@pytest.mark.parametrize("matching", ["squared", "performance"])
def test_a_pair_is_the_pipeline_with_and_without_reflection(matching):
    """Points of the largest set serve the smaller ones: their common scale is free, and the start they carry is tiny."""
    config = CONFIG | {"matching": matching, "inner_lr": 1e-3}
    found = paired_trial(config)
    for reflected in (False, True):
        task = dataclasses.replace(task_of(config), reflected=reflected)
        encoded = encode(task, trial_seed(config, task.d, task.r, task.L))
        bench, name = Bench.of(encoded), "reflected" if reflected else "plain"
        assert found["teacher"] == bench.risk(teacher_network(bench))
        for k, m1 in enumerate(config["m1"]):
            network = bench.fit_real(*fresh_network(encoded, distil_points(encoded, m1), "retrain"))
            assert found[f"risk_{name}"][k] == pytest.approx(bench.risk(network), rel=2e-2)
            inside = float(np.sum((network.rows @ encoded.model.B) ** 2) / np.sum(network.rows**2))
            assert found[f"off_{name}"][k] == pytest.approx(1 - inside, abs=1e-3)


def test_results_survive_the_store(tmp_path):
    result = paired_trial(CONFIG)
    row = TrialStore(tmp_path).put("pair", CONFIG, result)
    assert {name: row[name] for name in result} == result
    assert paired_trial(CONFIG) == result
    assert paired_trial(CONFIG | {"draw": 1}) != result


# What is asked.


def test_the_comparison_covers_each_axis_once():
    config = Reflected()
    cells = config.cells()
    assert len({json.dumps(cell, sort_keys=True) for cell in cells}) == len(cells)
    base = config.cell(config.r)
    assert base in cells
    assert {(c["link"], c["r"]) for c in cells} >= {(link, r) for link in config.links for r in config.r_over}
    for name, values in (("noise", config.noise_over), ("samples", config.samples_over), ("matching", config.matching_over)):
        for value in values:
            (cell,) = [c for c in cells if c[name] == value]
            assert {k for k in cell if cell[k] != base[k]} <= {name, "head_samples"}
    for cell in cells:
        assert cell["L"] % 2 == 0
        assert config.grid(cell["r"])[:2] == [cell["r"], cell["r"] + 1]
    for r in (1, 2, 5, 16):
        assert least_grid(r)[0] == r + 1
        assert least_grid(r)[-1] >= 3 * r * r


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 1}, "seeds=1"),
        ({"seed": -1}, "seed=-1"),
        ({"r_least": (2, 4)}, "r_least=[2, 4]"),
        ({"shares": (0.5, 2.0)}, "shares=[0.5, 2.0]"),
        ({"shares": (2.0, 4.0)}, "shares=[2.0, 4.0]"),
        ({"shares": (1.0, 2.0)}, "shares=[1.0, 2.0]"),
        ({"samples": 1.0, "samples_over": (0.5,)}, "N > d^2 and r > 1: samples=1"),
        ({"r": 1, "r_over": (1,)}, "N > d^2 and r > 1: samples=16"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"links": ("septic",)}, "unknown link 'septic'"),
        ({"r_over": (2, 40)}, "r=40 > d=32"),
    ],
)
def test_bad_settings_are_refused_in_one_line(wrong, words):
    refuses(Reflected(), wrong, words)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "reflected").glob("*.toml")))
def test_every_preset_is_a_valid_comparison(preset):
    config = preset_config(PROGRAM, preset)
    assert (config == Reflected()) == (preset == "quick")
    assert config.seeds >= 5


# Planted rows.


def planted(config: Reflected, *, gain: Any = lambda task, m: 0.8, exponents: tuple[float, float] = (2.0, 1.0)) -> dict[str, list[Any]]:
    """Rows whose risks fall like 1/M1 and reach the level at 2 r^exponent; `gain` is reflected / plain of the comparison."""
    rng, rows = np.random.default_rng(0), {}
    for sweep in sweeps(config, "numpy"):
        rows[sweep.kind] = []
        for task in sweep.configs:
            m, noise = np.array(task["m1"], float), math.exp(0.2 * rng.standard_normal())
            if sweep.kind == "least":
                risks = [config.ratio * 0.1 * 2 * task["r"] ** e * noise / m for e in exponents]
            else:
                plain = noise / m
                pairwise = [math.exp(0.05 * rng.standard_normal()) * gain(task, v) for v in task["m1"]]
                risks = [plain, plain * np.array(pairwise)]
            curves = {"common_mode": np.ones(len(m)).tolist()}
            for name, exponent in zip(laws.SETS, exponents, strict=True):
                curves[f"conditioning_{name}"] = (10.0 * 2 * task["r"] ** exponent * noise / m).tolist()
            curves |= {"off_plain": [0.02] * len(m), "off_reflected": [0.01] * len(m)}
            result = {"teacher": 0.1, "risk_plain": risks[0].tolist(), "risk_reflected": risks[1].tolist()} | curves
            rows[sweep.kind].append({"failed": None} | task | result)
    return rows


PLAN = dataclasses.replace(Reflected(), r_least=(4, 8, 16), samples_over=(1.0,), links=("cubic", "cross"), r_over=(2, 4), seeds=10)


def verdicts(found: laws.Found) -> dict[str, str]:
    return {e.text: e.verdict for e in found.expectations}


def test_planted_gains_and_exponents_come_back():
    def gain(task: dict[str, Any], m: int) -> float:
        if task["samples"] == 1:
            return 1.0
        return 1.3 if m <= task["r"] else 0.9 if task["J"] * task["L"] > 8 * task["r"] * task["d"] else 0.6

    found = laws.measure(PLAN, planted(PLAN, gain=gain), resamples=100)
    assert set(verdicts(found).values()) == {"PASS"}
    for name, exponent in (("plain", 2.0), ("reflected", 1.0)):
        slope = found.least[name].slope
        assert slope.interval[0] - 0.05 < exponent < slope.interval[1] + 0.05
        assert found.least[name].y == pytest.approx([2 * r**exponent for r in PLAN.r_least], rel=0.2)
    assert found.gain.y == pytest.approx([y / z for y, z in zip(found.least["plain"].y, found.least["reflected"].y, strict=True)])
    base = next(pair for pair in found.pairs if pair.task == PLAN.cell(PLAN.r))
    mean, (low, high) = base.ratios[-1]
    assert low < math.log(0.6) < high
    assert mean == pytest.approx(math.log(0.6), abs=0.1)
    words = report.verdict(found)
    assert words.count("compatible with r, excludes r^2") == 2
    assert "order r, by risk: HOLDS" in words
    assert "order r, by conditioning: HOLDS" in words
    assert "plain in 0" in words


def test_no_gain_and_plain_exponents_fail():
    found = laws.measure(PLAN, planted(PLAN, gain=lambda task, m: 1.0, exponents=(2.0, 2.0)), resamples=60)
    assert set(verdicts(found).values()) == {"FAIL"}
    assert "compatible with r^2, excludes r" in report.verdict(found)
    assert "order r, by risk: BREAKS" in report.verdict(found)
    assert "order r, by conditioning: BREAKS" in report.verdict(found)
    worse = laws.measure(PLAN, planted(PLAN, gain=lambda task, m: 1.5), resamples=10)
    places = sum(sum(m >= laws.ENOUGH * p.task["r"] for m in p.m1) for p in worse.pairs)
    assert f"reflected better in 0 of {places} places, plain in {places}" in report.verdict(worse)


def test_an_exponent_between_r_and_r2_is_undecided():
    found = laws.measure(PLAN, planted(PLAN, exponents=(2.0, 1.5)), resamples=60)
    assert found.least["reflected"].slope.exponent == pytest.approx(1.5, abs=0.1)
    for words in ("risk", "conditioning"):
        assert f"order r, by {words}: UNDECIDED" in report.verdict(found)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.9, 1.2), "HOLDS"),
        ((0.5, 0.8), "HOLDS"),
        ((1.0, 1.9), "HOLDS"),
        ((0.9, 2.0), "UNDECIDED"),
        ((1.1, 1.9), "UNDECIDED"),
        ((1.1, 2.0), "BREAKS"),
        ((2.2, 2.6), "BREAKS"),
        (None, "UNDECIDED"),
    ],
)
def test_the_rule_of_the_conjecture(interval, verdict):
    slope = Slope(None if interval is None else sum(interval) / 2, interval, (), (), 1, 0, 0.0)
    assert laws.holds(SampledLaw((), (), (), slope, (), ())) == verdict


def test_exponents_of_the_closed_forms_stand_beside_the_measured_ones():
    """Conditioning: through the M1 at which the predicted spectrum of the task itself stands at the threshold. Risk: the planted form."""
    found = laws.predicted_exponents(Reflected(r_least=(6, 8, 10)))
    tasks, least = Reflected(r_least=(6, 8, 10)).least_cells(), []
    for task in tasks:
        spectrum = partial(retrained_spectrum, make_link("cubic", task["r"]), 0.0, 32, 16 * 32**2, task["L"] // 2 * task["J"])
        least.append(next(m for m in range(4 * task["r"], 20 * task["r"]) if criteria(spectrum(float(m)))["reflected"] <= 10.0))
    assert found["conditioning"]["reflected"] == pytest.approx(slope(np.array([6.0, 8.0, 10.0]), np.array(least, float)), abs=0.05)
    assert found["risk"] == {name: pytest.approx(1.2) for name in laws.SETS}
    graded = laws.predicted_exponents(Reflected(link="graded", links=("graded",)))
    assert graded["conditioning"] == {"plain": None, "reflected": None}
    words = report.verdict(laws.measure(PLAN, planted(PLAN), resamples=10))
    assert "closed forms at these sizes, risk (quadratic target, population limit): plain 1.2, reflected 1.2" in words


def test_levels_out_of_reach_are_censored_and_still_reported():
    found = laws.measure(PLAN, planted(PLAN, exponents=(4.0, 1.0)), resamples=40)
    assert found.least["plain"].slope.censored == 3
    assert all(math.isinf(y) for y in found.gain.y)
    text = report.report(PLAN, found, Facts(1, 0, 1, "numpy"))
    assert "plain - (3 censored)" in text
    assert json.loads(report.summary(found, Facts(1, 0, 1, "numpy")))["least"]["plain"]["M1"] == [None] * 3
    files = report.figure_files(PLAN, found)
    assert {name.split(".")[1] for name in files} == {"png", "pdf", "csv"}
    assert files["least.csv"].splitlines()[1].startswith("4.0,,")


def test_failed_trials_leave_the_pair_and_too_few_are_named():
    rows = planted(PLAN)
    place = [row for row in rows["pair"] if all(row[k] == v for k, v in PLAN.cell(PLAN.r).items())]
    place[0]["failed"] = "test risk is inf"
    found = laws.measure(PLAN, rows, resamples=10)
    assert {len(pair.draws) for pair in found.pairs} == {PLAN.seeds, PLAN.seeds - 1}
    for row in place[:-1]:
        row["failed"] = "test risk is inf"
    with pytest.raises(RunError, match=r"cubic, r = 4, L = 128.*sound, first: test risk is inf"):
        laws.measure(PLAN, rows, resamples=10)


def test_the_conjecture_breaks_where_order_r_points_stay_far_from_the_teacher():
    """Reflected risk noise / 4 r x gain at M1 = 4 r over a teacher's 0.1: near it or not by the gain alone; the plain one 2.5/r of it."""

    def gain(task: dict[str, Any], m: int) -> float:
        return 0.4 * task["r"] * (3.0 if task["noise"] else 1.0)

    found = laws.measure(PLAN, planted(PLAN, gain=gain), resamples=10)
    at = laws.places(found.pairs)
    assert len(at) == len(found.pairs)
    for place, pair in zip(at, found.pairs, strict=True):
        assert place.m1 == 4 * pair.task["r"]
        assert place.interval[0] < place.factor < place.interval[1]
        assert place.factor == pytest.approx(3.0 if pair.task["noise"] else 1.0, rel=0.25)
        assert place.verdict == ("BREAKS" if pair.task["noise"] else "HOLDS")
    words = report.verdict(found)
    assert "reflected set at M1 = 4 r" in words
    assert "above in 1, undecided in 0" in words
    assert f"breaks at {laws.label(PLAN.cell(PLAN.r, noise=0.5))}, M1 = 16" in words
    for place, pair in zip(laws.places(found.pairs, "plain"), found.pairs, strict=True):
        assert place.factor == pytest.approx(2.5 / pair.task["r"], rel=0.25)
    content = json.loads(report.summary(found, Facts(1, 0, 1, "numpy")))["conjecture"]
    assert [p["verdict"] for p in content["places"]["reflected"]].count("BREAKS") == 1


# The program.


def test_the_program_leaves_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    measure = laws.measure
    monkeypatch.setattr(laws, "measure", lambda config, rows: measure(config, rows, resamples=30))
    preset = tmp_path / "tiny.toml"
    preset.write_text(toml_text(dataclasses.asdict(TINY)))
    out = tmp_path / "run"
    main(["reflected", "--preset", str(preset), "--workers", "1", "--out", str(out)])
    text, content = (out / "report.md").read_text(), json.loads((out / "summary.json").read_text())
    count = sum(len(sweep.configs) for sweep in sweeps(TINY, "numpy"))
    assert (content["trials"], content["failed"]) == (count, 0)
    for cell in TINY.cells():
        assert laws.label(cell) in text
    for entry in content["expectations"]:
        assert entry["text"] in text
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
    assert {path.name for path in (out / "figures").iterdir()} == {
        *(f"{name}.{kind}" for name in ("ratio", "least", "conditioning") for kind in ("png", "pdf")),
        "pairs.csv",
        "least.csv",
    }
    assert "exponent in r of the least M1 by risk" in capsys.readouterr().out
