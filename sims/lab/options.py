"""Presets as command-line words: a TOML file of settings turned into options that stand before the user's own, so the last one wins.

Presets, command line and stored configurations thus pass the same checks.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
