"""The lemmas there are: modules of `proofs_check.lemmas` declare LEMMA or LEMMAS; a new file is a new lemma, also outside the package."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from proofs_check import lemmas
from proofs_check.lemma import Lemma
from sims.lab.files import RunError


def known() -> dict[str, Lemma]:
    """Name -> lemma of the package, in the order of their numbers."""
    modules = (importlib.import_module(found.name) for found in pkgutil.iter_modules(lemmas.__path__, f"{lemmas.__name__}."))
    return ordered({}, [(module.__name__, lemma) for module in modules for lemma in declared(module)])


def declared(module: ModuleType) -> Iterator[Lemma]:
    """What the module declares as LEMMA or LEMMAS."""
    found = [getattr(module, "LEMMA", None), *getattr(module, "LEMMAS", ())]
    found = [one for one in found if isinstance(one, Lemma)]
    if not found:
        raise TypeError(f"{module.__name__} declares no LEMMA")
    yield from found


def ordered(base: Mapping[str, Lemma], more: Sequence[tuple[str, Lemma]]) -> dict[str, Lemma]:
    """`base` with more lemmas, each given with the module it comes from; by number, those without one last."""
    found = dict(base)
    for where, lemma in more:
        if lemma.name in found:
            raise ValueError(f"two modules declare a lemma {lemma.name!r}; the second is {where}")
        found[lemma.name] = lemma
    return dict(sorted(found.items(), key=lambda item: (item[1].number is None, item[1].number or 0, item[0])))


def with_files(base: Mapping[str, Lemma], files: Sequence[Path]) -> tuple[dict[str, Lemma], dict[str, Path]]:
    """`base` with the lemmas of the user's own files, and the file of each of those; RunError names the file that has none or cannot be
    read.
    """
    more: list[tuple[Path, Lemma]] = []
    for file in files:
        spec = importlib.util.spec_from_file_location(f"own_lemma_{file.stem}", file)
        if spec is None or spec.loader is None or not file.is_file():
            raise RunError(f"cannot read {file}: --with takes Python files that declare LEMMA")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            more += [(file, lemma) for lemma in declared(module)]
        except (Exception, SystemExit) as error:  # the file is the user's: whatever it raises is said in one line
            raise RunError(f"{file}: {type(error).__name__}: {error}") from error
    try:
        return ordered(base, [(str(file), lemma) for file, lemma in more]), {lemma.name: file for file, lemma in more}
    except ValueError as error:
        raise RunError(str(error)) from error


def pick(names: Sequence[str], among: Mapping[str, Lemma]) -> list[Lemma]:
    """The named lemmas, or all; RunError lists the known names where one is unknown."""
    for name in names:
        if name not in among:
            raise RunError(f"unknown lemma {name!r}; known: {', '.join(among)}")
    return [lemma for lemma in among.values() if not names or lemma.name in names]
