"""What the commands of `python -m sims` that sweep trials have in common: a program, its run, and its report rebuilt from what is stored.

A program is data: the configuration it takes, the trials that follow from it, and what it leaves for its reader. Everything else (run
folder, resuming, workers, progress, presets, `plan`, `report`) is written here once.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro.conf import arg

from sims.arrays import backend_name, runtime_words
from sims.assumptions_table import of_rows
from sims.lab.environment import cores
from sims.lab.options import options
from sims.lab.progress import progress
from sims.lab.run import RunError, RunFolder, stored_config
from sims.lab.store import Row
from sims.lab.sweep import Executor, Sweep, failures, run_sweeps
from sims.lab.workers import executor_for

PRESETS = Path(__file__).parent / "presets"

Rows = dict[str, list[Row]]
C = TypeVar("C")


@dataclass(frozen=True)
class Facts:
    """What every summary states of its run beside the results."""

    trials: int
    failed: int
    seconds: int
    backend: str


@dataclass(frozen=True)
class Program:
    """A command that sweeps trials.

    name      of the command; its presets lie in sims/presets/<name>, its results in results/<name> unless asked otherwise
    config    frozen dataclass of the settings, with a root `seed`
    about     one line for --help
    preset    where no other is asked for
    sweeps    (config, backend) -> every trial, by kind
    finish    (folder, config, rows by kind, facts): writes summary, tables, figures and report.md, prints the table
    settings  config -> the settings by the name of their options
    device    whether its trials can use a GPU; else they run on NumPy, and are recorded so
    """

    name: str
    config: type
    about: str
    preset: str
    sweeps: Callable[[Any, str], Sequence[Sweep]]
    finish: Callable[[RunFolder, Any, Rows, Facts], None]
    settings: Callable[[Any], dict[str, Any]] = asdict
    device: bool = True

    def arrays(self, asked: str) -> str:
        """The backend asked for; NumPy in place of auto where the trials use no device, which cannot be asked for there."""
        if self.device:
            return asked
        if asked not in ("auto", "numpy"):
            raise RunError(f"{self.name} runs on NumPy alone: leave out --backend {asked}")
        return "numpy"


@dataclass(frozen=True)
class Runtime:
    """Where the work is done; the results do not depend on it, the number of workers included."""

    backend: str = "auto"
    """Arrays: auto (CuPy where a device answers), numpy, cupy, or cupy-native (CuPy with samples drawn on the device: other ones)."""
    workers: int = 1
    """Local processes, one thread each: 1 is this one, 0 is one a processor core. More than one needs the cluster extra."""
    scheduler: str | None = None
    """Address tcp://host:port of a running Dask scheduler whose workers do the trials (cluster extra)."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"the number of workers must be >= 0: workers={self.workers}")
        if self.scheduler is not None and self.workers != 1:
            raise ValueError(f"local workers and a scheduler exclude each other: workers={self.workers}, scheduler={self.scheduler!r}")
        backend_name(self.backend)

    def executor(self) -> Executor:
        """What carries the trials out."""
        return executor_for(self.workers or cores(), self.scheduler)


@dataclass(frozen=True)
class Run(Generic[C]):
    """The words of one command line: settings, and where and how they are run."""

    config: Annotated[C, arg(name="")]
    out: Path | None = None
    """Run folder; by default results/ and the name of the command. Goes on where an interrupted run stopped."""
    preset: str | None = None
    """Settings to start from: a named preset (sims/presets/COMMAND) or a .toml file; options win."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


def execute(program: Program, command: Run[Any]) -> None:
    """Runs what the folder does not hold yet, and writes the results."""
    began, config, on = monotonic(), command.config, program.arrays(command.runtime.backend)
    backend = backend_name(on)
    settings = {"program": program.name, "backend": backend, program.name: program.settings(config)}
    out, executor = command.out or Path("results") / program.name, command.runtime.executor()
    with RunFolder.open(out, settings, backend=runtime_words(on), seed=config.seed) as folder:
        sweeps, before = program.sweeps(config, backend), _seconds_before(folder)
        with progress(sum(len(sweep.configs) for sweep in sweeps), program.name) as bar:
            rows = run_sweeps(folder.store, sweeps, bar, executor)
        _finish(program, folder, config, sweeps, rows, round(before + monotonic() - began), backend)


def rebuild(programs: Mapping[str, Program], path: Path) -> None:
    """Reads a run's configuration and stored trials, and writes its results again."""
    stored = stored_config(path)
    name, backend = str(stored.get("program")), stored.get("backend", "numpy")
    if name not in programs:
        raise RunError(f"{path} holds no run of this program (program={name!r})")
    program = programs[name]
    config = parse(program, stored[name], f"{path} holds settings that this version does not know: use the version that wrote it")
    with RunFolder.open(path, stored, record=False) as folder:
        sweeps = program.sweeps(config, backend)
        rows = {sweep.kind: _stored(folder, sweep) for sweep in sweeps}
        _finish(program, folder, config, sweeps, rows, _seconds_before(folder), backend)


def parse(program: Program, settings: Mapping[str, Any], otherwise: str) -> Any:
    """The program's configuration from settings by name; RunError with the line `otherwise` where they do not fit."""
    try:
        return tyro.cli(program.config, args=options(settings), console_outputs=False)
    except (SystemExit, ValueError, KeyError) as error:
        raise RunError(otherwise) from error


def _finish(program: Program, folder: RunFolder, config: Any, sweeps: Sequence[Sweep], rows: Rows, seconds: int, backend: str) -> None:
    counts = sum(map(len, rows.values())), sum(len(failures(group)) for group in rows.values())
    facts = Facts(*counts, seconds, backend)
    program.finish(folder, config, rows, facts)
    assumptions = of_rows(row for group in rows.values() for row in group)
    if assumptions.tasks:
        folder.write("assumptions.json", json.dumps(assumptions.plain(), indent=1) + "\n")
        folder.write("assumptions.md", assumptions.markdown())
        print(assumptions.line)
    print(f"{facts.trials} trials, {facts.failed} failed, {facts.seconds} s, {facts.backend}\nreport: {folder.path / 'report.md'}")


def _seconds_before(folder: RunFolder) -> int:
    """Working time that the folder's summary tells of, 0 where there is none yet."""
    try:
        return int(json.loads((folder.path / "summary.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError):
        return 0


def _stored(folder: RunFolder, sweep: Sweep) -> list[Row]:
    rows = [folder.store.get(sweep.kind, config) for config in sweep.configs]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise RunError(f"{folder.path} holds {len(found)} of {len(rows)} {sweep.kind} trials: finish the run first")
    return found
