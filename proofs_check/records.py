"""What a run leaves on disk: the JSON report, and counterexamples that can be run again.

    report           {schema, profile, seed, passed, environment, lemmas: [statement, source, assumptions, checks, seconds, passed]}
    counterexample   {schema, lemma, file, instance, margin, error, seed, profile}: the shrunk failure of a property; file: of a user's own
                     lemma, null for those of the package

Margins are JSON numbers with every bit kept; a check that raised has margin null and the error in words.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proofs_check.lemma import ControlOutcome, Example, Lemma, Outcome
from proofs_check.runner import Profile
from sims.lab.environment import environment
from sims.lab.files import RunError, atomic_write, file_error, make_folder

SCHEMA = 1


def report(lemmas: Sequence[Lemma], outcomes: Sequence[Outcome], profile: Profile, seed: int) -> dict[str, Any]:
    """The whole run as one JSON-ready dict."""
    return {
        "schema": SCHEMA,
        "profile": profile.name,
        "seed": seed,
        "passed": all(outcome.passed for outcome in outcomes),
        "environment": environment(seed=seed),
        "lemmas": [_entry(lemma, outcome) for lemma, outcome in zip(lemmas, outcomes, strict=True)],
    }


def _entry(lemma: Lemma, outcome: Outcome) -> dict[str, Any]:
    return {
        "number": lemma.number,
        "name": lemma.name,
        "latex": lemma.latex,
        "plain": lemma.plain,
        "source": asdict(lemma.source),
        "assumptions": dict(lemma.assumptions),
        "code": list(lemma.code),
        "also": list(lemma.also),
        "passed": outcome.passed,
        "failures": list(outcome.failures),
        "symbolic": [asdict(proof) for proof in outcome.symbolic],
        "property": asdict(outcome.search),
        "controls": [_control(control) for control in outcome.controls],
        "seconds": outcome.seconds,
    }


def _control(control: ControlOutcome) -> dict[str, Any]:
    search = control.search
    return {
        "assumption": control.assumption,
        "instead": control.instead,
        "verdict": control.verdict,
        "examples": search.examples,
        "failed": search.failed,
        "worst": None if search.worst is None else asdict(search.worst),
        "error": control.error,
    }


def reserve(path: Path) -> None:
    """Makes the folder of a file to be written later; RunError at once where the file could not be written there."""
    make_folder(path.parent)
    if path.is_dir():
        raise RunError(f"{path} is a folder: name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise file_error(error, path) from error


def write_json(path: Path, content: Any) -> None:
    """Atomically, with the folder made where it is missing; RunError when the place cannot be written."""
    make_folder(path.parent)
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_counterexample(path: Path, outcome: Outcome, profile: Profile, seed: int, file: Path | None) -> None:
    """The counterexample of a property that failed; `file` declares the lemma where that is a user's own."""
    if outcome.search.counterexample is None:
        raise ValueError(f"the property of {outcome.lemma} has no counterexample")
    where = {"lemma": outcome.lemma, "file": None if file is None else str(file.resolve())}
    write_json(path, {"schema": SCHEMA, **where, **asdict(outcome.search.counterexample), "seed": seed, "profile": profile.name})


def remove_counterexample(path: Path, lemma: str) -> bool:
    """Takes away what an earlier run found against a lemma that now holds; a file that is no counterexample of that lemma stays."""
    try:
        if read_counterexample(path)[0] != lemma:
            return False
        path.unlink()
    except (RunError, OSError):
        return False
    return True


def read_counterexample(path: Path) -> tuple[str, Example, str | None]:
    """(lemma, stored example, file of the lemma where it is a user's own); RunError naming what is wrong with the file."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}): --replay takes a counterexample file of an earlier run") from error
    except ValueError as error:
        raise RunError(f"{path} is no JSON file ({error}): --replay takes a counterexample file of an earlier run") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RunError(f"{path} is no counterexample file of schema {SCHEMA}: --replay takes a file that a failing property wrote")
    wanted = {"lemma": str, "instance": dict, "margin": (int, float, type(None)), "error": (str, type(None))}
    for name, kind in wanted.items():
        if name not in content or not isinstance(content[name], kind):
            raise RunError(f"{path} has no valid entry {name!r}: --replay takes a file that a failing property wrote")
    file = content.get("file")
    return content["lemma"], Example(content["instance"], content["margin"], content["error"]), file if isinstance(file, str) else None
