"""Presets as words of the command line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from sims.lab.files import RunError
from sims.lab.options import chosen_preset, options, parse_words, preset_options, with_preset


def test_settings_become_options() -> None:
    settings = {"network": {"width": 3, "bias": True}, "learn_labels": False, "lengths": [1, 2], "init": "real", "outer_lr": 0.1}
    words = "--network.width 3 --network.bias --no-learn-labels --lengths 1 2 --init real --outer-lr 0.1"
    assert options(settings) == words.split()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("scaling --preset a", "a"),
        ("scaling --preset=a", "a"),
        ("scaling --preset a --d 3 --preset=b", "b"),
        ("scaling --d 3", None),
        ("scaling --preset", None),
        ("scaling --preset-file x", None),
    ],
)
def test_the_last_preset_is_the_chosen_one(words: str, name: str | None) -> None:
    assert chosen_preset(words.split()) == name


def test_a_preset_stands_before_the_user_s_own_words(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text("d = 3\nreflected = true\n")
    (tmp_path / "other.toml").write_text("d = 4\n")
    folders = {"run": tmp_path}
    assert with_preset(["run", "--d", "5", "--preset", "small"], folders) == [
        "run",
        "--d",
        "3",
        "--reflected",
        "--d",
        "5",
        "--preset",
        "small",
    ]
    assert with_preset(["run"], folders, "other") == ["run", "--d", "4"]
    path = str(tmp_path / "small.toml")
    assert with_preset(["run", "--preset", path], folders, "other") == ["run", "--d", "3", "--reflected", "--preset", path]
    for words in ([], ["run"], ["show", "--preset", "small"], ["run", "--help"], ["run", "--preset", "small", "-h"]):
        assert with_preset(words, folders) == words


def test_presets_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text("d = ")
    with pytest.raises(RunError, match=r"unknown preset 'big': choose one of small, or give the path of a \.toml file"):
        preset_options(tmp_path, "big")
    with pytest.raises(RunError, match=r"preset .*small\.toml cannot be read"):
        preset_options(tmp_path, "small")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RunError, match=r"folder\.toml cannot be read"):
        preset_options(tmp_path, "folder")


@dataclass(frozen=True)
class Small:
    """A command."""

    d: int = 3
    """Input dimension."""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--d", "x"], r"^Error parsing --d: .*'x'.*; see program --help$"),
        (["--e", "4"], r"^Unrecognized options: --e.*; see program --help$"),
        (["--d"], r"--d"),
    ],
)
def test_words_that_do_not_parse_end_in_one_line(words: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=line) as caught:
        parse_words(Small, words, "program")
    assert not set("\n╭│─╰") & set(str(caught.value))
    assert capfd.readouterr() == ("", "")


def test_words_that_parse_make_the_command_and_help_goes_to_the_reader(capfd: pytest.CaptureFixture[str]) -> None:
    assert parse_words(Small, ["--d", "5"], "program") == Small(5)
    with pytest.raises(SystemExit) as end:
        parse_words(Small, ["--help"], "program")
    assert end.value.code == 0
    assert "Input dimension." in capfd.readouterr().out
