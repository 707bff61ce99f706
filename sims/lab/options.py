"""The command line: presets as words, and words as a typed command, with one line where they do not fit.

A preset is a TOML file of settings turned into options that stand before the user's own, so the last one wins. Presets, command line and
stored configurations thus pass the same checks.
"""

import io
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import tyro

from sims.lab.files import RunError


def preset_options(folder: Path, name: str) -> list[str]:
    """The options in a preset: a name in `folder`, or the path of a TOML file."""
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    try:
        return options(tomllib.loads(path.read_text()))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise RunError(f"unknown preset {name!r}: choose one of {known}, or give the path of a .toml file") from error
    except (OSError, ValueError) as error:
        raise RunError(f"preset {path} cannot be read ({error})") from error


def options(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """{"network": {"width": 32}, "learn_labels": False} -> --network.width 32 --no-learn-labels."""
    words: list[str] = []
    for key, value in settings.items():
        name = f"{prefix}{key.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += options(value, f"{name}.")
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--{prefix}no-{key.replace('_', '-')}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def chosen_preset(words: Sequence[str]) -> str | None:
    """The last --preset among the words, None without one."""
    name = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--preset" and following:
            name = following
        elif word.startswith("--preset="):
            name = word.removeprefix("--preset=")
    return name


def with_preset(words: Sequence[str], folders: Mapping[str, Path], default: str | None = None) -> list[str]:
    """The words with the preset's options put in after the command, for a command (the first word) that has presets.

    `default` is the preset where none is asked for.
    """
    if not words or words[0] not in folders or {"-h", "--help"} & set(words):
        return list(words)
    name = chosen_preset(words) or default
    return list(words) if name is None else [words[0], *preset_options(folders[words[0]], name), *words[1:]]


def parse_words(kind: Any, words: Sequence[str], prog: str) -> Any:
    """The command of type `kind` in the words. --help prints and exits; RunError with one line where the words do not parse."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, args=list(words), prog=prog)
    except SystemExit as end:
        if not end.code:
            raise
        raise RunError(_one_line(said.getvalue()) or f"the command line does not parse: see {prog} --help") from end


def _one_line(box: str) -> str:
    """The text of an error box: its parts, parted by semicolons, without frame, title and the option's own help."""
    parts, part = [], []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip("│ ")
        if line.startswith("╭") or not text:
            continue
        if set(text) <= set("─╰╯") or line.startswith("╰"):
            parts.append(" ".join(part))
            part = []
        else:
            part.append(text)
    kept = (text.rstrip(".") for text in parts if text and not text.startswith("Argument helptext"))
    return "; ".join(re.sub("^For full helptext, (run|see) ", "see ", text) for text in kept)
