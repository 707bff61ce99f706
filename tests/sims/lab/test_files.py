"""Whole or absent: what a writer leaves behind when the disk, the place or the process fails it."""

import errno
import os
import stat
from pathlib import Path

import pytest

from sims.lab.files import RunError, atomic_write, clean_leftovers, make_folder, toml_text


def test_content_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    atomic_write(target, "old")
    atomic_write(target, "größer\n")
    assert target.read_bytes() == "größer\n".encode()
    assert list(tmp_path.iterdir()) == [target]


def test_files_get_the_usual_mode(tmp_path: Path) -> None:
    atomic_write(tmp_path / "ours", b"x")
    (tmp_path / "usual").write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk full"), (errno.EDQUOT, "disk full"), (errno.EROFS, "choose an --out"), (errno.EACCES, "choose an --out")],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_one_clear_line_and_the_old_file_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "a"
    atomic_write(target, "kept")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match=words) as caught:
        atomic_write(target, "new")
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert target.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another --out"):
        make_folder(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="choose another --out"):
        atomic_write(tmp_path / "missing" / "a", "x")


def test_leftovers_go_and_results_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.parquet.x1.tmp").write_text("half")
    (tmp_path / ".set.x2.tmp").mkdir()
    (tmp_path / ".set.x2.tmp" / "data").write_text("half")
    (tmp_path / "a.parquet").write_text("whole")
    clean_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    clean_leftovers(tmp_path / "absent")


def test_messages_are_one_line() -> None:
    assert str(RunError("a\n  b\tc")) == "a b c"


def test_toml_of_a_nested_configuration() -> None:
    text = toml_text({"out": Path("x/y"), "seed": None, "sub": {"r": (1, 2), "level": 0.1, "none": None}})
    assert text.replace(" ", "").replace("\n", "") == 'out="x/y"[sub]r=[1,2,]level=0.1'
