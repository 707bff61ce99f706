"""`python -m proofs_check`: exit codes, what it prints, the report and the counterexample files."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st
from rich.console import Console

from proofs_check import __main__ as program
from proofs_check import registry
from proofs_check.lemma import Control, Lemma, Source
from proofs_check.page import formula

ROOT = Path(__file__).resolve().parents[2]
KNOWN = registry.known()


def toy(name, margin, source):
    return Lemma(
        name=name,
        latex="x < 37",
        plain="x is small",
        source=source,
        assumptions={"low": "nothing is added", "idle": "nothing at all"},
        instances={"x": st.integers(0, 30), "y": st.floats(0, 1)},
        margin=margin,
        controls=(Control("low", "a lift", {"lift": st.just(90.0)}), Control("idle", "nothing", {})),
        examples=20,
        also=("tests/a.py::b",),
    )


TRUE = toy("small-enough", lambda rng, x, y, lift=0.0: 37 - x - lift, Source("stated", "a textbook"))
FALSE = toy("too-small", lambda rng, x, y, lift=0.0: 12 - x - y / 3 - lift, Source("derived", "badly"))


@pytest.fixture
def lemmas(monkeypatch):
    found = {lemma.name: lemma for lemma in (TRUE, FALSE)}
    monkeypatch.setattr(registry, "known", lambda: dict(found))
    return found


@pytest.fixture
def call(lemmas, monkeypatch, tmp_path, capfd):
    """Runs main with the arguments in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["proofs_check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            program.main()
        captured = capfd.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_a_lemma_that_holds_exits_zero(call):
    status, out, _ = call("--only", "small-enough")
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith("| small-enough"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["small-enough", "stated: a textbook", "-"]
    assert cells[5] == "1/2 needed"
    assert cells[7] == "PASS"
    assert 10 <= int(cells[3]) <= 20
    assert "idle is not needed" in out
    assert "1 of 1 lemmas hold" in out
    assert "\x1b" not in out


def test_a_lemma_that_fails_exits_one_and_leaves_its_counterexample(call, tmp_path):
    status, out, _ = call()
    assert status == 1
    assert "1 of 2 lemmas hold" in out
    assert "too-small: FAIL: property: margin" in out
    stored = json.loads((tmp_path / "results/proofs_check/too-small.json").read_text())
    assert stored["lemma"] == "too-small"
    assert stored["instance"] == {"x": 12, "y": 0.0}
    assert stored["margin"] == 0.0
    assert not (tmp_path / "results/proofs_check/small-enough.json").exists()


def test_what_an_earlier_run_found_goes_when_the_lemma_holds(call, tmp_path, monkeypatch):
    found = tmp_path / "results/proofs_check/too-small.json"
    call("--only", "too-small")
    assert found.exists()
    monkeypatch.setattr(registry, "known", lambda: {"too-small": toy("too-small", TRUE.margin, FALSE.source)})
    status, out, _ = call("--only", "too-small")
    assert status == 0
    assert f"too-small: removed an earlier run's {found.relative_to(tmp_path)}" in out
    assert not found.exists()


@pytest.mark.parametrize("content", ["{}", {"schema": 1, "lemma": "other", "instance": {}, "margin": None, "error": "x"}])
def test_a_file_that_is_no_counterexample_of_the_lemma_stays(call, tmp_path, content):
    (tmp_path / "here").mkdir()
    mine = write(tmp_path / "here" / "small-enough.json", content)
    status, out, _ = call("--only", "small-enough", "--out", "here")
    assert status == 0
    assert "removed" not in out
    assert mine.exists()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--only", "too-small", "small-enough"], {"too-small", "small-enough"}),
        (["--only", "too-small", "--only", "small-enough"], {"too-small", "small-enough"}),
        (["--only", "too-small"], {"too-small"}),
        ([], {"too-small", "small-enough"}),
    ],
)
def test_only_takes_names_together_and_one_by_one(call, tmp_path, words, names):
    call(*words, "--json", "report.json")
    assert {one["name"] for one in json.loads((tmp_path / "report.json").read_text())["lemmas"]} == names


def test_replay_gives_the_stored_margin_bit_by_bit(call, tmp_path, lemmas, monkeypatch):
    file = tmp_path / "found.json"
    instance = {"x": 12, "y": 1 / 3}
    margin = FALSE.margin(None, **instance)
    file.write_text(json.dumps({"schema": 1, "lemma": "too-small", "instance": instance, "margin": margin, "error": None}))
    status, out, _ = call("--replay", file)
    assert status == 1
    assert f"margin now {margin!r}, stored {margin!r}: identical" in out
    mended = toy("too-small", TRUE.margin, FALSE.source)
    monkeypatch.setattr(registry, "known", lambda: {"too-small": mended})
    status, out, _ = call("--replay", file)
    assert status == 0
    assert "holds" in out
    assert "different" in out


def test_what_a_failing_run_writes_can_be_replayed(call, tmp_path):
    call("--only", "too-small", "--seed", 3, "--out", tmp_path / "here")
    status, out, _ = call("--replay", tmp_path / "here" / "too-small.json")
    assert status == 1
    assert "identical" in out


