"""`python -m sims reflected`: plain against reflected distilled sets at equal stored floats."""

from sims.command import Facts, Program, Rows
from sims.lab.report import terminal_table
from sims.lab.run import RunFolder
from sims.reflected import laws, report
from sims.reflected.experiment import Reflected, sweeps


def finish(folder: RunFolder, config: Reflected, rows: Rows, facts: Facts) -> None:
    """Pairs, least M1, expectations; writes the report and prints what was expected beside what came."""
    found = laws.measure(config, rows)
    folder.write("summary.json", report.summary(found, facts))
    for name, content in report.figure_files(config, found).items():
        folder.write(f"figures/{name}", content)
    folder.write("report.md", report.report(config, found, facts))
    terminal_table("plain against reflected distilled sets", report.HEADERS, report.expectation_rows(found))
    print(report.verdict(found), end="")


ABOUT = "Compare plain distilled sets with reflected ones at equal stored floats, over links, r, L, J, N, noise and matching rules."
PROGRAM = Program("reflected", Reflected, ABOUT, "quick", sweeps, finish)
