"""The pages of docs name tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted({found for page in (ROOT / "docs").glob("*.md") for found in re.findall(r"`(tests/\S+\.py)::(\w+)`", page.read_text())})


@pytest.mark.parametrize(("page", "letter", "count"), [("at-bptt", "T", 20), ("trajectory-matching", "P", 14)])
def test_every_property_names_a_test(page: str, letter: str, count: int):
    rows = re.findall(rf"^\| {letter}(\d+) \|.*\|.*`tests/.*\|$", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, count + 1))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str):
    assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE)
