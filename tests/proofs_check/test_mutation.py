"""The mutation test itself: what is altered, who owns it, and that wrong code is caught while the tree stays as it is."""

import ast
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proofs_check import mutation
from proofs_check.equivalent import EQUIVALENT
from proofs_check.mutants import functions, mutants, source
from proofs_check.mutation import MODULES, Fate, Options, fate, guarded, in_fork, owners, report
from sims.lab.files import RunError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''"""Documentation 1 + 1 stays."""
WIDTH = 3


def f(x: "1 + 1", p: int = 2) -> float:
    """Returns 7."""
    if not x < 1:
        raise ValueError(f"x={x - 1}")
    return -x**p / 4.0 + y[0]
'''


@pytest.fixture
def altered(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    return [(one.function, one.after) for one in mutants("m", path)]


def test_every_sign_constant_exponent_index_and_comparison_is_altered(altered):
    inside = [after for function, after in altered if function == "m.f"]
    for line in (
        "def f(x: '1 + 1', p: int=3) -> float:",
        "if x < 1:",
        "if not x <= 1:",
        "if not x >= 1:",
        "if not x < 2:",
        "return -x ** p / 4.0 - y[0]",
        "return x ** p / 4.0 + y[0]",
        "return -x ** p * 4.0 + y[0]",
        "return -(x * p) / 4.0 + y[0]",
        "return -x ** p / 5.0 + y[0]",
        "return -x ** p / -4.0 + y[0]",
        "return -x ** p / 8.0 + y[0]",
        "return -x ** p / 4.0 + y[1]",
    ):
        assert line in inside, line
    assert ("m", "WIDTH = 4") in altered
    assert len(set(altered)) == len(altered)


def test_words_annotations_and_errors_stay(altered):
    text = "\n".join(after for _, after in altered)
    assert "raise" not in text
    assert "x: '1 - 1'" not in text
    assert "Documentation" not in text


def test_sources_differ_from_the_module_in_one_place(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    for one in mutants("m", path):
        text = source(one, path).splitlines()
        compile("\n".join(text), "m", "exec")
        changed = [line for line, old in zip(text, ast.unparse(ast.parse(SOURCE)).splitlines(), strict=True) if line != old]
        assert [line.strip() for line in changed] == [one.after]
        assert one.before != one.after
        assert one.title.startswith(f"{one.function}:{one.line}: ")
    assert functions("m", path) == ("m", "m.f")


def test_every_function_has_an_owner():
    names = [name for module in MODULES if mutation._path(module).is_file() for name in functions(module, mutation._path(module))]
    table = owners(names, guarded())
    assert set(table) == set(names)
    assert len(names) > 60


def test_a_function_without_an_owner_is_named():
    code = {"one": ("m.f",), "two": ("m.g.h", "m.f")}
    assert owners(["m.f", "m.f.inner", "m.g.h"], code) == {"m.f": ("one", "two"), "m.f.inner": ("one", "two"), "m.g.h": ("two",)}
    assert owners(["m.g.h"], {"wide": ("m",), "narrow": ("m.g.h",)}) == {"m.g.h": ("narrow", "wide")}
    with pytest.raises(RunError, match=r"no lemma owns m.g, m.ff:"):
        owners(["m.f", "m.g", "m.ff"], code)


def test_equivalent_changes_are_still_changes_of_the_code():
    present = {
        (one.function, one.after)
        for module in MODULES
        if mutation._path(module).is_file()
        for one in mutants(module, mutation._path(module))
    }
    assert set(EQUIVALENT) <= present, "an entry whose code is gone"


def test_a_fork_ends_with_a_result_an_error_or_its_time():
    assert in_fork(lambda: 6 * 7, 30.0).result() == (True, 42)
    assert in_fork(lambda: [][1], 30.0).result() == (False, "IndexError: list index out of range")
    assert in_fork(lambda: os._exit(3), 30.0).result() == (False, "the process died")
    began = time.monotonic()
    assert in_fork(lambda: time.sleep(60), 0.3).result() == (False, "no end within the time limit")
    assert time.monotonic() - began < 30


def test_fates_and_the_verdict(tmp_path, monkeypatch):
    path = tmp_path / "m.py"
    path.write_text("def f(x):\n    return x + 1\n")
    first, *_ = mutants("m", path)
    assert fate(first, True, "lemma: property: margin -3").caught
    assert fate(first, False, "no end within the time limit").caught
    assert fate(first, True, None) == Fate(first.title, False, "not noticed by its owners")
    monkeypatch.setitem(EQUIVALENT, (first.function, first.after), "the same")
    assert fate(first, True, None).how == "equivalent: the same"

    found = [Fate("a", True, "x")] * 19 + [Fate("b", False, "not noticed by its owners"), Fate("c", False, "equivalent: the same")]
    text, enough = report(found, 300, Options())
    assert enough
    assert "19 of 20 mutants caught (95.0 %), 1 more change nothing; drawn from 300 with seed 0." in text
    assert "| b | not noticed by its owners |" in text
    assert not report(found[1:], 300, Options())[1]


def digest():
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "theory").rglob("*.py")))).hexdigest()


def call(tmp_path, *arguments):
    command = [sys.executable, "-m", "proofs_check.mutation", *arguments, "--processes", "1", "--out", str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_a_closed_form_altered_anywhere_is_caught(tmp_path):
    before = digest()
    done = call(tmp_path, "--only", "theory.predictions.retrained_noise", "--count", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(100.0 %), 0 more change nothing" in done.stdout
    text = (tmp_path / "mutation.md").read_text()
    assert text.count("retrained-rows: property") >= 4
    assert digest() == before


def test_a_bad_name_is_one_clear_line(tmp_path):
    done = call(tmp_path, "--only", "theory.gone")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nothing to alter in theory.gone; modules: theory.predictions, ")
