"""The mutation test: closed forms altered one place at a time must be caught by the lemma that owns the altered function.

    owner of a function   every lemma whose `code` names it, its class or its module; a function without an owner is an error
    caught                an identity or the property of an owner fails: by a wrong number, or by an error that its evaluation raises
    survived              none does; with its reason (proofs_check.survivors), or "unexplained"
    timed out             no verdict within the limit: LIMIT times what its owners take on the unaltered code, at least LEAST_SECONDS
    died                  no check was reached (the altered module cannot be loaded), or the process ended without a verdict
    equivalent            provably the same function (proofs_check.survivors); counts neither way

share = caught / (all - equivalent). A mutant that timed out or died is in the denominator alone: no check has said that it is wrong.

`python -m proofs_check.mutation` (or `make mutation`). Each mutant lives in memory only: a forked process loads the altered source in
place of the module before anything else of the package is loaded. The tree on disk is never touched.
"""

import importlib.abc
import importlib.machinery
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, get_args

import array_api_compat.numpy
import jaxtyping
import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.stats
import sympy
import tyro

from proofs_check.mutants import Mutant, functions, mutants, source
from proofs_check.records import reserve
from proofs_check.registry import known
from proofs_check.runner import UNFORMED, Profile, proofs, property_seed
from proofs_check.search import search
from proofs_check.survivors import EQUIVALENT, KNOWN
from sims.lab.files import RunError, atomic_write
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
    "theory.distill.adaptive",
    "theory.distill.stages",
    "theory.distill.curvature",
    "theory.distill.trajectory",
)
"""What is altered."""
FAST = Profile("mutation", 0.4)
LEAST = 0.95
LIMIT, LEAST_SECONDS = 10.0, 20.0

Owners = Mapping[str, tuple[str, ...]]
Kind = Literal["wrong number", "error", "survived", "timed out", "died", "equivalent"]
CAUGHT = ("wrong number", "error")


@dataclass(frozen=True)
class Options:
    """Alters closed forms one place at a time; each change must be caught by the lemma that owns the function."""

    count: int = 200
    """Mutants drawn at random; 0 takes all."""
    seed: int = 0
    """Of the draw and of the lemmas' examples, an integer >= 0."""
    processes: int = 2
    """Mutants tested at a time."""
    only: tuple[str, ...] = ()
    """Modules or functions to alter (all when absent)."""
    out: Path = Path("results/mutation")
    """Folder for mutation.md."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.seed < 0 or self.processes < 1:
            raise RunError(
                f"need count >= 0, seed >= 0 and processes >= 1: count={self.count}, seed={self.seed}, processes={self.processes}"
            )


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: its class (caught by a wrong number or an error, or not), and the check that caught it or why none did."""

    title: str
    kind: Kind
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
            writer.send(("done", work()))
        except Exception as error:  # whatever an altered module raises is a finding about it
            writer.send(("raised", f"{type(error).__name__}: {error}"))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    writer.close()
    return Job(process, reader, time.monotonic() + seconds, seconds)


@dataclass(frozen=True, eq=False)
class Job:
    """A forked process, where its result arrives, when it has had its time, and how long that is."""

    process: Any
    reader: Connection
    end: float
    seconds: float

    def result(self) -> tuple[Literal["done", "raised", "timed out", "died"], Any]:
        """(how it ended, what it returned or why it did not); kills what has not ended."""
        try:
            if self.reader.poll(max(0.0, self.end - time.monotonic())):
                found = self.reader.recv()
            else:
                found = "timed out", f"no verdict within {self.seconds:.0f} s"
        except EOFError:
            self.process.join()
            found = "died", f"exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        return found


def guarded() -> dict[str, tuple[str, ...]]:
    """lemma -> what it guards; looked up in a fork, so that this process keeps no module of the package."""
    end, found = in_fork(lambda: {name: lemma.code for name, lemma in known().items()}, 120.0).result()
    if end != "done":
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


def verdict(mutant: Mutant | None, lemmas: Sequence[str], seed: int) -> tuple[Literal["wrong number", "error"], str] | None:
    """How the mutant is caught and which lemma's check catches it, None where none does. Runs in its own process."""
    if mutant is not None:
        sys.meta_path.insert(0, _Altered(mutant.module, source(mutant, _path(mutant.module))))
    table = known()
    for name in lemmas:
        lemma = table[name]
        found = search(lemma.margin, lemma.instances, FAST.examples(lemma), property_seed(seed, lemma), shrink=False)
        if not found.holds:
            worst = found.worst
            error = found.error or (worst.error if worst is not None else None)
            return (
                ("error", f"{name}: property: {error}")
                if error
                else ("wrong number", f"{name}: property: margin {worst and worst.margin:.3g}")
            )
        broken = next((proof for proof in proofs(lemma) if not proof.holds), None)
        if broken is not None:
            return "error" if broken.claim == UNFORMED else "wrong number", f"{name}: symbolic: {broken.claim}"
    return None


