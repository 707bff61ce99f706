"""A lemma in a file of its own: the example of the documentation, and what a bad file is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from proofs_check import registry
from proofs_check.runner import Profile, check
from sims.lab.files import RunError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "own_lemma.py"


def test_the_documented_example_is_the_file():
    assert f"```python\n{EXAMPLE.read_text()}```" in (ROOT / "docs" / "lemmas.md").read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_the_example_holds_and_its_assumptions_are_needed():
    lemmas, files = registry.with_files({}, [EXAMPLE])
    assert files == {"relu-homogeneous": EXAMPLE}
    lemma = lemmas["relu-homogeneous"]
    outcome = check(lemma, Profile("fast", 0.5), seed=2)
    assert outcome.passed, outcome.failures
    assert [control.verdict for control in outcome.controls] == ["needed", "needed"]
    assert lemma.number is None


def test_it_is_checked_by_the_program(tmp_path):
    command = [sys.executable, "-m", "proofs_check", "--with", str(EXAMPLE), "--only", "relu-homogeneous", "--json", "report.json"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| relu-homogeneous | derived here | 1/1 |" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["lemmas"][0]["name"] == "relu-homogeneous"


def test_a_counterexample_of_an_own_lemma_says_where_the_lemma_is(tmp_path):
    """A slip in the file: the counterexample names it, is refused with what to add, and runs with that."""
    file = tmp_path / "slip.py"
    file.write_text(EXAMPLE.read_text().replace("b if bias else c * b", "b"))

    def call(*arguments):
        command = [sys.executable, "-m", "proofs_check", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)

    assert call("--with", "slip.py", "--only", "relu-homogeneous", "--out", "out").returncode == 1
    found = tmp_path / "out" / "relu-homogeneous.json"
    assert json.loads(found.read_text())["file"] == str(file)
    alone = call("--replay", found)
    assert (alone.returncode, alone.stdout) == (2, "")
    assert alone.stderr == f"error: lemma 'relu-homogeneous' is declared in {file}: add --with {file}\n"
    together = call("--replay", found, "--with", file)
    assert together.returncode == 1
    assert "identical" in together.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "takes Python files"),
        ("x = 1", "declares no LEMMA"),
        ("import sys; sys.exit()", "own.py: SystemExit"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("from proofs_check.lemmas.common_mode import LEMMA", "two modules declare a lemma 'common-mode'"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, content, words):
    path = tmp_path / "own.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=words) as caught:
        registry.with_files(registry.known(), [path])
    assert "\n" not in str(caught.value)
