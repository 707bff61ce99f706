"""The program of the simulator: `python -m sims COMMAND`: one of PROGRAMS, plan, or report."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, subcommand

from sims.command import PRESETS, Program, Run, execute, rebuild
from sims.encode.command import PROGRAM as ENCODE
from sims.lab.options import parse_words, with_preset
from sims.lab.run import RunError, main_guard
from sims.measures.command import PROGRAM as MEASURE
from sims.phase.command import PROGRAM as PHASE
from sims.plan import Plan, show
from sims.reflected.command import PROGRAM as REFLECTED
from sims.scaling.command import PROGRAM as SCALING
from sims.unroll.command import PROGRAM as UNROLL

PROGRAMS: dict[str, Program] = {program.name: program for program in (SCALING, ENCODE, MEASURE, PHASE, REFLECTED, UNROLL)}


@dataclass(frozen=True)
class Report:
    """Rebuild tables, figures and report.md of finished runs from their stored trials."""

    folders: Positional[tuple[Path, ...]]
    """Run folders."""


def _command_type() -> Any:
    union: Any = Annotated[Plan, subcommand("plan")] | Annotated[Report, subcommand("report")]
    for program in reversed(PROGRAMS.values()):
        union = Annotated[Run[program.config], subcommand(program.name, description=program.about)] | union
    return union


@main_guard
def main(words: list[str] | None = None) -> None:
    """Runs the command in `words` (the command line by default)."""
    words = list(sys.argv[1:] if words is None else words)
    folders = {name: PRESETS / name for name in PROGRAMS}
    default = PROGRAMS[words[0]].preset if words and words[0] in PROGRAMS else None
    command = parse_words(_command_type(), with_preset(words, folders, default), "python -m sims")
    if isinstance(command, Report):
        if not command.folders:
            raise RunError("report needs at least one run folder: python -m sims report DIR ..")
        for folder in command.folders:
            rebuild(PROGRAMS, folder)
    elif isinstance(command, Plan):
        show(PROGRAMS, command)
    else:
        execute(next(program for program in PROGRAMS.values() if isinstance(command.config, program.config)), command)


if __name__ == "__main__":
    main()