def test_the_report(call, tmp_path):
    status, _, _ = call("--json", tmp_path / "deep" / "report.json", "--seed", 4)
    assert status == 1
    report = json.loads((tmp_path / "deep" / "report.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert (report["schema"], report["profile"], report["seed"], report["passed"]) == (1, "ci", 4, False)
    assert report["environment"]["versions"]["hypothesis"]
    good, bad = report["lemmas"]
    fields = "number name latex plain source assumptions code also passed failures symbolic property controls seconds"
    assert set(good) == set(bad) == set(fields.split())
    assert good["source"] == {"kind": "stated", "where": "a textbook"}
    assert (good["passed"], bad["passed"]) == (True, False)
    assert good["property"]["counterexample"] is None
    assert good["property"]["worst"]["margin"] >= 7
    assert bad["property"]["counterexample"]["instance"]["x"] == 12
    assert [control["verdict"] for control in good["controls"]] == ["needed", "not needed"]
    for control in good["controls"]:
        assert set(control) == {"assumption", "instead", "verdict", "examples", "failed", "worst", "error"}
    assert bad["failures"]
    assert math.isfinite(good["seconds"])


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


FILE = {"schema": 1, "lemma": "too-small", "instance": {"x": 1, "y": 0.0}, "margin": 1.0, "error": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ([1], "no counterexample file"),
        (FILE | {"schema": 99}, "schema 1"),
        ({k: v for k, v in FILE.items() if k != "instance"}, "'instance'"),
        (FILE | {"margin": "big"}, "'margin'"),
        (FILE | {"lemma": "gone"}, "unknown lemma 'gone'; known: small-enough, too-small"),
        (FILE | {"instance": {"x": math.nan, "y": 0.0}}, "must be plain finite JSON values"),
        (FILE | {"instance": {"z": 1}}, "does not fit lemma too-small"),
    ],
)
def test_a_bad_file_is_one_clear_line(call, tmp_path, content, words):
    status, out, err = call("--replay", write(tmp_path / "file.json", content))
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "nothing"], "unknown lemma 'nothing'; known: small-enough, too-small"),
        (["--seed", "-1"], "seed=-1"),
        (["--replay", "missing.json"], "cannot read missing.json"),
        (["--replay", "missing.json", "--only", "too-small"], "nothing but --with: leave out --only"),
        (["--replay", "missing.json", "--seed", "3", "--out", "x", "--profile", "deep"], "leave out --profile, --seed, --out"),
        (["--only"], "name at least one"),
        (["--with"], "name at least one"),
    ],
)
def test_bad_options_are_one_clear_line(call, arguments, words):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_report_that_cannot_be_written_is_one_clear_line(call, tmp_path):
    """Before the checks, not after them."""
    write(tmp_path / "file", "")
    (tmp_path / "folder").mkdir()
    for option, place in (("--json", tmp_path / "file" / "report.json"), ("--json", tmp_path / "folder"), ("--out", tmp_path / "file")):
        status, out, err = call("--only", "small-enough", option, place)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith("error: ")
        assert len(err.splitlines()) == 1


def test_a_terminal_gets_a_drawn_table(lemmas, tmp_path):
    stream = io.StringIO()
    status = program.run(program.Options(only=(("small-enough",),), out=tmp_path), Console(file=stream, force_terminal=True, width=140))
    assert status == 0
    assert "┃" in stream.getvalue()
    assert "\x1b[32mPASS" in stream.getvalue()


def test_the_page_typesets_every_statement(call, tmp_path):
    call("--out", "here")
    text, drawn = ((tmp_path / "here" / f"report.{kind}").read_text() for kind in ("md", "html"))
    for lemma in (TRUE, FALSE):
        assert f"## {lemma.name}\n\n$${lemma.latex}$$\n\n{lemma.plain}" in text
        assert lemma.plain in drawn
    assert "assumption idle: nothing at all; not needed (nothing)" in text
    assert "- stated in the paper (a textbook)\n" in text
    assert "- derived here (badly)\n" in text
    assert "- one more oracle: `tests/a.py::b`" in text
    assert "one more oracle: tests/a.py::b" in drawn
    assert "FAILS: property: margin" in text
    assert drawn.count("<svg") == 2
    assert "src=" not in drawn.replace("xlink", "")


def test_the_real_statements_can_be_drawn():
    for one in KNOWN.values():
        assert formula(one.latex).startswith("<p><svg"), one.name
    assert formula(r"\nosuchword{x}") == r"<p><code>\nosuchword{x}</code></p>"


def test_a_module_without_a_lemma_is_named(tmp_path, monkeypatch):
    (tmp_path / "forgotten_one.py").write_text("")
    monkeypatch.setattr("proofs_check.lemmas.__path__", [str(tmp_path)])
    with pytest.raises(TypeError, match="forgotten_one declares no LEMMA"):
        registry.known()


def test_the_program_itself_twice(tmp_path):
    reports = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "proofs_check", "--only", "matching-gradient", "--seed", "3", "--json", name]
        done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^\| matching-gradient \| derived here \| 8/8 \| \d+ \| .* \| 3/3 needed \| .* \| PASS \|$", done.stdout, re.M)
        report = json.loads((tmp_path / name).read_text())
        report["lemmas"][0].pop("seconds")
        reports.append(report["lemmas"])
    assert reports[0] == reports[1]
    assert {entry.name for entry in tmp_path.iterdir()} == {"first", "second", "results"}
