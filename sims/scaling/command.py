"""`python -m sims scaling`: the exponents of the distilled set's memory in d, L and r."""

from sims.command import Facts, Program, Rows
from sims.lab.report import LAW_HEADERS, terminal_table
from sims.lab.run import RunFolder
from sims.scaling import laws, plots, report
from sims.scaling.experiment import Scaling, sweeps


def finish(folder: RunFolder, config: Scaling, rows: Rows, facts: Facts) -> None:
    """Fits the laws, writes the report and prints the table of exponents."""
    found = laws.measure(config, rows)
    folder.write("summary.json", report.summary(found, facts))
    for name, content in plots.figure_files(config, found, rows).items():
        folder.write(f"figures/{name}", content)
    folder.write("report.md", report.report(config, found, rows, facts))
    terminal_table("memory of the distilled set against r^2 d + L", LAW_HEADERS, report.law_rows(found))
    for remark in found.remarks.values():
        print(remark)
    print("total floats = a r^2 d + b L + c\n" + report.additive_text(found), end="")


PROGRAM = Program("scaling", Scaling, "Measure the exponents of the distilled set's memory in d, L and r.", "demo", sweeps, finish)
