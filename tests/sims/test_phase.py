"""Phase diagrams: medians at their places, the theory's lines, the program."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sims.__main__ import main
from sims.command import PRESETS, Facts
from sims.lab.files import RunError, toml_text
from sims.phase import report
from sims.phase.command import PROGRAM
from sims.phase.experiment import Phase, sweeps
from tests.sims.programs import preset_config, refuses
from theory import predictions
from theory.multi_index import make_link

TINY = Phase(
    d=8,
    r=2,
    L=12,
    diversity=2.0,
    samples=(2.0, 16.0),
    m1_per_r2=(0.5, 2.0),
    m2_per_L=(0.5, 2.0),
    seeds=2,
    head_samples=200,
    validation=60,
    test=60,
)


def planted(config: Phase, risk: Any) -> dict[str, list[dict[str, Any]]]:
    """Rows whose risks are risk(N/d^2, M1, M2 or None), seed k times (1, 2, 0.5, 1, ..)."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for sweep in sweeps(config, "numpy"):
        rows[sweep.kind] = []
        for task in sweep.configs:
            factor = (1.0, 2.0, 0.5)[task["draw"] % 3]
            real = [factor * risk(task["samples"], m1, None) for m1 in task["m1"]]
            fresh = [factor * risk(task["samples"], m1, m2) for m1 in task["m1"] for m2 in task["m2"]]
            rows[sweep.kind].append({"failed": None, "teacher": 0.1 * factor, "real": real, "fresh": fresh} | task)
    return rows


def test_medians_stand_at_their_places():
    config = dataclasses.replace(Phase(), seeds=3)
    found = report.measure(config, planted(config, lambda n, m1, m2: 1.0 / (n * m1 * (m2 or 1))))
    assert found.points == pytest.approx(1 / np.outer(config.samples, config.m1))
    assert found.labels == pytest.approx(1 / (config.samples[-1] * np.outer(config.m1, config.m2)))
    assert found.teacher == pytest.approx([0.1] * len(config.samples))
    files = report.figure_files(config, found)
    lines = files["labels.csv"].splitlines()
    assert lines[0] == "M1,M2,risk"
    assert [float(v) for v in lines[1].split(",")] == pytest.approx([config.m1[0], config.m2[0], found.labels[0, 0]])
    assert len(files["points.csv"].splitlines()) == 1 + found.points.size


def test_failed_trials_are_left_out_and_a_place_without_any_is_named():
    config = dataclasses.replace(Phase(), seeds=2)
    rows = planted(config, lambda n, m1, m2: 0.5)
    rows["points"][0]["failed"] = "test risk is inf"
    assert report.measure(config, rows).points[0, 0] == 1.0, "the other seed's"
    rows["points"][1]["failed"] = "test risk is inf"
    with pytest.raises(RunError, match=r"all 2 trials at N/d\^2 = 0.5 failed"):
        report.measure(config, rows)


def test_lines_are_the_theory_s():
    config = Phase()
    link = make_link(config.link, config.r)
    assert report.damian_threshold(config) == pytest.approx(np.linalg.norm(np.linalg.inv(link.hessian), 2) ** 2)
    n, k = round(report.half_off(config) * config.d**2), config.task(1.0).J * config.L // 2
    assert predictions.distilled_points(link, 0.0, config.d, n, k).ratio == pytest.approx(1, abs=0.05)
    lost = dataclasses.replace(config, link="odd")
    assert math.isinf(report.damian_threshold(lost))
    assert report.half_off(lost) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"samples": (4.0,)}, "samples=[4.0]"),
        ({"m1_per_r2": (2.0, 1.0)}, "m1_per_r2=[2.0, 1.0]"),
        ({"m2_per_L": (0.0, 1.0)}, "m2_per_L=[0.0, 1.0]"),
        ({"seeds": 0}, "seeds=0"),
        ({"level": 1.5}, "level=1.5"),
        ({"samples": (0.01, 4.0)}, "N=10"),
    ],
)
def test_bad_settings_are_refused_in_one_line(wrong, words):
    refuses(Phase(), wrong, words)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "phase").glob("*.toml")))
def test_every_preset_is_a_valid_diagram(preset):
    config = preset_config(PROGRAM, preset)
    assert (config == Phase()) == (preset == "quick")
    assert config.m1[0] <= config.r < config.r**2 < config.m1[-1]


def test_the_program_leaves_its_report(tmp_path: Path):
    preset, out = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(toml_text(dataclasses.asdict(TINY)))
    main(["phase", "--preset", str(preset), "--workers", "1", "--out", str(out)])
    content, text = json.loads((out / "summary.json").read_text()), (out / "report.md").read_text()
    assert (content["trials"], content["failed"]) == (4, 0)
    assert np.shape(content["points"]) == (2, 2)
    assert np.shape(content["labels"]) == (2, 2)
    assert "| N/d^2 \\ M1 | teacher | 2 | 8 |" in text
    assert {path.name for path in (out / "figures").iterdir()} == {"phase.png", "phase.pdf", "points.csv", "labels.csv"}
    rebuilt = report.report(TINY, report.measure(TINY, planted(TINY, lambda n, m1, m2: 0.3)), Facts(4, 0, 1, "numpy"))
    assert "kappa^2 r, stated by Damian et al." in rebuilt
