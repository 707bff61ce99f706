"""One task in depth: floats counted as the theory counts them, baselines at equal floats, what the points span, the program."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sims.__main__ import main
from sims.assumptions_table import of_rows
from sims.command import PRESETS
from sims.encode import report as encode_report
from sims.encode.command import PROGRAM
from sims.encode.experiment import Encode, encode_trial
from sims.lab.files import RunError
from sims.pipeline import Task, distil_points, encode, trial_seed
from tests.sims.programs import contents, no_trial, preset_config, refused, refuses
from theory import memory
from theory.assumptions import ASSUMPTIONS

TASK = Task(d=12, r=2, L=40, J=4, samples=32.0, head_samples=2000, validation=500, test=800)
CONFIG = Encode(TASK, M1=16, seeds=3)
BASELINES = ("random_subset", "k_means", "H_alone")


@pytest.fixture(scope="module")
def rows():
    """The rows of three seeds, as the store gives them."""
    return [{"failed": None} | config | dict(encode_trial(config)) for config in CONFIG.configs("numpy")]


@pytest.fixture(scope="module")
def result(rows):
    return encode_report.measure(CONFIG, rows)


def test_floats_are_the_theory_s_counts(result):
    floats, d, width, m1, m2 = result.floats, TASK.d, TASK.L, CONFIG.M1, CONFIG.M2
    assert m2 == 2 * width
    assert floats["distilled"] == floats["distilled_same_start"] == CONFIG.floats == memory.distilled(m1, d, m2).floats == m1 * d + m2
    assert floats["distilled_real_head"] == m1 * d + width
    assert floats["teacher"] == memory.weights(width, d).floats
    count = memory.raw_points_for(CONFIG.floats, d)
    assert floats["random_subset"] == floats["k_means"] == memory.raw_subset(count, d).floats
    assert floats["H_alone"] == TASK.r * d + m2
    assert floats["random_features"] == width


def test_baselines_take_no_more_floats_and_a_subset_no_fewer_than_fit(result):
    assert all(result.floats[name] <= result.floats["distilled"] for name in (*BASELINES, "random_features"))
    assert result.floats["random_subset"] + TASK.d + 1 > result.floats["distilled"]


def test_the_distilled_set_beats_what_knows_nothing_of_the_subspace(result):
    median = {name: float(np.median(risk)) for name, risk in result.risks.items()}
    assert median["distilled"] < 0.7 * min(median["random_subset"], median["k_means"], median["random_features"])
    assert max(median["teacher"], median["distilled_real_head"]) < 0.2
    assert encode_report.ratios(result)["teacher"] == 1.0
    assert encode_report.ratios(result)["distilled"] == pytest.approx(median["distilled"] / median["teacher"])


def test_geometry_is_that_of_the_points(rows):
    config = CONFIG.configs("numpy")[1]
    encoded = encode(TASK, trial_seed(config, TASK.d, TASK.r, TASK.L))
    x, index = distil_points(encoded, CONFIG.M1).astype(np.float64), encoded.model.B.astype(np.float64)
    off = np.sum((x - x @ index @ index.T) ** 2) / np.sum(x**2)
    assert rows[1]["off_energy"] == pytest.approx(off, rel=1e-4)
    values = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(rows[1]["singular_values"], values[: 4 * TASK.r], rtol=1e-6)
    basis = np.linalg.svd(x)[2][: TASK.r].T
    cosines = np.linalg.svd(index.T @ basis, compute_uv=False)
    np.testing.assert_allclose(np.cos(rows[1]["angles"]), np.sort(cosines)[::-1], atol=1e-6)
    assert rows[1]["singular_values"][TASK.r - 1] > 2 * rows[1]["singular_values"][TASK.r], "r directions stand out"


def test_a_trial_repeats_to_the_bit(rows):
    assert {"failed": None} | CONFIG.configs("numpy")[0] | dict(encode_trial(CONFIG.configs("numpy")[0])) == rows[0]


def test_every_trial_judges_the_assumptions_on_its_own_experiment(rows):
    """All 27 but the one of A10 and A10-raw that speaks of the other kind of run, and each seed has its own margins."""
    for row in rows:
        judged = {name for name in ASSUMPTIONS if row[f"margin_{name}"] is not None}
        assert judged == set(ASSUMPTIONS) - {"A10-raw"}
    for name in ("A1", "A9", "A16", "A20", "A22", "A25"):
        assert rows[0][f"margin_{name}"] != rows[1][f"margin_{name}"], name
    (made,) = of_rows(rows).tasks.values()
    assert {row.name: row.margin for row in made.rows}["A16"] == min(row["margin_A16"] for row in rows)


def test_a_run_outside_the_assumptions_says_so():
    """Too few samples as they are: no preprocessing (A12), fewer than d^3 of them (A10-raw), fewer than r^2 points, few directions."""
    task = dataclasses.replace(TASK, samples=4.0, head_samples=500, preprocessing="none")
    inside, outside = (
        of_rows([config | encode_trial(config)]).tasks
        for config in (
            Encode(dataclasses.replace(TASK, samples=64.0, J=16), M1=16, seeds=1).configs("numpy")[0],
            Encode(task, M1=3, m2_per_L=0.5, seeds=1).configs("numpy")[0],
        )
    )
    broken = [{row.name for row in made.rows if row.holds is False} for made in (*inside.values(), *outside.values())]
    assert broken[1] >= {"A10-raw", "A12", "A17-sufficient", "A18", "A21"}
    assert not broken[0] & {"A10", "A12", "A17", "A17-sufficient", "A18"}
    (line,) = (made.line for made in outside.values())
    assert "this run lies outside" in line
    assert "A12 preprocessed labels" in line


def test_reflection_changes_the_retrained_networks_only(rows):
    config = CONFIG.configs("numpy")[0] | {"reflected": True}
    other = encode_trial(config)
    for name in ("risk_teacher", "off_energy", "angles", "risk_random_subset", "risk_k_means", "risk_H_alone"):
        assert other[name] == rows[0][name], name
    for name in ("risk_distilled", "risk_distilled_same_start", "risk_distilled_real_head"):
        assert other[name] != rows[0][name], name


def test_empty_clusters_are_left_out_silently():
    """More centres than k-means can keep filled: warnings are errors here."""
    task = dataclasses.replace(TASK, d=2, r=1, L=10, head_samples=60, validation=50, test=50)
    assert np.isfinite(encode_trial(Encode(task, M1=50, seeds=1).configs("numpy")[0])["risk_k_means"])


def test_failed_seeds_are_left_out_and_counted(rows):
    failed = {"failed": "test risk is inf"} | CONFIG.configs("numpy")[2]
    result = encode_report.measure(CONFIG, [*rows[:2], failed])
    assert result.failed == 1
    assert all(len(risk) == 2 for risk in result.risks.values())
    assert "1 seeds failed and are left out" in encode_report.geometry_text(CONFIG, result)
    with pytest.raises(RunError, match="all 1 seeds failed, first: test risk is inf"):
        encode_report.measure(CONFIG, [failed])


def test_the_report_says_what_was_predicted_and_whether_it_held(result):
    text = encode_report.geometry_text(CONFIG, result)
    predicted, measured = (float(re.findall(pattern, text)[0]) for pattern in (r"predicted ([\d.]+) \(derived here\)", r"median ([\d.]+)"))
    assert 0.5 < measured / predicted < 2
    for within, verdict in ((1e-3, "FAIL"), (1e3, "PASS")):
        assert encode_report.geometry_text(dataclasses.replace(CONFIG, within=within), result).count(verdict) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"M1": 0}, "M1=0"),
        ({"m2_per_L": 0.0}, "m2_per_L=0.0"),
        ({"m2_per_L": float("nan")}, "m2_per_L=nan"),
        ({"seeds": 0}, "seeds=0"),
        ({"seed": -1}, "seed=-1"),
        ({"within": 0.0}, "within=0.0"),
        ({"M1": 1, "m2_per_L": 0.1}, "16 floats, at least 2 and at most head_samples=2000: 1 fit"),
        ({"M1": 4000}, "head_samples=2000"),
    ],
)
def test_bad_settings_are_refused_in_one_line_that_names_the_value(wrong, words):
    refuses(CONFIG, wrong, words)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "encode").glob("*.toml")))
def test_every_preset_is_a_valid_task_that_stores_and_returns(preset: str):
    config = preset_config(PROGRAM, preset)
    assert preset == f"r{config.task.r}"
    assert config.seeds >= 8


# The program.

WORDS = ["--d", "8", "--r", "2", "--L", "16", "--J", "2", "--samples", "16", "--M1", "6", "--seeds", "2"]
WORDS += ["--head-samples", "500", "--validation", "200", "--test", "200", "--workers", "1"]


def command(out: Path, *more: str) -> list[str]:
    return ["encode", *WORDS, "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encode") / "run"
    main(command(out))
    return out


def test_a_run_leaves_what_it_promises(finished: Path, capfd: pytest.CaptureFixture[str]):
    assert {"config.toml", "env.json", "trials", "summary.json", "report.md", "figures"} <= {path.name for path in finished.iterdir()}
    content = json.loads((finished / "summary.json").read_text())
    for name in encode_report.NAMES:
        assert len(content["risk"][name]) == 2
        assert content["floats"][name] > 0
    (margins,) = json.loads((finished / "assumptions.json").read_text()).values()
    assert sum(one["holds"] is not None for one in margins.values()) == len(ASSUMPTIONS) - 1
    report = (finished / "report.md").read_text()
    for label in encode_report.NAMES.values():
        assert f"| {label} |" in report
    figures = {path.name: path for path in (finished / "figures").iterdir()}
    assert {"encode.png", "encode.pdf", "encode.csv", "encode-angles_rad.csv", "encode-singular_values.csv"} == set(figures)
    lines = figures["encode.csv"].read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["representation", *encode_report.NAMES]
    assert len(figures["encode-angles_rad.csv"].read_text().splitlines()) == 3


def test_the_same_command_again_runs_no_trial(finished: Path, capfd: pytest.CaptureFixture[str]):
    before = contents(finished)
    with no_trial():
        main(command(finished))
    main(["report", str(finished)])
    assert contents(finished) == before
    out = capfd.readouterr().out
    assert out.count("| representation | floats |") == 2
    assert f"report: {finished / 'report.md'}" in out


def test_bad_input_ends_in_one_line(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "r=9 > d=8" in refused(command(tmp_path / "run", "--r", "9"), capfd)
    assert "even width: L=15" in refused(command(tmp_path / "run", "--L", "15"), capfd)
    assert "N=0" in refused(command(tmp_path / "run", "--samples", "0"), capfd)
    assert "unknown preset 'r9': choose one of r2, r3, r4" in refused(command(tmp_path / "run", "--preset", "r9"), capfd)
    assert not (tmp_path / "run").exists()
    assert "another configuration (encode.link = 'cubic' there, 'odd' asked)" in refused(command(finished, "--link", "odd"), capfd)
    shutil.copytree(finished, tmp_path / "copy")
    next((tmp_path / "copy" / "trials").glob("*.parquet")).unlink()
    assert "holds 1 of 2 encode trials: finish the run first" in refused(["report", str(tmp_path / "copy")], capfd)
