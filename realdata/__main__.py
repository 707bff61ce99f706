"""The program of the image runtime: `python -m realdata`, one class a command."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from realdata import compare, data, distill, evaluate, exchange, experts, nas, plan, trajectories
from realdata.artefact import read_set
from realdata.cells import with_cell
from realdata.config import PRESETS, DistillConfig
from realdata.evaluate import Evaluation
from realdata.experts.quality import Quality
from realdata.machine import Runtime, device_named
from realdata.preprocess import PUBLISHED
from realdata.ranks import joined
from realdata.subspace import experiment
from realdata.subspace.measure import BridgeConfig
from sims.lab.files import RunError
from sims.lab.options import parse_words
from sims.lab.progress import duration
from sims.lab.report import terminal_table
from sims.lab.run import main_guard


@dataclass(frozen=True)
class Data:
    """Check the files of a data set: present, readable, every picture decodable, counts, images per class, published checksums."""

    action: Positional[Literal["verify"]]
    root: Positional[Path]
    """Folder with the files."""
    dataset: str
    """Data set: cifar10, cifar100, cifar100-coarse, mnist, fashion-mnist, tiny-imagenet, imagenet1k, imagenette, imagewoof, imagefruit or
    imagemeow (photographs also at another side in pixels: imagenette-64), or a description of your own: folders:3x64x64:10 (channels,
    height, width, classes), arrays:3x32x32:10, idx:1x28x28:10."""


@dataclass(frozen=True)
class Experts:
    """Train networks on real images with a snapshot an epoch, for trajectory matching; the same command goes on after an interruption."""

    recipe: Annotated[experts.Recipe, arg(name="")]
    count: int = 10
    """Experts the folder is to have; those that are there already are kept."""
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    store: Path = Path("results/experts")
    """Folder of all experts; each recipe has a folder of its own in it."""
    preset: str | None = None
    """Settings to start from, those that the distillation preset of the same name asks for: mtt-cpu, ftd-cpu, mtt-cifar10-ipc1, ..
    (all stand in realdata/cells.py); options on the command line win."""
    quality: Quality = field(default_factory=Quality)
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Distill:
    """Distil a data set; the same command goes on after an interruption. Under torchrun several processes share the work."""

    config: Annotated[DistillConfig, arg(name="")]
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    out: Path | None = None
    """Run folder; by default results/DATASET-METHOD-ipcN."""
    experts: Path | None = None
    """For mtt, ftd, datm and tesla: a recipe's folder of experts, or a store with one recipe that the run can take."""
    preset: str | None = None
    """Settings to start from: cpu, dev-tiny, mtt-cpu, ftd-cpu, a published cell METHOD-DATASET-ipcN (rat, at, t, mtt or ftd; all stand in
    realdata/cells.py) or a .toml file; options on the command line win."""
    resume: bool = True
    """Go on with the run in --out; --no-resume refuses a folder that holds one."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Plan:
    """Predict time, memory and disk of a distillation from a few of its outer steps; nothing of them is kept."""

    config: Annotated[DistillConfig, arg(name="")]
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    preset: str | None = None
    """Settings to start from, as for distill."""
    experts: Path | None = None
    """For mtt, ftd, datm and tesla: a recipe's folder of experts, or a store with one recipe that the run can take."""
    json: Path | None = None
    """File for the figures as JSON."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Export:
    """Write a distilled set as the .pt files that other repositories read, images also as raw pixels."""

    artefact: Positional[Path]
    """Artefact folder, or the run folder that holds it."""
    out: Path
    """New folder for the files."""


@dataclass(frozen=True)
class Import:
    """Make an artefact folder of the .pt files of another repository, to evaluate it here."""

    place: Positional[Path]
    """Folder with images_best.pt, labels_best.pt and, if there is one, lr_best.pt."""
    config: Annotated[DistillConfig, arg(name="")]
    out: Path
    """New artefact folder."""
    root: Path | None = None
    """Folder with the real images, for a transform that is fitted on them; by default the data set's folder in $DISTILL_DATA."""
    pixels: bool = False
    """Read images_pixels.pt (units of u / 255) and put it through the transform."""


@dataclass(frozen=True)
class Evaluate:
    """Train fresh networks on a distilled set and on real images at the same count; report test accuracy."""

    artefact: Positional[Path]
    """Artefact folder, or the run folder that holds it."""
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    evaluation: Annotated[Evaluation, arg(name="")] = field(default_factory=Evaluation)
    json: Path | None = None
    """Result file; evaluation.json beside the artefact folder by default."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Compare:
    """Distil with several arms of truncated backpropagation and compare them; the same command goes on after an interruption."""

    config: Annotated[DistillConfig, arg(name="")]
    comparison: Annotated[compare.Comparison, arg(name="")] = field(default_factory=compare.Comparison)
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    out: Path = Path("results/compare")
    """Folder of the comparison; its runs lie in it."""
    preset: str | None = None
    """Settings to start from: cpu, ablation, choices, tiny or a .toml file; options on the command line win."""
    resume: bool = True
    """Go on with the comparison in --out; --no-resume refuses a folder that holds one."""
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Bridge:
    """Estimate the gradient subspace of an image task, and what distilled sets and random images hold of it and teach."""

    sets: Positional[tuple[Path, ...]] = ()
    """Distilled sets (artefact or run folders) of one data set; without any the task alone is measured."""
    dataset: str | None = None
    """Data set; that of the sets by default."""
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    out: Path | None = None
    """Run folder; by default results/DATASET-bridge."""
    config: Annotated[BridgeConfig, arg(name="")] = field(default_factory=BridgeConfig)
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Trajectories:
    """Compare finished, evaluated runs: accuracy seed by seed, differences of methods, and how far students stray from their experts."""

    runs: Positional[tuple[Path, ...]]
    """Run folders of one data set, each with its evaluations; the first one's method is what others are held against."""
    experts: Path | None = None
    """Store of the experts that the runs were made along, or a recipe's folder; without it the accuracies alone are compared."""
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    out: Path = Path("results/trajectories/report")
    """Folder of the report."""
    retracing: trajectories.Retracing = field(default_factory=trajectories.Retracing)
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


