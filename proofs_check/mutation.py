"""The mutation test: closed forms altered one place at a time must be caught by the lemma that owns the altered function.

    owner of a function   every lemma whose `code` names it, its class or its module; a function without an owner is an error
    caught                an identity or the property of an owner fails, by a wrong number, an error, or no end within the time limit
    survivor              none does; with its reason where the change is known to be none (EQUIVALENT)

`python -m proofs_check.mutation` (or `make mutation`). Each mutant lives in memory only: a forked process loads the altered source in
place of the module before anything else of the package is loaded. The tree on disk is never touched.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import jaxtyping
import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.stats
import sympy
import tyro

from proofs_check.equivalent import EQUIVALENT
from proofs_check.mutants import Mutant, functions, mutants, source
from proofs_check.registry import known
from proofs_check.runner import Profile, proofs, property_seed
from proofs_check.search import search
from sims.lab.files import RunError, atomic_write, make_folder
from sims.lab.progress import progress
from sims.lab.report import markdown_table
from sims.lab.run import main_guard

PRELOADED = (array_api_compat.numpy, jaxtyping, scipy.integrate, scipy.optimize, scipy.stats, sympy)
"""Loaded once, before the forks; nothing of `theory` may be among them."""
MODULES = (
    "theory.predictions",
    "theory.hermite",
    "theory.two_layer",
    "theory.memory",
    "theory.distill.inner_optim",
    "theory.distill.adjoint",
    "theory.distill.truncation",
    "theory.distill.flatness",
)
"""What is altered, as far as it exists."""
FAST = Profile("mutation", 0.4)
LEAST = 0.95

Owners = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Options:
    """Alters closed forms one place at a time; each change must be caught by the lemma that owns the function."""

    count: int = 200
    """Mutants drawn at random; 0 takes all."""
    seed: int = 0
    """Of the draw and of the lemmas' examples, an integer >= 0."""
    processes: int = 2
    """Mutants tested at a time."""
    seconds: float = 60.0
    """Time limit of one mutant."""
    only: tuple[str, ...] = ()
    """Modules or functions to alter (all when absent)."""
    out: Path = Path("results/mutation")
    """Folder for mutation.md."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.seed < 0 or self.processes < 1 or not self.seconds > 0:
            raise RunError(
                "need count >= 0, seed >= 0, processes >= 1 and seconds > 0: "
                f"count={self.count}, seed={self.seed}, processes={self.processes}, seconds={self.seconds}"
            )


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: the lemma and check that caught it, or the reason it survived."""

    title: str
    caught: bool
    how: str


