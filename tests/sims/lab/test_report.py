"""How numbers and tables are written."""

import io

import pytest
from rich.console import Console

from sims.lab.laws import Slope, judge
from sims.lab.report import LAW_HEADERS, law_row, markdown_table, number, terminal_table, with_interval


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (2, "2"),
        (2.0, "2"),
        (0.01234, "0.0123"),
        (1.0249, "1.02"),
        (999.7, "1000"),
        (12345.6, "12346"),
        (-0.5, "-0.5"),
        (3e12, "3e+12"),
    ],
)
def test_numbers(value: float | None, words: str) -> None:
    assert number(value) == words


def test_intervals() -> None:
    assert with_interval(1.0249, (0.93, 1.1149)) == "1.02 [0.93, 1.11]"
    assert with_interval(1.0249, None) == "1.02"
    assert with_interval(None, None) == "-"


def test_law_rows_in_both_tables() -> None:
    passed = judge(Slope(1.0, (0.9, 1.1), (), (), 5, 1, 0.0), predicted=1.02, asymptotic=1.0, rivals=(0.0, 2.0))
    unfit = judge(Slope(None, None, (), (), 5, 3, 0.0), predicted=2.0)
    bounded = judge(Slope(1.6, (1.2, 2.0), (), (), 3, 0, 0.0), bound=2.3)
    rows = [law_row("M1 d | d", passed), law_row("[risk]", unfit), law_row("r", bounded)]
    assert markdown_table(LAW_HEADERS, rows).splitlines()[2:] == [
        "| M1 d \\| d | 1.00 [0.90, 1.10] | 1.02 | 1 | 0, 2 | 5 | 1 | PASS |",
        "| [risk] | - | 2 | - | - | 5 | 3 | NO FIT |",
        "| r | 1.60 [1.20, 2.00] (upper end < 2.3) | - | - | - | 3 | 0 | PASS |",
    ]
    out = io.StringIO()
    terminal_table("laws", LAW_HEADERS, rows, Console(file=out, width=140))
    shown = out.getvalue()
    assert "1.00 [0.90, 1.10]" in shown
    assert "[risk]" in shown
    assert "NO FIT" in shown
