"""Tables for reports (Markdown) and terminals (rich), and one way of writing a number: 1.02 [0.93, 1.11].

A cell that is None reads "-": censored, not measured, or not asked.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sims.lab.laws import Interval, LawFit

STYLES = {"PASS": "green", "FAIL": "bold red", "NO FIT": "yellow", "UNDECIDED": "yellow", "REPORTED": "dim"}
LAW_HEADERS = ("law", "exponent [95 %]", "predicted", "asymptotic", "excludes", "n", "censored", "verdict")

Cell = str | int | float | None


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant ones, whole parts unrounded: 0.0123, 1.02, 12345."""
    if value is None:
        return "-"
    whole = float(value).is_integer() or abs(value) >= 10**digits - 0.5
    return f"{value:.0f}" if whole and abs(value) < 1e9 else f"{value:.{digits}g}"


def with_interval(value: float | None, interval: Interval | None, decimals: int = 2) -> str:
    """1.02 [0.93, 1.11]."""
    if value is None:
        return "-"
    if interval is None:
        return f"{value:.{decimals}f}"
    return f"{value:.{decimals}f} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"


def law_row(name: str, fit: LawFit) -> list[Cell]:
    """The row of one law under LAW_HEADERS."""
    below = "" if fit.bound is None else f" (upper end < {number(fit.bound)})"
    excludes = ", ".join(number(rival) for rival in fit.excludes) or None
    exponent = with_interval(fit.exponent, fit.interval) + below
    return [name, exponent, fit.predicted, fit.asymptotic, excludes, fit.n, fit.censored, fit.verdict]


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table ending in a newline; the bar is escaped."""
    lines = [list(headers), ["---"] * len(headers), *([_text(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def terminal_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[Cell]], console: Console | None = None) -> None:
    """The same table on the terminal (stdout), verdicts coloured; as Markdown where the output is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.file.write(f"{title}\n\n{markdown_table(headers, rows)}\n")
        return
    table = Table(title=escape(title))
    for header in headers:
        table.add_column(escape(header))
    for row in rows:
        table.add_row(*(_styled(_text(cell)) for cell in row))
    console.print(table)


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else number(cell)


def _styled(text: str) -> str:
    return f"[{STYLES[text]}]{text}[/]" if text in STYLES else escape(text)
