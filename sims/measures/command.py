"""`python -m sims measure`: every prediction measured, one row a measure."""

from sims.command import Facts, Program, Rows
from sims.lab.report import terminal_table
from sims.lab.run import RunFolder
from sims.measures import report
from sims.measures.catalogue import ELSEWHERE
from sims.measures.experiment import Measures, results, sweeps


def finish(folder: RunFolder, config: Measures, rows: Rows, facts: Facts) -> None:
    """Evaluates every cell, writes the report and prints the table."""
    found = results(config, rows)
    folder.write("summary.json", report.summary(found, facts))
    for name, content in report.figure_files(found).items():
        folder.write(f"figures/{name}", content)
    folder.write("report.md", report.report(config, found, facts))
    terminal_table(f"measurements against the theory, {config.grid} grid", report.HEADERS, report.table(found))
    for name, text in ELSEWHERE.items():
        print(f"{name}: {text}")


PROGRAM = Program(
    "measure",
    Measures,
    "Measure every prediction of the theory (Q1 to Q19) and say where it holds.",
    "quick",
    sweeps,
    finish,
    device=False,
)
