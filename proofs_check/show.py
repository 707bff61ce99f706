"""What the program prints: one row a lemma, then the reasons of failures and the assumptions found unnecessary."""

from collections.abc import Iterator, Sequence

from rich.console import Console

from proofs_check.lemma import Example, Lemma, Outcome
from sims.lab.report import Cell, markdown_table, number, terminal_table

HEADERS = ("lemma", "source", "symbolic", "examples", "worst margin", "controls", "seconds", "verdict")


def row(lemma: Lemma, outcome: Outcome) -> list[Cell]:
    """The cells under HEADERS."""
    proved = sum(proof.holds for proof in outcome.symbolic)
    worst = outcome.search.worst
    return [
        lemma.name,
        str(lemma.source),
        f"{proved}/{len(outcome.symbolic)}" if outcome.symbolic else None,
        outcome.search.examples,
        None if worst is None else margin_text(worst),
        controls_text(outcome),
        f"{outcome.seconds:.1f}",
        "PASS" if outcome.passed else "FAIL",
    ]


def margin_text(example: Example) -> str:
    """The margin in three digits, or the word error."""
    return "error" if example.margin is None else number(example.margin)


def controls_text(outcome: Outcome) -> str:
    """How many of the dropped assumptions turned out to be needed: 2/3 needed."""
    return f"{sum(control.verdict == 'needed' for control in outcome.controls)}/{len(outcome.controls)} needed"


def remarks(outcome: Outcome) -> Iterator[str]:
    """One line for each reason of failure and for each assumption that can go."""
    for reason in outcome.failures:
        yield f"{outcome.lemma}: FAIL: {' '.join(reason.split())}"
    for control in outcome.controls:
        if control.verdict == "not needed":
            seen = control.search
            yield f"{outcome.lemma}: {control.assumption} is not needed ({control.instead}: {seen.failed} of {seen.examples} fail)"


def table(lemmas: Sequence[Lemma], outcomes: Sequence[Outcome], title: str, console: Console) -> None:
    """The table with its remarks; rich on a terminal, Markdown elsewhere."""
    rows = [row(lemma, outcome) for lemma, outcome in zip(lemmas, outcomes, strict=True)]
    if console.is_terminal:
        terminal_table(title, HEADERS, rows, console)
    else:
        console.file.write(f"{title}\n\n{markdown_table(HEADERS, rows)}\n")
    for outcome in outcomes:
        for line in remarks(outcome):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    held = sum(outcome.passed for outcome in outcomes)
    console.print(f"{held} of {len(outcomes)} lemmas hold", markup=False, highlight=False)


def replayed(lemma: Lemma, stored: Example, now: Example, console: Console) -> None:
    """What a replay gave, beside what the file says."""
    same = "identical" if (now.margin, now.error) == (stored.margin, stored.error) else "different"
    lines = [f"{lemma.name}: {'holds' if now.holds else 'fails'} at {now.instance}"]
    lines.append(f"margin now {now.margin!r}, stored {stored.margin!r}: {same}")
    if now.error is not None:
        lines.append(f"error: {' '.join(now.error.split())}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
