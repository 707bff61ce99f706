"""What the documentation shows is run: Python blocks, example files, and the words of every command."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from sims.lab.options import parse_words

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


def blocks() -> list[tuple[str, str]]:
    """(where, code) of every Python block of the pages."""
    found = []
    for page in PAGES:
        for match in re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            line = page.read_text()[: match.start()].count("\n") + 1
            found.append((f"{page.name}:{line}", match[1]))
    return found


@pytest.mark.parametrize(("place", "code"), blocks(), ids=[place for place, _ in blocks()])
def test_python_blocks_run(place: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A last line `# SomeError: text` says what the block ends in."""
    monkeypatch.chdir(tmp_path)
    told = re.fullmatch(r"# (\w+Error): (.*)", code.rstrip().splitlines()[-1])
    if told is None:
        exec(compile(code, place, "exec"), {"__name__": "example"})
        return
    with pytest.raises(Exception, match=re.escape(told[2])) as caught:
        exec(compile(code, place, "exec"), {"__name__": "example"})
    assert caught.type.__name__ == told[1]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_examples_run_and_stand_on_a_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(path.read_text(), str(path), "exec"), {"__name__": path.stem})
    assert any(f"examples/{path.name}" in page.read_text() for page in PAGES)


def test_parts_of_other_files_are_found():
    """Sphinx includes parts of README between texts that must be there, in this order and once."""
    for page in PAGES:
        for name, options in re.findall(r"^```\{include\} (\S+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            included = (page.parent / name).read_text()
            marks = re.findall(r':(?:start-after|end-before): "(.*)"', options)
            assert [included.count(mark) for mark in marks] == [1] * len(marks), (page.name, marks)
            places = [included.index(mark) for mark in marks]
            assert places == sorted(places)


class Parsed(Exception):
    """The command line was understood."""


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """(program, words) of every command on the pages, options in brackets taken, without comments and placeholders `..`.

    Also after torchrun, over several lines, and where a second command stands beside the first without its program.
    """
    found = set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", "")
        whole = re.findall(r"-m (sims|realdata(?:\.parts)?|proofs_check)((?: [^`\n|#]*)?)", text)
        for program, words in whole + re.findall(r"`python -m (\w+) [^`\n]*`, `([a-z]+ [^`\n]*)`", text):
            split = tuple(word for word in shlex.split(re.sub(r"[\[\]()]", " ", words)) if word != "..")
            found.add((program, split))
    return sorted(command for command in found if command[1] or command[0] == "proofs_check")


def test_commands_of_every_form_are_found():
    found = {words for program, words in commands() if program == "realdata"}
    assert any(words[0] == "import" for words in found)
    assert any(words[-2:] == ("--out", "/scratch/rat") for words in found), "torchrun, over two lines"
    assert any(words[0] == "plan" and "mnist" in words for words in found)
    assert ("realdata.parts", ("join", "parts", "--out", "data/cifar10")) in commands()


@pytest.mark.parametrize(("program", "words"), commands(), ids=[" ".join((program, *words)) for program, words in commands()])
def test_commands_are_understood(program: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    if {"cupy", "cupy-native"} & set(words) and not pytest.importorskip("cupy", exc_type=ImportError).is_available():
        pytest.skip("no CUDA device for CuPy")
    module = importlib.import_module(program if "." in program else f"{program}.__main__")

    def stop(*arguments):
        parse_words(*arguments)
        raise Parsed

    monkeypatch.setattr(module, "parse_words", stop)
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(Parsed):
        module.main()
