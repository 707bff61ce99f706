"""`python -m sims measure`: a table, a report, figures and cells; resumed, rebuilt and refused as every program is."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from sims.__main__ import main
from sims.command import PRESETS
from sims.lab import sweep as lab_sweep
from sims.lab.options import preset_options
from sims.measures.catalogue import CONTROLS, MEASURES
from sims.measures.measure import Outcome, Result
from sims.measures.report import control_table, curves, draw, place, varying
from tests.sims.measures.test_measure import GAUSS

WORDS = ("measure", "--only", "Q16,Q7.neurons", "--effort", "0.1", "--seed", "3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("measure") / "run"
    main([*WORDS, "--out", str(out)])
    return out


def test_a_run_leaves_table_report_figures_and_every_cell(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["measures"].keys() == {"Q16", "Q7.neurons"}
    assert summary["failed"] == 0
    report = (finished / "report.md").read_text()
    for name, found in summary["measures"].items():
        assert found["within"] <= found["cells"]
        assert f"## {name}: {found['title']}" in report
        assert f"verdict {found['verdict']}" in report
        assert (finished / "figures" / f"{name}.png").stat().st_size > 5000
        assert (finished / "figures" / f"{name}.pdf").exists()
    assert "derived here" in report
    assert "`python -m sims scaling`" in report
    with (finished / "figures" / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == sum(found["cells"] for found in summary["measures"].values())
    first = cells[0]
    excess = max(0.0, abs(float(first["measured"]) - float(first["predicted"])) - float(first["allowance"]))
    assert excess / float(first["error"]) == pytest.approx(float(first["z"]))


def test_a_finished_run_is_read_not_run_again(finished, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    monkeypatch.setattr(lab_sweep, "attempt", lambda fn, config: pytest.fail("a stored trial ran again"))
    main([*WORDS, "--out", str(copy)])
    assert "Q7.neurons" in capsys.readouterr().out
    main(["report", str(copy)])
    found = [json.loads((folder / "summary.json").read_text())["measures"] for folder in (copy, finished)]
    assert found[0] == found[1]
    assert (copy / "figures" / "cells.csv").read_text() == (finished / "figures" / "cells.csv").read_text()


def test_wrong_words_are_refused_in_one_line(tmp_path, capfd):
    for words, line in (
        (("--only", "Q20"), "unknown measure 'Q20'"),
        (("--only", "Q11"), "Q11 is a sweep of its own"),
        (("--effort", "-1"), "effort=-1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["measure", *words, "--out", str(tmp_path / "none")])
        assert stopped.value.code == 2
        assert line in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "none").exists()


def test_both_presets_are_options():
    folder = PRESETS / "measure"
    assert sorted(path.stem for path in folder.glob("*.toml")) == ["grid", "quick"]
    assert preset_options(folder, "grid") == ["--grid", "full"]


def outcome(**where) -> Outcome:
    return Outcome(where, 1.0, 1.1, 0.05, 0.0, 2.0, 10, 0)


def test_every_negative_control_is_listed_with_its_verdict():
    known = {measure.name: measure for measure in MEASURES}
    named = [name for names in CONTROLS.values() for name in names]
    assert set(named) <= set(known)
    assert {name for name in known if name.startswith("Q19") and "noise" not in name and "ill" not in name} <= set(named)
    results = [Result(known[name], (outcome(d=4), outcome(d=8))) for name in named]
    rows = control_table(results)
    assert [row[1] for row in rows] == named
    assert {row[0] for row in rows} == set(CONTROLS)
    for row in rows:
        promised = known[row[1]].precision  # the planted standard error is 0.05 of the prediction
        assert row[-2:] == ["2 of 2", "PASS" if promised is None or promised >= 0.05 else "COARSE"]
    assert control_table(results[:1]) == rows[:1], "a run of one measure lists that one"


def test_a_figure_has_one_curve_a_setting_in_the_order_of_the_axis():
    result = Result(GAUSS, tuple(outcome(mean=m, d=d, same=1, grid=[1, m]) for d in (8, 4) for m in (2.0, 1.0)))
    assert varying(result) == ["mean", "d"]
    assert {label: [c.where["mean"] for c in cells] for label, cells in curves(result).items()} == {"d=8": [1.0, 2.0], "d=4": [1.0, 2.0]}
    assert place(result, result.cells[0]) == "mean = 2.0, d = 8"
    tied = Result(GAUSS, tuple(outcome(mean=m, d=d, M1=int(m * d)) for d in (8, 4) for m in (2.0, 1.0)))
    assert list(curves(tied)) == ["d=8", "d=4"], "M1 follows from d and the axis"
    (axis,) = draw(result).axes
    assert len(axis.containers) == 2
    assert place(Result(GAUSS, (outcome(mean=1.0),)), outcome(mean=1.0)) == "the only cell"
