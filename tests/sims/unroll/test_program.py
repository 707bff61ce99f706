"""The experiment: cells, planted exponents, verdicts, and the program from its words to its report."""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from sims.__main__ import main
from sims.command import PRESETS
from sims.lab import sweep as lab_sweep
from sims.lab.files import toml_text
from sims.lab.options import options, preset_options
from sims.unroll import flatness, laws, report
from sims.unroll.experiment import Unroll
from sims.unroll.experts import QUALITIES
from sims.unroll.laws import CRITERIA, reaches
from sims.unroll.methods import METHODS
from sims.unroll.recipe import Recipe

LAW = Unroll(method=("bptt", "one-step", "subset"), d=(8, 16, 32), r=(2, 3, 4), M1=(1, 2, 3, 4, 6, 9, 14, 24, 40), seeds=4)


def planted(config: Unroll, least: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows whose every criterion is level * least(d, r) / M1: floats* is known exactly, one factor a draw."""
    rows = []
    for row in config.configs("numpy"):
        factor = (0.9, 0.97, 1.03, 1.1)[row["draw"]]
        values = {
            name: laws.level(config, key) * least[row["method"]](row["d"], row["r"]) * factor / row["M1"] for key, name in CRITERIA.items()
        }
        rows.append({"failed": None} | row | values)
    return rows


@pytest.fixture(scope="module")
def found():
    rows = planted(LAW, {"bptt": lambda d, r: 2.2 * r, "one-step": lambda d, r: 1.1 * r * r, "subset": lambda d, r: d * d})
    return rows, laws.measure(LAW, rows, resamples=200)


def test_cells_are_every_d_at_the_first_r_and_every_r_at_the_middle_d():
    assert LAW.cells() == [(8, 2), (16, 2), (32, 2), (16, 3), (16, 4)]
    assert Unroll(d=(6, 8), r=(2, 3)).cells() == [(6, 2), (8, 2), (8, 3)]
    configs = LAW.configs("numpy")
    assert len(configs) == 5 * 9 * 3 * 4
    assert len({json.dumps(config, sort_keys=True) for config in configs}) == len(configs)
    assert {config["task_J"] for config in configs if config["d"] == 16 and config["r"] == 4} == {8}


def test_planted_exponents_are_found(found):
    fits = {(law.method, law.criterion, law.axis): law.fit for law in found[1]}
    assert len(fits) == 3 * 3 * 2
    for criterion in CRITERIA:
        for method, exponent in (("bptt", 1.0), ("one-step", 2.0)):
            lo, hi = fits[method, criterion, "r"].interval
            assert lo <= exponent <= hi
            assert hi - lo < 0.5
            assert fits[method, criterion, "d"].verdict == "PASS"
        assert fits["subset", criterion, "d"].verdict == "NO FIT"


def test_floats_count_labels_where_they_are_learned(found):
    series = {(law.method, law.axis): law.found for law in found[1] if law.criterion == "head"}
    stars = {method: np.array(series[method, "d"].y) / np.array(series[method, "d"].x) for method in ("bptt", "one-step")}
    np.testing.assert_allclose(stars["bptt"] / stars["bptt"][0], [1.0, 17 / 18, 33 / 36], rtol=1e-9)
    np.testing.assert_allclose(stars["one-step"], stars["one-step"][0], rtol=1e-9)
    constant = dataclasses.replace(LAW, recipe=dataclasses.replace(LAW.recipe, learn_labels=False))
    assert [laws.point_floats(constant, method, 8) for method in LAW.method] == [8, 8, 9]


def test_verdicts_in_words(found):
    assert reaches(found[1], "bptt", "head") == "d: linear, r: below r^2"
    assert reaches(found[1], "one-step", "head") in ("d: linear, r: r^2", "d: linear, r: undecided")
    assert reaches(found[1], "subset", "head") == "d: no fit, r: no fit"
    assert reaches([], "bptt", "head") == "not asked"
    least = {"bptt": lambda d, r: 0.2 * r**3.5, "one-step": lambda d, r: 0.2 * d, "subset": lambda d, r: 40.0 / d}
    steep = laws.measure(LAW, planted(LAW, least), 60)
    assert reaches(steep, "bptt", "head") == "d: linear, r: steeper"
    assert reaches(steep, "one-step", "head").startswith("d: steeper, ")
    assert reaches(steep, "subset", "head").startswith("d: flatter, ")


def test_a_failed_trial_reaches_no_level(found):
    rows = [dict(row) for row in found[0]]
    for row in rows:
        if row["method"] == "bptt" and row["d"] == 8 and row["M1"] >= 6:
            row.update({"failed": "diverged"})
            for name in CRITERIA.values():
                del row[name]
    stack = laws.curves(LAW, rows, "head", method="bptt", d=8, r=2)
    assert stack.shape == (4, 9)
    assert np.all(np.isinf(stack[:, 4:]))
    series = next(law.found for law in laws.measure(LAW, rows, 40) if (law.method, law.criterion, law.axis) == ("bptt", "head", "d"))
    assert series.y[0] == math.inf
    assert "> grid" in report.least_rows(LAW, rows)[0]


def test_one_task_has_no_exponents():
    one = dataclasses.replace(LAW, d=(8,), r=(2,))
    assert laws.measure(one, []) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": ("bptt", "frepo")}, "unknown method 'frepo'"),
        ({"method": ()}, "at least one value"),
        ({"d": (16, 8)}, r"increasing and >= 1: d=\[16, 8\]"),
        ({"r": (2, 2)}, "none twice"),
        ({"r": (2, 3, 17)}, "r=17 > d=16"),
        ({"M1": (0, 2)}, r"M1=\[0, 2\]"),
        ({"M1": (2, 2000)}, "M1=2000 points needs as many real samples: N=1024 at d=8"),
        ({"seeds": 0}, "seeds=0"),
        ({"level_head": 0.0}, "level_head=0.0"),
        ({"L": 7}, "even width: L=7"),
        ({"method": ("at-bptt",), "recipe": Recipe(measurements=2)}, "late stage would not begin before the last measurement: total=2"),
    ],
)
def test_bad_settings_are_refused_in_one_line_that_names_the_value(wrong, words):
    with pytest.raises(ValueError, match=words) as caught:
        dataclasses.replace(LAW, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "unroll").glob("*.toml")))
def test_every_preset_is_a_valid_experiment_that_stores_and_returns(preset: str):
    config = tyro.cli(Unroll, args=preset_options(PRESETS / "unroll", preset))
    assert tyro.cli(Unroll, args=options(tomllib.loads(toml_text(config.settings())))) == config
    assert config.seeds >= 5
    assert config.seed != Unroll().seed, "levels were fixed on other draws"


# The program.

WORDS = ["--preset", "quick", "--method", "at-bptt", "mtt", "ftd", "subset", "--d", "6", "--r", "1", "2", "3", "--M1", "2", "5"]
WORDS += [f"--{name}={value}" for name, value in {"L": 8, "T": 4, "W": 2, "spread": 1, "states": 2, "K": 3, "seeds": 2}.items()]
WORDS += [f"--{name}={value}" for name, value in {"experts": 1, "epochs": 3, "starts": 2, "span": 2, "rho": 0.02, "batch": 8}.items()]
WORDS += ["--networks=1", "--probes=1", "--checkpoints=2", "--head-samples=200", "--validation=100", "--test=100"]


def command(out: Path, *more: str) -> list[str]:
    return ["unroll", *WORDS, "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unroll") / "run"
    main(command(out))
    return out


def contents(out: Path) -> dict[Path, bytes]:
    """Every file of a run but its starts and the working time."""
    found = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name not in ("env.json", "summary.json")}
    summary = json.loads((out / "summary.json").read_text())
    summary.pop("seconds")
    return found | {out / "summary.json": json.dumps(summary).encode()}


def test_a_run_leaves_what_it_promises(finished: Path):
    content = json.loads((finished / "summary.json").read_text())
    assert set(content["detail"]) == {"at-bptt", "mtt", "ftd", "subset"}
    assert set(content["fit"]) == {f"{m}.{c}.r" for m in content["detail"] for c in CRITERIA}
    assert all(fit["verdict"] in ("PASS", "FAIL", "UNDECIDED", "REPORTED", "NO FIT") for fit in content["fit"].values())
    assert content["trials"] == 3 * 2 * 4 * 2
    assert len(content["detail"]["subset"]["risk_erased"]) == 2
    text = (finished / "report.md").read_text()
    assert {x["name"] for x in content["flatness"]["ratios"]} == {*QUALITIES, *flatness.MEASURES}
    for line in (*laws.EXPECTED, *flatness.EXPECTED, "Stages of at-bptt", *(f"| {method} | " for method in content["detail"])):
        assert line in text
    assert {path.name for path in (finished / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("encode", "unroll", "flatness", "floats", "law-r") for kind in ("png", "pdf", "csv")
    }


def test_the_same_command_again_runs_no_trial(finished: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(finished)

    def never(*_: Any) -> None:
        raise AssertionError("a trial ran")

    monkeypatch.setattr(lab_sweep, "attempt", never)
    monkeypatch.setattr(report, "figure_files", lambda *_: {})  # drawn once: the slowest part
    main(command(finished))
    assert contents(finished) == before


def test_bad_words_end_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for more, words in (
        (("--method", "frepo"), "unknown method 'frepo'"),
        (("--outer", "lion"), "unknown outer 'lion'"),
        (("--W", "9"), "W=9"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(command(tmp_path / "run", *more))
        lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("unroll:")]
        assert caught.value.code == 2
        assert len(lines) == 1, lines
        assert words in lines[0]
    assert not (tmp_path / "run").exists()


def test_methods_are_data():
    assert {"bptt", "t-bptt", "rat-bptt", "dc", "dd", "progressive", "one-step", "subset"} <= set(METHODS)
    assert all(method.about for method in METHODS.values())