def timed(lemmas: Sequence[str], seed: int) -> dict[str, float]:
    """lemma -> seconds on the unaltered code; RunError where one fails there: it would seem to catch everything."""

    def work() -> tuple[Any, dict[str, float]]:
        seconds = {}
        for name in lemmas:
            start = time.perf_counter()
            failed = verdict(None, [name], seed)
            seconds[name] = time.perf_counter() - start
            if failed is not None:
                return failed, seconds
        return None, seconds

    end, found = in_fork(work, 600.0).result()
    if end != "done" or found[0] is not None:
        raise RunError(f"the unaltered code does not pass: {found if end != 'done' else found[0]}")
    return found[1]


def limit(lemmas: Sequence[str], seconds: Mapping[str, float]) -> float:
    """Seconds that a mutant with these owners has."""
    return max(LEAST_SECONDS, LIMIT * sum(seconds[name] for name in lemmas))


def fates(chosen: Sequence[Mutant], table: Owners, seconds: Mapping[str, float], options: Options) -> list[Fate]:
    """Tests the mutants, some at a time; in their order."""
    found: dict[int, Fate] = {}
    running: dict[int, Job] = {}
    queue = list(enumerate(chosen))[::-1]
    with progress(len(chosen), "mutants") as bar:
        while queue or running:
            while queue and len(running) < options.processes:
                k, mutant = queue.pop()
                lemmas = table[mutant.function]
                running[k] = in_fork(lambda m=mutant, names=lemmas: verdict(m, names, options.seed), limit(lemmas, seconds))
            wait([job.reader for job in running.values()], max(0.0, min(job.end for job in running.values()) - time.monotonic()))
            for k, job in [*running.items()]:
                if job.reader.poll() or time.monotonic() >= job.end:
                    found[k] = fate(chosen[k], *job.result())
                    del running[k]
                    bar.advance(note=f"{sum(one.kind not in CAUGHT for one in found.values())} not caught")
    return [found[k] for k in range(len(chosen))]


def fate(mutant: Mutant, end: Literal["done", "raised", "timed out", "died"], answer: Any) -> Fate:
    """From how the process ended and what it said."""
    if end != "done":  # an error outside the checks says nothing about the closed form
        return Fate(mutant.title, "died" if end == "raised" else end, answer)
    if answer is not None:
        return Fate(mutant.title, *answer)
    if mutant.key in EQUIVALENT:
        return Fate(mutant.title, "equivalent", EQUIVALENT[mutant.key])
    return Fate(mutant.title, "survived", KNOWN.get(mutant.key, "unexplained"))


def report(found: Sequence[Fate], total: int, options: Options) -> tuple[str, bool]:
    """(Markdown, whether enough were caught)."""
    count = {kind: sum(one.kind == kind for one in found) for kind in get_args(Kind)}
    judged = len(found) - count["equivalent"]
    unexplained = sum(one.how == "unexplained" for one in found)
    caught = sum(count[kind] for kind in CAUGHT)
    share = caught / max(1, judged)
    lines = [
        f"{caught} of {judged} mutants caught ({100 * share:.1f} %), {count['wrong number']} by a wrong number and "
        f"{count['error']} by an error; "
        f"{count['survived']} survived ({unexplained} unexplained), "
        f"{count['timed out']} timed out, {count['died']} died; {count['equivalent']} more are equivalent; "
        f"drawn from {total} with seed {options.seed}.",
        markdown_table(("not caught", "class", "reason"), [(one.title, one.kind, one.how) for one in found if one.kind not in CAUGHT]),
        markdown_table(("mutant", "caught by a", "check"), [(one.title, one.kind, one.how) for one in found if one.kind in CAUGHT]),
    ]
    return "# Mutation test\n\n" + "\n\n".join(lines), share >= LEAST


def every(options: Options) -> list[Mutant]:
    """All mutants asked for."""
    found = [mutant for name in MODULES for mutant in mutants(name, _path(name))]
    wanted = [one for one in found if not options.only or any(one.function == o or one.function.startswith(o + ".") for o in options.only)]
    if not wanted:
        raise RunError(f"nothing to alter in {', '.join(options.only)}; modules: {', '.join(MODULES)}")
    return wanted


def _path(module: str) -> Path:
    return Path(__file__).resolve().parents[1].joinpath(*module.split(".")).with_suffix(".py")


@main_guard
def main() -> None:
    options = tyro.cli(Options, prog="python -m proofs_check.mutation")
    everything = every(options)
    place = options.out / "mutation.md"
    reserve(place)
    table = owners([name for module in MODULES for name in functions(module, _path(module))], guarded())
    rng = np.random.default_rng(options.seed)
    size = min(options.count or len(everything), len(everything))
    chosen = [everything[k] for k in np.sort(rng.choice(len(everything), size, replace=False))]
    seconds = timed(sorted({lemma for one in chosen for lemma in table[one.function]}), options.seed)
    longest = sum(seconds[lemma] for one in chosen for lemma in table[one.function]) / options.processes
    print(f"{size} mutants; about {longest / 60:.1f} minutes if none were caught")
    found = fates(chosen, table, seconds, options)
    text, enough = report(found, len(everything), options)
    atomic_write(place, text)
    print(text.split("| mutant |")[0] + f"all in {place}")
    sys.exit(0 if enough else 1)


if __name__ == "__main__":
    main()
