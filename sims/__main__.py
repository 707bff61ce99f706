"""The program of the simulator: `python -m sims scaling | encode | report`."""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg, subcommand

from sims import encode, encode_report, scaling_laws, scaling_report
from sims.arrays import backend_name, runtime_words
from sims.lab.options import options, with_preset
from sims.lab.progress import progress
from sims.lab.report import LAW_HEADERS, terminal_table
from sims.lab.run import RunError, RunFolder, main_guard, stored_config
from sims.lab.store import Row
from sims.lab.sweep import run_trials
from sims.lab.workers import local_executor
from sims.scaling import Scaling, run, sweeps

PRESETS = Path(__file__).parent / "presets"
DEFAULTS = {"scaling": "demo", "encode": "r2"}
KINDS: dict[str, Any] = {"scaling": Scaling, "encode": encode.Encode}


@dataclass(frozen=True)
class Runtime:
    """Where the work is done; the results do not depend on the number of workers."""

    backend: str = "auto"
    """Arrays: auto (CuPy where a device answers), numpy or cupy."""
    workers: int = 0
    """Local processes, one thread each; 0 is one a processor core."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"the number of workers must be >= 0: workers={self.workers}")
        backend_name(self.backend)

    @property
    def processes(self) -> int:
        """Number of worker processes."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class ScalingCommand:
    """Measure the exponents of the distilled set's memory in d, L and r; goes on where an interrupted run stopped."""

    config: Annotated[Scaling, arg(name="")]
    out: Path = Path("results/scaling")
    """Run folder."""
    preset: str = DEFAULTS["scaling"]
    """Settings to start from: demo, quick or a .toml file; options on the command line win."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class EncodeCommand:
    """Distil one task and look inside: principal angles, singular values, risk beside baselines at equal floats."""

    config: Annotated[encode.Encode, arg(name="")]
    out: Path = Path("results/encode")
    """Run folder."""
    preset: str = DEFAULTS["encode"]
    """Settings to start from: r2, r3, r4 or a .toml file; options on the command line win."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class ReportCommand:
    """Rebuild tables, figures and report.md of finished runs from their stored trials."""

    folders: Positional[tuple[Path, ...]]
    """Run folders."""


Command = (
    Annotated[ScalingCommand, subcommand("scaling")]
    | Annotated[EncodeCommand, subcommand("encode")]
    | Annotated[ReportCommand, subcommand("report")]
)


@main_guard
def main(words: list[str] | None = None) -> None:
    """Runs the command in `words` (the command line by default)."""
    words = list(sys.argv[1:] if words is None else words)
    folders = {name: PRESETS / name for name in DEFAULTS}
    default = DEFAULTS.get(words[0], "") if words else ""
    match tyro.cli(Command, args=with_preset(words, folders, default), prog="python -m sims"):
        case ScalingCommand() as command:
            _scaling(command)
        case EncodeCommand() as command:
            _encode(command)
        case ReportCommand() as command:
            if not command.folders:
                raise RunError("report needs at least one run folder: python -m sims report DIR ..")
            for folder in command.folders:
                _rebuild(folder)


def _scaling(command: ScalingCommand) -> None:
    began, backend = monotonic(), backend_name(command.runtime.backend)
    settings = {"program": "scaling", "backend": backend, "scaling": asdict(command.config)}
    with RunFolder.open(command.out, settings, backend=runtime_words(backend), seed=command.config.seed) as folder:
        plan = sweeps(command.config, backend)
        with progress(sum(len(sweep.configs) for sweep in plan), "scaling") as bar:
            rows = run(plan, folder.store, bar, local_executor(command.runtime.processes))
        _finish_scaling(folder, command.config, rows, _seconds_before(folder) + monotonic() - began, backend)


def _seconds_before(folder: RunFolder) -> float:
    """Working time that the folder's summary tells of, 0 where there is none yet."""
    try:
        return float(json.loads((folder.path / "summary.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0


def _finish_scaling(folder: RunFolder, config: Scaling, rows: dict[str, list[Row]], seconds: float, backend: str) -> None:
    laws = scaling_laws.measure(config, rows)
    facts = scaling_report.Facts(sum(map(len, rows.values())), scaling_report.count_failures(rows), seconds, backend)
    folder.write("summary.json", scaling_report.summary(laws, facts))
    for name, content in scaling_report.figure_files(config, laws, rows).items():
        folder.write(f"figures/{name}", content)
    report = folder.write("report.md", scaling_report.report(config, laws, facts))
    terminal_table("memory of the distilled set against r^2 d + L", LAW_HEADERS, scaling_report.law_rows(laws))
    for remark in laws.remarks.values():
        print(remark)
    print("total floats = a r^2 d + b L + c\n" + scaling_report.additive_text(laws), end="")
    print(f"{facts.trials} trials, {facts.failed} failed, {seconds:.0f} s, {backend}\nreport: {report}")


def _encode(command: EncodeCommand) -> None:
    backend = backend_name(command.runtime.backend)
    settings = {"program": "encode", "backend": backend, "encode": command.config.settings()}
    with RunFolder.open(command.out, settings, backend=runtime_words(backend), seed=command.config.seed) as folder:
        configs = command.config.configs(backend)
        with progress(len(configs), "encode") as bar:
            executor = local_executor(command.runtime.processes)
            rows = run_trials(folder.store, "encode", configs, encode.encode_trial, bar, executor)
        _finish_encode(folder, command.config, rows)


def _finish_encode(folder: RunFolder, config: encode.Encode, rows: list[Row]) -> None:
    result = encode_report.measure(config, rows)
    folder.write("summary.json", encode_report.summary(result))
    for name, content in encode_report.figure_files(result).items():
        folder.write(f"figures/{name}", content)
    report = folder.write("report.md", encode_report.report(config, result))
    terminal_table(encode_report.title(config), encode_report.HEADERS, encode_report.table(result))
    print(encode_report.geometry_text(config, result), end="")
    print(f"report: {report}")


def _rebuild(path: Path) -> None:
    """Reads a run's configuration and stored trials, and writes its report again."""
    settings = stored_config(path)
    program, backend = settings.get("program"), settings.get("backend", "numpy")
    if program not in KINDS:
        raise RunError(f"{path} holds no run of this program (program={program!r})")
    try:
        config = tyro.cli(KINDS[program], args=options(settings[program]), console_outputs=False)
    except (SystemExit, ValueError, KeyError) as error:
        raise RunError(f"{path} holds settings that this version does not know: use the version that wrote it") from error
    with RunFolder.open(path, settings, backend=backend, seed=config.seed) as folder:
        if program == "scaling":
            rows = {sweep.kind: _stored(folder, sweep.kind, sweep.configs) for sweep in sweeps(config, backend)}
            _finish_scaling(folder, config, rows, _seconds_before(folder), backend)
        else:
            _finish_encode(folder, config, _stored(folder, "encode", config.configs(backend)))


def _stored(folder: RunFolder, kind: str, configs: Any) -> list[Row]:
    rows = [folder.store.get(kind, config) for config in configs]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise RunError(f"{folder.path} holds {len(found)} of {len(rows)} {kind} trials: finish the run first")
    return found


if __name__ == "__main__":
    main()