@dataclass(frozen=True)
class Nas:
    """Rank a space of architectures by training on a distilled set, and compare with training on real images."""

    artefact: Positional[Path]
    """Artefact folder, or the run folder that holds it."""
    root: Path | None = None
    """Folder with the image files; by default the data set's folder in $DISTILL_DATA."""
    out: Path = Path("results/nas")
    """Run folder."""
    space: Annotated[nas.Space, arg(name="")] = field(default_factory=nas.Space)
    runtime: Annotated[Runtime, arg(name="")] = field(default_factory=Runtime)


Command = (
    Annotated[Data, subcommand("data")]
    | Annotated[Experts, subcommand("experts")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Import, subcommand("import")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Nas, subcommand("nas")]
    | Annotated[Trajectories, subcommand("trajectories")]
    | Annotated[Bridge, subcommand("bridge")]
)


@main_guard
def main(words: list[str] | None = None) -> None:
    """Runs the command in `words` (the command line by default)."""
    words = list(sys.argv[1:] if words is None else words)
    command = parse_words(Command, with_presets(words), "python -m realdata")
    match command:
        case Data():
            verify(command)
        case Experts():
            root = command.root or data.default_root(command.recipe.dataset)
            place = experts.run(command.recipe, command.count, root, command.store, command.runtime, command.quality)
            print(f"experts: {place}")
        case Distill():
            config = command.config
            if config.window_start is not None and config.method != "t-bptt":
                raise RunError(f"the start of a window is fixed in t-bptt alone: method={config.method}, leave out --window-start")
            out = command.out or Path("results") / f"{config.dataset}-{config.method}-ipc{config.ipc}"
            root = command.root or data.default_root(config.dataset)
            with joined(command.runtime.device, config.inner_runs) as ranks:
                if command.preset is None and ranks.first and device_named(command.runtime.device).type == "cpu":
                    print("note: the settings without a preset are those of a GPU run; --preset cpu takes minutes", file=sys.stderr)
                place = distill.run(config, root, out, command.runtime, command.resume, command.experts, ranks)
                if ranks.first:
                    report(out, place)
        case Compare():
            root = command.root or data.default_root(command.config.dataset)
            place = compare.run(command.config, command.comparison, root, command.out, command.runtime, resume=command.resume)
            print(f"report: {place}")
        case Bridge():
            place = experiment.run(command.config, command.sets, command.dataset, command.root, command.out, command.runtime)
            print(f"report: {place}")
        case Nas():
            root = command.root or data.default_root(read_set(command.artefact).config.dataset)
            place = nas.run(command.artefact, command.space, root, command.out, command.runtime)
            print(f"{place.read_text()}\nreport: {place}")
        case Trajectories():
            c = command
            print(f"report: {trajectories.run(c.runs, c.experts, c.retracing, c.root, c.out, c.runtime)}")
        case Plan():
            root = command.root or data.default_root(command.config.dataset)
            plan.show(plan.predict(command.config, root, command.runtime, command.experts), command.json)
        case Export():
            print(f"files: {exchange.export_set(command.artefact, command.out)}")
        case Import():
            root = None if command.config.transform in PUBLISHED else command.root or data.default_root(command.config.dataset)
            print(f"distilled set: {exchange.import_set(command.place, command.config, root, command.out, pixels=command.pixels)}")
        case Evaluate():
            root = command.root or data.default_root(read_set(command.artefact).config.dataset)
            print(f"results: {evaluate.run(command.artefact, root, command.evaluation, command.runtime, command.json)}")


def with_presets(words: list[str]) -> list[str]:
    """The words with the options of their preset; a plan takes those of the distillation that it foresees."""
    if words[:1] == ["plan"]:
        return ["plan", *with_presets(["distill", *words[1:]])[1:]]
    return with_cell(words, {"distill": PRESETS, "compare": PRESETS / "compare"})


def report(out: Path, place: Path) -> None:
    """Prints what a finished run reached."""
    summary = json.loads((out / "summary.json").read_text())
    rows = [
        (name, p["step"], f"{100 * p['mean']:.1f}", f"{100 * p['std']:.1f}")
        for name, p in summary["held_out"].items()
        if isinstance(p, dict)
    ]
    title = f"held-out accuracy, {summary['held_out']['networks']} fresh networks, {duration(summary['seconds'])} of work"
    terminal_table(title, ("set", "outer step", "mean %", "std"), rows)
    print(f"distilled set: {place}\nlearning curve: {out / 'figures' / 'curve.png'}")


def verify(command: Data) -> None:
    """Prints one row a file; ends with status 2 when a file is missing, damaged or not the published one."""
    checks = data.verify(command.dataset, command.root)
    rows = [(c.file, c.split, c.size, c.images, c.per_class, c.checksum, c.fault or "ok") for c in checks]
    terminal_table(f"{command.dataset} in {command.root}", ("file", "split", "bytes", "images", "per class", "md5", "verdict"), rows)
    faults = [c for c in checks if c.fault]
    if faults:
        raise RunError(
            f"{len(faults)} of {len(checks)} rows of {command.dataset} are not in order, first {faults[0].file}: {faults[0].fault}"
        )


if __name__ == "__main__":
    main()
