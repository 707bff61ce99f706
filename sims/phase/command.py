"""`python -m sims phase`: median risk over two planes of sizes."""

from sims.command import Facts, Program, Rows
from sims.lab.run import RunFolder
from sims.phase import report
from sims.phase.experiment import Phase, sweeps


def finish(folder: RunFolder, config: Phase, rows: Rows, facts: Facts) -> None:
    """Medians over seeds; writes the report, prints the table of points."""
    found = report.measure(config, rows)
    folder.write("summary.json", report.summary(config, found, facts))
    for name, content in report.figure_files(config, found).items():
        folder.write(f"figures/{name}", content)
    text = report.report(config, found, facts)
    folder.write("report.md", text)
    print(report.title(config))


ABOUT = "Draw phase diagrams: median risk over (M1/r^2, N/d^2) and over (M2/L, M1/r^2)."
PROGRAM = Program("phase", Phase, ABOUT, "quick", sweeps, finish)
