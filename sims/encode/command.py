"""`python -m sims encode`: one task in depth."""

from sims.command import Facts, Program, Rows
from sims.costs import encode_trial as encode_cost
from sims.encode import report
from sims.encode.experiment import Encode, encode_trial
from sims.lab.report import terminal_table
from sims.lab.run import RunFolder
from sims.lab.sweep import Sweep


def sweeps(config: Encode, backend: str) -> tuple[Sweep, ...]:
    """One trial a seed."""
    return (Sweep("encode", encode_trial, tuple(config.configs(backend)), encode_cost),)


def finish(folder: RunFolder, config: Encode, rows: Rows, facts: Facts) -> None:
    """Collects the seeds, writes the report and prints the table of representations."""
    result = report.measure(config, rows["encode"])
    folder.write("summary.json", report.summary(config, result, facts))
    for name, content in report.figure_files(result).items():
        folder.write(f"figures/{name}", content)
    folder.write("report.md", report.report(config, result))
    terminal_table(report.title(config), report.HEADERS, report.table(result))
    print(report.geometry_text(config, result), end="")


ABOUT = "Distil one task and look inside: principal angles, singular values, risk beside baselines at equal floats."
PROGRAM = Program("encode", Encode, ABOUT, "r2", sweeps, finish, Encode.settings)
