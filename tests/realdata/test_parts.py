"""Folders in parts: the same files at the end, equal parts of equal files, and what is refused before anything is unpacked."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realdata import data, parts
from realdata.parts import INDEX, join, main, pack
from sims.lab.files import RunError


def tree(folder: Path, sizes: dict[str, int], seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {name: rng.bytes(size) for name, size in sizes.items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SIZES = {"a": 0, "train/b.bin": 3 * 2**20 + 17, "train/deep/c": 5, "ä ü": 2**20}


def test_the_files_come_back_and_no_part_is_too_large(tmp_path: Path):
    files = tree(tmp_path / "set", SIZES)
    index = pack(tmp_path / "set", tmp_path / "parts", largest=1)
    assert len(index) >= 4
    assert all((tmp_path / "parts" / entry["name"]).stat().st_size <= 2**20 for entry in index)
    assert join(tmp_path / "parts", tmp_path / "out" / "set") == len(files)
    assert content(tmp_path / "out" / "set") == files
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["set"]


@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=4), largest=st.integers(700, 9000))
def test_a_cut_loses_no_byte_wherever_it_falls(sizes: list[int], largest: int, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cut")
    files = tree(folder / "set", {f"f{k}": size for k, size in enumerate(sizes)}, len(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MIB", largest)
        pack(folder / "set", folder / "parts", 1)
        join(folder / "parts", folder / "back")
    assert content(folder / "back") == files


def test_equal_files_give_equal_parts(tmp_path: Path):
    for name in ("one", "two"):
        tree(tmp_path / name, SIZES)
        pack(tmp_path / name, tmp_path / f"{name} parts", 1)
    (tmp_path / "two" / "a").touch()
    assert content(tmp_path / "one parts") == content(tmp_path / "two parts")


def packed(tmp_path: Path) -> Path:
    tree(tmp_path / "set", SIZES)
    pack(tmp_path / "set", tmp_path / "parts", 1)
    return tmp_path / "parts"


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


DAMAGE = {
    "part-002 is damaged": lambda place: flip(place / "part-002"),
    "part-003 is damaged": lambda place: (place / "part-003").write_bytes(b""),
    "1 of 5 parts are missing in .*: part-001": lambda place: (place / "part-001").unlink(),
    "parts.json is missing": lambda place: (place / INDEX).unlink(),
    "parts.json is damaged": lambda place: (place / INDEX).write_text("[{]"),
    "does not list": lambda place: (place / INDEX).write_text("[]"),
    "does not list the parts beside it: ../x": lambda place: (place / INDEX).write_text('[{"name": "../x", "bytes": 1, "sha256": ""}]'),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_what_is_missing_or_damaged_is_named_and_nothing_unpacked(words: str, tmp_path: Path):
    place = packed(tmp_path)
    DAMAGE[words](place)
    with pytest.raises(RunError, match=words):
        join(place, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "set"]


@pytest.mark.parametrize("kind", ["outside", "link", "no archive"])
def test_an_archive_that_leads_out_of_the_folder_leaves_nothing(kind: str, tmp_path: Path):
    """Its index is sound: whoever made the one made the other."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        entry = tarfile.TarInfo("../stolen" if kind == "outside" else "link")
        if kind == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    bytes_ = b"no tar at all" * 99 if kind == "no archive" else stream.getvalue()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part-001").write_bytes(bytes_)
    digest = parts._digest(tmp_path / "parts" / "part-001")
    (tmp_path / "parts" / INDEX).write_text(json.dumps([{"name": "part-001", "bytes": len(bytes_), "sha256": digest}]))
    with pytest.raises(RunError):
        join(tmp_path / "parts", tmp_path / "in" / "out")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "stolen").exists()


def test_links_are_not_left_out_silently(tmp_path: Path):
    tree(tmp_path / "set", {"a": 3})
    (tmp_path / "set" / "b").symlink_to(tmp_path / "set" / "a")
    with pytest.raises(RunError, match="b is a link"):
        pack(tmp_path / "set", tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_what_cannot_be_read_or_written_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = packed(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot use"):
        join(place, tmp_path / "file" / "out")
    original = Path.open

    def failing(path: Path, *mode: str) -> Any:
        if path.name == "c":
            raise OSError("input/output error")
        return original(path, *mode)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(RunError, match="cannot be read to its end"):
        pack(tmp_path / "set", tmp_path / "again", 1)
    assert list((tmp_path / "again").iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path):
    place = packed(tmp_path)
    with pytest.raises(RunError, match="not empty"):
        pack(tmp_path / "set", place)
    with pytest.raises(RunError, match="there already"):
        join(place, tmp_path / "set")


def test_the_program_says_what_it_did_and_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    tree(tmp_path / "set", {"a": 3})
    main(["pack", str(tmp_path / "set"), "--out", str(tmp_path / "parts")])
    main(["join", str(tmp_path / "parts"), "--out", str(tmp_path / "back")])
    assert "1 files" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "nowhere"), "--out", str(tmp_path / "p")])
    assert ended.value.code == 2
    assert "is no folder" in capfd.readouterr().err


def test_cifar_travels_in_parts_of_the_default_size(tmp_path: Path, data_root: Path):
    source = data_root / "cifar10"
    if not source.is_dir():
        pytest.skip(f"no CIFAR-10 in {data_root}")
    index = pack(source, tmp_path / "parts")
    assert 3 <= len(index) <= 4
    join(tmp_path / "parts", tmp_path / "cifar10")
    assert all(not check.fault for check in data.verify("cifar10", tmp_path / "cifar10"))
