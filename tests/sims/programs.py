"""A command of `python -m sims` as its user meets it: its presets, the one line it ends in, the files it leaves, no trial run twice."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tyro

from sims.__main__ import main
from sims.command import PRESETS, Program
from sims.lab import sweep
from sims.lab.files import toml_text
from sims.lab.options import options, preset_options


def refuses(config: Any, wrong: dict[str, Any], words: str) -> None:
    """The configuration with other values is refused in one line with these words."""
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        dataclasses.replace(config, **wrong)
    assert "\n" not in str(caught.value)


def preset_config(program: Program, preset: str) -> Any:
    """The configuration of a preset, which comes back as it was from its stored form."""
    config = tyro.cli(program.config, args=preset_options(PRESETS / program.name, preset))
    assert tyro.cli(program.config, args=options(tomllib.loads(toml_text(program.settings(config))))) == config
    return config


def refused(words: list[str], capfd: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one line that `words` end in, beside lines of progress."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(f"{words[0]}:")]
    assert caught.value.code == status, lines
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def contents(out: Path) -> dict[Path, bytes]:
    """Every file of a run but its starts and the working time."""
    found = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name not in ("env.json", "summary.json")}
    summary = json.loads((out / "summary.json").read_text())
    summary.pop("seconds")
    return found | {out / "summary.json": json.dumps(summary).encode()}


@contextmanager
def no_trial() -> Iterator[None]:
    """A failure where a trial runs."""

    def never(*_: Any) -> None:
        raise AssertionError("a trial ran")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "attempt", never)
        yield
