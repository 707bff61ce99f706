"""The report page of a run: every statement typeset, with its source, assumptions, checks and verdict.

report.md     Markdown, formulas as LaTeX between dollar signs
report.html   the same in one file that needs nothing else: formulas as SVG drawn by Matplotlib's mathtext
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.mathtext import math_to_image

from proofs_check.lemma import Lemma, Outcome
from proofs_check.show import HEADERS, row
from sims.lab.files import atomic_write, make_folder
from sims.lab.report import Cell, markdown_table, number

STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;line-height:1.4}table{border-collapse:collapse;font-size:90%}"
    "td,th{border:1px solid #bbb;padding:.2em .5em;text-align:left}svg{max-width:100%;height:auto}.FAIL{color:#b00;font-weight:bold}"
)
MATHTEXT = (
    (r"\\(mathbb|mathbf)\s+(\w)", r"\\\1{\2}"),
    (r"\\[td]frac", r"\\frac"),
    (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
    (r"\\frac(\w)(?=\{)", r"\\frac{\1}"),
    (r"\\frac(\w)(\\\w+)", r"\\frac{\1}{\2}"),
    (r"\\(ge|le)(?![a-zA-Z])", r"\\\1q "),
    (r"\\iff", r"\\Leftrightarrow"),
    (r"\\[bB]ig[lr]", ""),
    (r"\\sqrt(\d)", r"\\sqrt{\1}"),
    (r"\\textstyle", ""),
)
"""LaTeX that mathtext spells in another way."""


def write_page(folder: Path, lemmas: Sequence[Lemma], outcomes: Sequence[Outcome], title: str) -> tuple[Path, Path]:
    """Writes report.md and report.html into the folder; atomically."""
    make_folder(folder)
    paths = folder / "report.md", folder / "report.html"
    atomic_write(paths[0], markdown(lemmas, outcomes, title))
    atomic_write(paths[1], page(lemmas, outcomes, title))
    return paths


def _table(lemmas: Sequence[Lemma], outcomes: Sequence[Outcome]) -> list[list[Cell]]:
    return [row(lemma, outcome) for lemma, outcome in zip(lemmas, outcomes, strict=True)]


def markdown(lemmas: Sequence[Lemma], outcomes: Sequence[Outcome], title: str) -> str:
    """The whole page."""
    parts = [f"# Lemmas and assumptions\n\n{title}\n\n{markdown_table(HEADERS, _table(lemmas, outcomes))}"]
    for lemma, outcome in zip(lemmas, outcomes, strict=True):
        parts.append(f"## {_heading(lemma)}\n\n$${lemma.latex}$$\n\n" + "\n".join(_notes(lemma, outcome)))
    return "\n\n".join(parts) + "\n"


def _heading(lemma: Lemma) -> str:
    return lemma.name if lemma.number is None or lemma.number >= 100 else f"{lemma.number}. {lemma.name}"


def _notes(lemma: Lemma, outcome: Outcome) -> Iterator[str]:
    verdict = "holds" if outcome.passed else "FAILS"
    yield f"{lemma.plain}\n"
    yield f"- {lemma.source.sentence}"
    verdicts = {control.assumption: f"{control.verdict} ({control.instead})" for control in outcome.controls}
    for name, text in lemma.assumptions.items():
        yield f"- assumption {name}: {text}; {verdicts.get(name, 'no control')}"
    proved = sum(proof.holds for proof in outcome.symbolic)
    worst = outcome.search.worst
    margin = "-" if worst is None or worst.margin is None else number(worst.margin)
    yield f"- {proved} of {len(outcome.symbolic)} identities exact; {outcome.search.examples} instances, worst margin {margin}: {verdict}"
    for reason in outcome.failures:
        yield f"- FAILS: {' '.join(reason.split())}"
    if lemma.code:
        yield f"- guards {', '.join(f'`{name}`' for name in lemma.code)}"
    if lemma.also:
        yield f"- one more oracle: {', '.join(f'`{name}`' for name in lemma.also)}"


def page(lemmas: Sequence[Lemma], outcomes: Sequence[Outcome], title: str) -> str:
    """The same as one HTML file."""
    cells = [[str(cell) if cell is not None else "-" for cell in line] for line in _table(lemmas, outcomes)]
    lines = ["".join(f"<td class='{html.escape(cell)}'>{html.escape(cell)}</td>" for cell in line) for line in cells]
    header = "".join(f"<th>{html.escape(name)}</th>" for name in HEADERS)
    body = [f"<h1>Lemmas and assumptions</h1><p>{html.escape(title)}</p><table><tr>{header}</tr>"]
    body += [f"<tr>{line}</tr>" for line in lines] + ["</table>"]
    for lemma, outcome in zip(lemmas, outcomes, strict=True):
        first, *notes = _notes(lemma, outcome)
        body.append(f"<h2>{_heading(lemma)}</h2>{formula(lemma.latex)}<p>{html.escape(first.strip())}</p><ul>")
        body += [f"<li>{html.escape(note.removeprefix('- ').replace('`', ''))}</li>" for note in notes] + ["</ul>"]
    head = f"<meta charset='utf-8'><title>Lemmas</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'>{head}<body>{''.join(body)}</body></html>\n"


def formula(latex: str) -> str:
    """The formula as SVG; as its LaTeX source where mathtext does not know a word of it (a user's own lemma)."""
    spelled = latex
    for pattern, instead in MATHTEXT:
        spelled = re.sub(pattern, instead, spelled)
    drawn = io.StringIO()
    try:
        math_to_image(f"${spelled}$", drawn, dpi=100, format="svg")
    except ValueError:
        return f"<p><code>{html.escape(latex)}</code></p>"
    return "<p>" + drawn.getvalue()[drawn.getvalue().index("<svg") :] + "</p>"
