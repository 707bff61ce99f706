"""`python -m sims unroll`: the practical distillation algorithms on the two-layer student."""

from sims.command import Facts, Program, Rows
from sims.lab.report import LAW_HEADERS, terminal_table
from sims.lab.run import RunFolder
from sims.unroll import laws, report
from sims.unroll.experiment import Unroll, sweeps


def finish(folder: RunFolder, config: Unroll, rows: Rows, facts: Facts) -> None:
    """Fits what exponents there are, writes the report and prints the table of methods."""
    found = laws.measure(config, rows["unroll"])
    detail = report.collect(config, rows["unroll"])
    folder.write("summary.json", report.summary(config, rows["unroll"], detail, found, facts))
    for name, content in report.figure_files(config, rows["unroll"], detail, found).items():
        folder.write(f"figures/{name}", content)
    folder.write("report.md", report.report(config, rows["unroll"], detail, found, facts))
    terminal_table(report.title(config), report.ENCODED_HEADERS, report.encoded_rows(detail))
    if found:
        terminal_table("floats* over d and r", LAW_HEADERS, report.law_rows(found))


ABOUT = "Run the practical distillation algorithms on the two-layer student: what each encodes of S*, its meta-gradient, its floats."
PROGRAM = Program("unroll", Unroll, ABOUT, "quick", sweeps, finish, Unroll.settings)