class _Altered(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from the given source."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, origin="altered") if name == self.module else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, f"<altered {self.module}>", "exec"), module.__dict__)


def in_fork(work: Callable[[], Any], seconds: float) -> "Job":
    """Starts `work` in a forked process; its result comes through the job's connection."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        try:
            writer.send((True, work()))
        except Exception as error:  # whatever an altered module raises is a finding about it
            writer.send((False, f"{type(error).__name__}: {error}"))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    writer.close()
    return Job(process, reader, time.monotonic() + seconds)


@dataclass(frozen=True, eq=False)
class Job:
    """A forked process, where its result arrives, and when it has had its time."""

    process: Any
    reader: Connection
    end: float

    def result(self) -> tuple[bool, Any]:
        """(it came to an end, what it returned); kills what has not."""
        try:
            done = (
                self.reader.recv() if self.reader.poll(max(0.0, self.end - time.monotonic())) else (False, "no end within the time limit")
            )
        except EOFError:
            done = False, "the process died"
        self.process.kill()
        self.process.join()
        return done


def guarded() -> dict[str, tuple[str, ...]]:
    """lemma -> what it guards; looked up in a fork, so that this process keeps no module of the package."""
    fine, found = in_fork(lambda: {name: lemma.code for name, lemma in known().items()}, 120.0).result()
    if not fine:
        raise RunError(f"the lemmas cannot be loaded: {found}")
    return found


def owners(names: Sequence[str], code: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """function -> lemmas that own it, those that name it most exactly first; RunError lists functions that none owns."""
    table: dict[str, tuple[str, ...]] = {}
    for name in names:
        exact = {lemma: max((len(c) for c in guards if name == c or name.startswith(c + ".")), default=0) for lemma, guards in code.items()}
        table[name] = tuple(sorted((lemma for lemma, depth in exact.items() if depth), key=lambda lemma: -exact[lemma]))
    orphans = [name for name, found in table.items() if not found]
    if orphans:
        raise RunError(f"no lemma owns {', '.join(orphans)}: add each to the `code` of the lemma that checks it")
    return table


def verdict(mutant: Mutant | None, lemmas: Sequence[str], seed: int) -> str | None:
    """Which lemma catches the mutant and how, None where none does. Runs in its own process."""
    if mutant is not None:
        sys.meta_path.insert(0, _Altered(mutant.module, source(mutant, _path(mutant.module))))
    table = known()
    for name in lemmas:
        lemma = table[name]
        found = search(lemma.margin, lemma.instances, FAST.examples(lemma), property_seed(seed, lemma), shrink=False)
        if not found.holds:
            worst = found.worst
            return f"{name}: property: {found.error or (worst and (worst.error or f'margin {worst.margin:.3g}'))}"
        broken = next((proof for proof in proofs(lemma) if not proof.holds), None)
        if broken is not None:
            return f"{name}: symbolic: {broken.claim}"
    return None


def sound(table: Owners, options: Options) -> None:
    """RunError where a lemma fails on the unaltered code: it would seem to catch everything."""
    lemmas = sorted({lemma for found in table.values() for lemma in found})
    fine, found = in_fork(lambda: verdict(None, lemmas, options.seed), 600.0).result()
    if not fine or found is not None:
        raise RunError(f"the unaltered code does not pass: {found}")


def fates(chosen: Sequence[Mutant], table: Owners, options: Options) -> list[Fate]:
    """Tests the mutants, some at a time; in their order."""
    found: dict[int, Fate] = {}
    running: dict[int, Job] = {}
    queue = list(enumerate(chosen))[::-1]
    with progress(len(chosen), "mutants") as bar:
        while queue or running:
            while queue and len(running) < options.processes:
                k, mutant = queue.pop()
                lemmas = table[mutant.function]
                running[k] = in_fork(lambda mutant=mutant, lemmas=lemmas: verdict(mutant, lemmas, options.seed), options.seconds)
            wait([job.reader for job in running.values()], max(0.0, min(job.end for job in running.values()) - time.monotonic()))
            for k, job in [*running.items()]:
                if job.reader.poll() or time.monotonic() >= job.end:
                    found[k] = fate(chosen[k], *job.result())
                    del running[k]
                    bar.advance(note=f"{sum(not one.caught for one in found.values())} survive")
    return [found[k] for k in range(len(chosen))]


def fate(mutant: Mutant, ended: bool, answer: Any) -> Fate:
    """From what the process said."""
    if not ended:
        return Fate(mutant.title, True, str(answer))
    if answer is not None:
        return Fate(mutant.title, True, answer)
    reason = EQUIVALENT.get((mutant.function, mutant.after))
    return Fate(mutant.title, False, f"equivalent: {reason}" if reason else "not noticed by its owners")


def report(found: Sequence[Fate], total: int, options: Options) -> tuple[str, bool]:
    """(Markdown, whether enough were caught). Equivalent mutants count neither way."""
    caught = sum(one.caught for one in found)
    equivalent = sum(one.how.startswith("equivalent") for one in found)
    share = caught / max(1, len(found) - equivalent)
    lines = [
        f"{caught} of {len(found) - equivalent} mutants caught ({100 * share:.1f} %), {equivalent} more change nothing; "
        f"drawn from {total} with seed {options.seed}.",
        markdown_table(("survivor", "reason"), [(one.title, one.how) for one in found if not one.caught]),
        markdown_table(("mutant", "caught by"), [(one.title, one.how) for one in found if one.caught]),
    ]
    return "# Mutation test\n\n" + "\n\n".join(lines), share >= LEAST


def every(options: Options) -> list[Mutant]:
    """All mutants asked for."""
    present = [name for name in MODULES if importlib.util.find_spec(name.rpartition(".")[0]) and _path(name).is_file()]
    found = [mutant for name in present for mutant in mutants(name, _path(name))]
    wanted = [one for one in found if not options.only or any(one.function == o or one.function.startswith(o + ".") for o in options.only)]
    if not wanted:
        raise RunError(f"nothing to alter in {', '.join(options.only)}; modules: {', '.join(present)}")
    return wanted


def _path(module: str) -> Path:
    return Path(__file__).resolve().parents[1].joinpath(*module.split(".")).with_suffix(".py")


@main_guard
def main() -> None:
    options = tyro.cli(Options, prog="python -m proofs_check.mutation")
    everything = every(options)
    names = [name for module in MODULES if _path(module).is_file() for name in functions(module, _path(module))]
    table = owners(names, guarded())
    sound({name: found for name, found in table.items() if any(one.function == name for one in everything)}, options)
    rng = np.random.default_rng(options.seed)
    size = min(options.count or len(everything), len(everything))
    chosen = [everything[k] for k in np.sort(rng.choice(len(everything), size, replace=False))]
    found = fates(chosen, table, options)
    text, enough = report(found, len(everything), options)
    make_folder(options.out)
    atomic_write(options.out / "mutation.md", text)
    print(text.split("| mutant |")[0] + f"all in {options.out / 'mutation.md'}")
    sys.exit(0 if enough else 1)


if __name__ == "__main__":
    main()
