"""The lemmas there are: every module of `proofs_check.lemmas` declares one as LEMMA; a new file is a new lemma."""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence

from proofs_check import lemmas
from proofs_check.lemma import Lemma
from sims.lab.files import RunError


def known() -> dict[str, Lemma]:
    """Name -> lemma, in the order of the module names."""
    found: dict[str, Lemma] = {}
    for module in pkgutil.iter_modules(lemmas.__path__, f"{lemmas.__name__}."):
        lemma = getattr(importlib.import_module(module.name), "LEMMA", None)
        if not isinstance(lemma, Lemma):
            raise TypeError(f"{module.name} declares no LEMMA")
        if lemma.name in found:
            raise ValueError(f"two modules declare a lemma {lemma.name!r}; the second is {module.name}")
        found[lemma.name] = lemma
    return found


def pick(names: Sequence[str], among: Mapping[str, Lemma]) -> list[Lemma]:
    """The named lemmas, or all; RunError lists the known names where one is unknown."""
    for name in names:
        if name not in among:
            raise RunError(f"unknown lemma {name!r}; known: {', '.join(among)}")
    return [lemma for lemma in among.values() if not names or lemma.name in names]
