"""The pages of docs name tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted({found for page in (ROOT / "docs").glob("*.md") for found in re.findall(r"`(tests/\S+\.py)::(\w+)`", page.read_text())})


def test_every_property_of_at_bptt_names_a_test():
    rows = re.findall(r"^\| T(\d+) \|.*\|.*`tests/.*\|$", (ROOT / "docs" / "at-bptt.md").read_text(), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 21))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str):
    assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE)
