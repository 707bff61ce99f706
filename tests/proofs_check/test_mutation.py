"""The mutation test itself: what is altered, who owns it, and that wrong code is caught while the tree stays as it is."""

import ast
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proofs_check import mutation
from proofs_check.mutants import functions, mutants, source
from proofs_check.mutation import (
    CAUGHT,
    LEAST_SECONDS,
    LIMIT,
    MODULES,
    Fate,
    Options,
    fate,
    fates,
    guarded,
    in_fork,
    limit,
    owners,
    report,
    timed,
)
from proofs_check.survivors import EQUIVALENT, KNOWN
from sims.lab.files import RunError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''"""Documentation 1 + 1 stays."""
WIDTH = 3


def f(x: "1 + 1", p: int = 2, *, q: int = 5) -> float:
    """Returns 7."""
    if x > 6:
        x = 9
    if not x < 8:
        raise ValueError(f"x={x - 1}")
    return -x**p / 4.0 + y[0]


class C:
    n: int = 3

    def __post_init__(self) -> None:
        check(self.n - 2)

    def g(self) -> int:
        return self.n - 1
'''


@pytest.fixture
def altered(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    return [(one.function, one.after) for one in mutants("m", path)]


def test_every_sign_constant_exponent_index_and_comparison_is_altered(altered):
    inside = [after for function, after in altered if function == "m.f"]
    for line in (
        "if x >= 6:",
        "if x <= 6:",
        "if x > 7:",
        "x = 10",
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
    for line in ("def f", "if not x", "n: int", "check("):  # defaults and refusals are no closed forms
        assert line not in text, line
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
    assert functions("m", path) == ("m", "m.f", "m.C.g")


def test_every_function_has_an_owner():
    names = [name for module in MODULES for name in functions(module, mutation._path(module))]
    table = owners(names, guarded())
    assert set(table) == set(names)
    assert len(names) > 80


def test_a_function_without_an_owner_is_named():
    code = {"one": ("m.f",), "two": ("m.g.h", "m.f")}
    assert owners(["m.f", "m.f.inner", "m.g.h"], code) == {"m.f": ("one", "two"), "m.f.inner": ("one", "two"), "m.g.h": ("two",)}
    assert owners(["m.g.h"], {"wide": ("m",), "narrow": ("m.g.h",)}) == {"m.g.h": ("narrow", "wide")}
    with pytest.raises(RunError, match=r"no lemma owns m.g, m.ff:"):
        owners(["m.f", "m.g", "m.ff"], code)


def test_reasons_belong_to_changes_that_exist():
    present = {one.key for module in MODULES for one in mutants(module, mutation._path(module))}
    assert set(EQUIVALENT) | set(KNOWN) <= present, "a reason whose code is gone"
    assert not set(EQUIVALENT) & set(KNOWN)
    assert all((EQUIVALENT | KNOWN).values())


def test_a_fork_ends_with_a_result_an_error_its_death_or_its_time():
    assert in_fork(lambda: 6 * 7, 30.0).result() == ("done", 42)
    assert in_fork(lambda: [][1], 30.0).result() == ("raised", "IndexError: list index out of range")
    assert in_fork(lambda: os._exit(3), 30.0).result() == ("died", "exit code 3")
    began = time.monotonic()
    assert in_fork(lambda: time.sleep(60), 0.3).result() == ("timed out", "no verdict within 0 s")
    assert time.monotonic() - began < 30


def test_the_limit_follows_the_owners_own_time():
    assert limit(("a", "b"), {"a": 1.0, "b": 0.5, "c": 99.0}) == LEAST_SECONDS
    assert limit(("a", "b"), {"a": 10.0, "b": 4.0}) == LIMIT * 14.0
    assert set(timed(["retrained-rows"], 0)) == {"retrained-rows"}
    with pytest.raises(RunError, match="does not pass: KeyError"):
        timed(["gone"], 0)


@pytest.mark.parametrize(
    ("text", "kind", "end"),
    [
        ("def retrained_noise(r, m1):\n    return 2.0", "wrong number", "done"),
        ("def retrained_noise(r, m1):\n    return 1 / 0", "error", "done"),
        ("def retrained_noise(r, m1): return (", "SyntaxError", "raised"),
        ("1 / 0", "ZeroDivisionError", "raised"),
    ],
)
def test_an_error_counts_only_where_a_check_meets_it(text, kind, end):
    """The owner of theory.predictions.retrained_noise, the rest of the module as it is; in a process that has nothing of theory loaded."""
    program = f"""
import json
from proofs_check import mutation
from proofs_check.mutants import Mutant
plain = mutation._path("theory.predictions").read_text()
mutation.source = lambda *_: plain + "\\n" + {text!r}
mutant = Mutant("theory.predictions", "theory.predictions.retrained_noise", 1, "", "", 0)
print(json.dumps(mutation.in_fork(lambda: mutation.verdict(mutant, ["retrained-rows"], 0), 60.0).result()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, answer = json.loads(done.stdout)
    assert found == end
    assert answer[0] == kind if end == "done" else answer.startswith(kind)


@pytest.fixture
def first(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("def f(x):\n    return x + 1\n")
    return next(iter(mutants("m", path)))


def test_classes_are_kept_apart(first, monkeypatch):
    for kind in CAUGHT:
        assert fate(first, "done", (kind, "lemma: property")) == Fate(first.title, kind, "lemma: property")
    assert fate(first, "raised", "SyntaxError").kind == "died", "no check was reached"
    assert fate(first, "timed out", "no verdict within 20 s") == Fate(first.title, "timed out", "no verdict within 20 s")
    assert fate(first, "died", "exit code -9") == Fate(first.title, "died", "exit code -9")
    assert fate(first, "done", None) == Fate(first.title, "survived", "unexplained")
    monkeypatch.setitem(KNOWN, first.key, "a default")
    assert fate(first, "done", None) == Fate(first.title, "survived", "a default")
    monkeypatch.setitem(EQUIVALENT, first.key, "the same")
    assert fate(first, "done", None) == Fate(first.title, "equivalent", "the same")


def test_what_hangs_or_dies_is_no_catch(first, monkeypatch):
    monkeypatch.setattr(mutation, "LEAST_SECONDS", 0.5)
    for verdict, kind in ((lambda *_: time.sleep(60), "timed out"), (lambda *_: os._exit(1), "died")):
        monkeypatch.setattr(mutation, "verdict", verdict)
        assert [one.kind for one in fates([first], {"m.f": ("a",)}, {"a": 0.0}, Options())] == [kind]


def test_the_share_counts_only_what_a_check_refused():
    found = (
        [Fate("a", "wrong number", "x")] * 12
        + [Fate("a", "error", "x")] * 7
        + [Fate("b", "survived", "unexplained"), Fate("c", "equivalent", "the same")]
    )
    text, enough = report(found, 300, Options())
    assert enough
    assert "19 of 20 mutants caught (95.0 %), 12 by a wrong number and 7 by an error; 1 survived (1 unexplained)" in text
    assert "0 timed out, 0 died; 1 more are equivalent" in text
    assert "drawn from 300 with seed 0." in text
    assert "| b | survived | unexplained |" in text
    for kind in ("timed out", "died"):
        text, enough = report([*found, Fate("d", kind, "why")], 300, Options())
        assert not enough
        assert f"1 {kind}" in text
        assert f"| d | {kind} | why |" in text
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
    assert "(100.0 %), " in done.stdout
    text = (tmp_path / "mutation.md").read_text()
    assert text.count("retrained-rows: property") >= 4
    assert digest() == before


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(mutation, "fates", lambda *_: pytest.fail("the mutants were tested"))
    monkeypatch.setattr(sys, "argv", ["mutation", "--count", "1", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as stop:
        mutation.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bad_name_is_one_clear_line(tmp_path):
    done = call(tmp_path, "--only", "theory.gone")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nothing to alter in theory.gone; modules: theory.predictions, ")
