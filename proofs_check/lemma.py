"""A lemma as data: what it claims, what it rests on, and how it is put to the test.

    margin     signed and dimensionless: 1 = no error, 0 = error at the tolerance, < 0 = the lemma fails at that instance
    symbolic   exact identities (SymPy)
    property   margin > 0 on every instance drawn
    control    one assumption dropped; it is needed where some instance then has margin <= CLEAR, an error of twice the tolerance or more

An instance is a dict of plain JSON values, so a counterexample is a file and its replay is exact. An assumption predicate is a lemma
whose margin is the predicate's own: positive on the experiments that satisfy it, clearly negative on those of its controls.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis.strategies import SearchStrategy

CLEAR = -1.0

Instance = dict[str, Any]
Margin = Callable[..., float]
"""margin(rng, **instance): `rng` is a numpy Generator that is a function of the instance alone."""
Strategies = Mapping[str, SearchStrategy[Any]]


@dataclass(frozen=True)
class Source:
    """Where the statement comes from: `stated` in a publication, or `derived` here; `where` names the paper and its place in it, or the
    argument. Of a statement that is partly both, `where` says which part is derived here.
    """

    kind: Literal["stated", "derived"]
    where: str

    def __str__(self) -> str:
        return f"stated: {self.where}" if self.kind == "stated" else "derived here"

    @property
    def sentence(self) -> str:
        """In full."""
        words = "stated in the paper" if self.kind == "stated" else "derived here"
        return f"{words} ({self.where})" if self.where else words


@dataclass(frozen=True)
class Identity:
    """left = right, exactly. A float on the left is a value of the code; it must be `right` to the last few binary digits."""

    claim: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Control:
    """What happens in place of a dropped assumption: `instances` are added to (or replace) those of the lemma."""

    assumption: str
    instead: str
    instances: Strategies


KINDS: dict[str, type] = {
    **dict.fromkeys(("name", "latex", "plain"), str),
    "source": Source,
    **dict.fromkeys(("assumptions", "instances"), Mapping),
    **dict.fromkeys(("controls", "code", "also"), tuple),
}
ENTRIES: dict[str, type] = {"controls": Control, "code": str, "also": str}
RESERVED = ("report",)
"""Names that a run gives to its own files."""


def _word(kind: type) -> str:
    words = {str: "a string", Mapping: "a dict", tuple: "a tuple, of one entry (entry,)"}
    return words.get(kind, f"a {kind.__name__}")


@dataclass(frozen=True, eq=False)
class Lemma:
    """A statement and its checks.

    assumptions   name -> what it says; every control drops one of them
    instances     argument name -> strategy for the keyword arguments of `margin`
    symbolic      yields the identities; None where there is nothing exact to prove
    examples      instances drawn in the ci profile
    code          dotted names of the functions (or classes) whose correctness this lemma guards
    number        its place in the order of the theory; None stands after all others
    also          tests outside this program that hold the same code to one more oracle, each as file::test
    every         whether it fails unless every control breaks it; else one that does is enough
    """

    name: str
    latex: str
    plain: str
    source: Source
    assumptions: Mapping[str, str]
    instances: Strategies
    margin: Margin
    controls: tuple[Control, ...]
    symbolic: Callable[[], Iterable[Identity]] | None = None
    examples: int = 100
    code: tuple[str, ...] = ()
    number: int | None = None
    also: tuple[str, ...] = ()
    every: bool = False

    def __post_init__(self) -> None:
        for field, kind in KINDS.items():
            if not isinstance(getattr(self, field), kind):
                raise ValueError(f"lemma {self.name!r}: {field} must be {_word(kind)}: {field}={getattr(self, field)!r}")
        for field, kind in ENTRIES.items():
            wrong = [entry for entry in getattr(self, field) if not isinstance(entry, kind)]
            if wrong:
                raise ValueError(f"lemma {self.name!r}: each entry of {field} must be {_word(kind)}: {wrong[0]!r}")
        if self.name in RESERVED:
            raise ValueError(f"{self.name}.json is a file of every run, not of a lemma: choose another name than name={self.name!r}")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"a lemma's name is lower-case words joined by hyphens: name={self.name!r}")
        if self.examples < 1:
            raise ValueError(f"lemma {self.name} needs at least one example: examples={self.examples}")
        if not self.controls:
            raise ValueError(f"lemma {self.name} has no negative control: without one its property could be empty")
        dropped = [control.assumption for control in self.controls]
        unknown = [name for name in dropped if name not in self.assumptions]
        if unknown:
            raise ValueError(f"lemma {self.name} drops {unknown[0]!r}, which is none of its assumptions: {', '.join(self.assumptions)}")
        if len(set(dropped)) != len(dropped):
            raise ValueError(f"lemma {self.name} drops one assumption twice: {', '.join(dropped)}")


@dataclass(frozen=True)
class Example:
    """An instance and its margin, or the error that evaluating it raised."""

    instance: Instance
    margin: float | None
    error: str | None = None

    @property
    def holds(self) -> bool:
        return self.margin is not None and self.margin > 0.0


@dataclass(frozen=True)
class Search:
    """What a search over instances saw: distinct instances run up to the first failure, and how many of them failed.

    `worst` has the smallest margin met, shrinking included; `counterexample` is the shrunk failure, None where all hold.
    """

    examples: int
    failed: int
    worst: Example | None
    counterexample: Example | None = None
    error: str | None = None

    @property
    def holds(self) -> bool:
        return self.error is None and self.failed == 0


@dataclass(frozen=True)
class Proof:
    """The fate of one identity; `residual` says what was left over."""

    claim: str
    holds: bool
    residual: str = "0"


@dataclass(frozen=True)
class ControlOutcome:
    """The fate of one control. An assumption is "not needed" where no instance without it clearly breaks the conclusion."""

    assumption: str
    instead: str
    search: Search

    @property
    def error(self) -> str | None:
        worst = self.search.worst
        return self.search.error or (worst.error if worst is not None else None)

    @property
    def verdict(self) -> str:
        worst = self.search.worst
        if self.error is not None:
            return "error"
        return "needed" if worst is not None and worst.margin is not None and worst.margin <= CLEAR else "not needed"


@dataclass(frozen=True)
class Outcome:
    """All checks of one lemma. It passes when the identities and the property hold and a control (with `every`, each one) breaks it."""

    lemma: str
    symbolic: tuple[Proof, ...]
    search: Search
    controls: tuple[ControlOutcome, ...]
    seconds: float
    every: bool = False

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it fails, one line each."""
        reasons = [f"symbolic: {proof.claim}: left over {proof.residual}" for proof in self.symbolic if not proof.holds]
        if self.search.error is not None:
            reasons.append(f"property: {self.search.error}")
        elif self.search.counterexample is not None:
            found = self.search.counterexample
            reasons.append(f"property: {found.error or f'margin {found.margin:.3g} at {found.instance}'}")
        reasons += [f"control {control.assumption}: {control.error}" for control in self.controls if control.error is not None]
        if self.every:
            reasons += [f"control {c.assumption}: it breaks nothing" for c in self.controls if c.verdict == "not needed"]
        elif not any(control.verdict == "needed" for control in self.controls):
            reasons.append("negative control: the conclusion holds without any of the assumptions dropped, so its check shows nothing")
        return tuple(reasons)
