"""The program `python -m proofs_check`: checks every lemma, prints one row each, exits 1 when one fails and 2 on bad input."""

import os
import sys
import tempfile
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from threadpoolctl import threadpool_limits
from tyro.conf import UseAppendAction, arg

from proofs_check import records, registry, runner, show
from proofs_check.page import write_page
from sims.lab.files import RunError
from sims.lab.options import parse_words
from sims.lab.progress import progress
from sims.lab.run import main_guard


@dataclass(frozen=True)
class Options:
    """Every lemma and assumption, checked symbolically, by property and by negative control."""

    only: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Names of the lemmas to check (all when absent)."""
    profile: Literal["ci", "deep"] = "ci"
    """How many examples are drawn: ci, or deep with 100 times as many."""
    seed: int = 0
    """Root seed of all draws, an integer >= 0."""
    replay: Path | None = None
    """A counterexample file of an earlier run: evaluates that one instance again."""
    json: Path | None = None
    """Where to write the whole report as JSON; report.json in --out by default."""
    out: Path = Path("results/proofs_check")
    """Folder for the report page (report.md, report.html) and for the counterexamples of failing properties."""
    own: Annotated[UseAppendAction[tuple[tuple[Path, ...], ...]], arg(name="with")] = ()
    """Python files with lemmas of your own (each declares LEMMA), checked beside the others."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RunError(f"the seed must be an integer >= 0: seed={self.seed}")
        if () in self.only or () in self.own:
            raise RunError("--only takes names of lemmas and --with takes files: name at least one, or leave the option out")
        other = [f"--{one.name}" for one in fields(self) if one.name not in ("replay", "own") and getattr(self, one.name) != one.default]
        if self.replay is not None and other:
            raise RunError(f"--replay evaluates one stored instance and takes nothing but --with: leave out {', '.join(other)}")


def run(options: Options, console: Console) -> int:
    """Carries out what the options ask for; 0 when everything holds, 1 otherwise."""
    lemmas, files = registry.with_files(registry.known(), list(chain(*options.own)))
    if options.replay is not None:
        name, stored, file = records.read_counterexample(options.replay)
        if name not in lemmas and file is not None:
            raise RunError(f"lemma {name!r} is declared in {file}: add --with {file}")
        (lemma,) = registry.pick([name], lemmas)
        now = runner.replay(lemma, stored.instance)
        show.replayed(lemma, stored, now, console)
        return 0 if now.holds else 1

    chosen, profile = registry.pick(list(chain(*options.only)), lemmas), runner.PROFILES[options.profile]
    place = options.json or options.out / "report.json"
    for path in (options.out / "report.md", place):
        records.reserve(path)  # before the checks, which take minutes
    outcomes = []
    with progress(len(chosen), "lemmas") as bar:
        for lemma in chosen:
            outcomes.append(runner.check(lemma, profile, options.seed))
            bar.advance(note=lemma.name)
    title = f"profile {profile.name}, seed {options.seed}"
    show.table(chosen, outcomes, title, console)
    for outcome in outcomes:
        path = options.out / f"{outcome.lemma}.json"
        if outcome.search.counterexample is not None:
            records.write_counterexample(path, outcome, profile, options.seed, files.get(outcome.lemma))
            console.print(f"{outcome.lemma}: counterexample in {path}", markup=False, highlight=False, soft_wrap=True)
        elif records.remove_counterexample(path, outcome.lemma):
            console.print(f"{outcome.lemma}: removed an earlier run's {path}", markup=False, highlight=False, soft_wrap=True)
    page, _ = write_page(options.out, chosen, outcomes, title)
    console.print(f"statements and checks in {page}", markup=False, highlight=False, soft_wrap=True)
    records.write_json(place, records.report(chosen, outcomes, profile, options.seed))
    console.print(f"numbers in {place}", markup=False, highlight=False, soft_wrap=True)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


@main_guard
def main() -> None:
    options = parse_words(Options, sys.argv[1:], "python -m proofs_check")
    with tempfile.TemporaryDirectory() as scratch:
        # Hypothesis caches what it reads from the sources; without this it would leave a folder where the user stands.
        os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", scratch)
        with threadpool_limits(1):  # thousands of small matrix products: more threads only get in each other's way
            status = run(options, Console())
    sys.exit(status)


if __name__ == "__main__":
    main()
