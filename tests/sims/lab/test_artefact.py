"""Artefact folders: tensors come back bit for bit, a touched file is named, nothing half-built is ever seen."""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from sims.lab import artefact
from sims.lab.artefact import read_artefact, sealed, unsealed, write_artefact
from sims.lab.files import RunError

CONFIG = {"dataset": "mnist", "ipc": 1, "seed": None}
PNG = b"\x89PNG\r\n\x1a\n"
DTYPES = st.sampled_from(["<f4", "<f8", ">f8", "<i8", "|u1", "|b1", "<f2"])


def sample() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "data.safetensors": {"images": rng.standard_normal((3, 1, 4, 4)), "labels": np.eye(3), "step": np.array(0.01)},
        "transform.safetensors": {"mean": np.zeros(16)},
    }


@given(data=st.data())
def test_tensors_come_back_bit_for_bit(data: st.DataObject) -> None:
    array = data.draw(DTYPES.flatmap(lambda d: nps.arrays(d, nps.array_shapes(min_dims=0, max_dims=3, max_side=4))))
    array = np.where(np.isfinite(array), array, array.dtype.type(0)).astype(array.dtype)
    array = data.draw(st.sampled_from([array, array.T, array[::-1] if array.ndim else array]))
    with tempfile.TemporaryDirectory() as folder:
        write_artefact(Path(folder) / "set", {"data.safetensors": {"x": array}}, "card", CONFIG)
        back = read_artefact(Path(folder) / "set").data["x"]
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.shape == array.shape
    assert back.tobytes() == array.astype(back.dtype).tobytes()


def test_the_folder_holds_what_was_given(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "runs" / "set", sample(), "# Größe\n", CONFIG, {"grid.png": PNG})
    names = {"data.safetensors", "transform.safetensors", "card.md", "config.toml", "grid.png", "SHA256SUMS"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    back = read_artefact(folder)
    assert back.card == "# Größe\n"
    assert back.config == {"dataset": "mnist", "ipc": 1}
    assert back.images == {"grid.png": PNG}
    assert back.data["step"].shape == ()
    assert back.tensors["transform.safetensors"]["mean"].tolist() == [0.0] * 16
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "--check", "--strict", "--status", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


@pytest.mark.parametrize("name", ["data.safetensors", "transform.safetensors", "card.md", "config.toml", "grid.png"])
@pytest.mark.parametrize("blow", ["flip", "truncate", "remove"])
def test_a_touched_file_is_named(tmp_path: Path, name: str, blow: str) -> None:
    folder = write_artefact(tmp_path / "set", sample(), "card", CONFIG, {"grid.png": PNG})
    data = bytearray((folder / name).read_bytes())
    if blow == "remove":
        (folder / name).unlink()
    else:
        data[-1] ^= 1
        (folder / name).write_bytes(data if blow == "flip" else data[:-1])
    with pytest.raises(RunError) as caught:
        read_artefact(folder)
    assert str(folder / name) in str(caught.value)
    assert ("missing" if blow == "remove" else "does not match its checksum") in str(caught.value)


def reseal(folder: Path, *names: str) -> None:
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_a_folder_that_is_no_distilled_set(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="SHA256SUMS is missing"):
        read_artefact(tmp_path / "absent")
    folder = write_artefact(tmp_path / "set", sample(), "card", CONFIG)
    reseal(folder, "card.md", "config.toml")
    with pytest.raises(RunError, match=r"does not list data\.safetensors"):
        read_artefact(folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../other\n")
    with pytest.raises(RunError, match="no checksum of a file beside it"):
        read_artefact(folder)
    (folder / "data.safetensors").write_bytes(b"\x80\x04pickled code")
    reseal(folder, "data.safetensors", "card.md", "config.toml")
    with pytest.raises(RunError, match=r"data\.safetensors is no readable tensor file"):
        read_artefact(folder)


@pytest.mark.parametrize("name", ["data.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link out", "circle", "large"])
def test_only_plain_files_of_the_folder_are_read(tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would block for ever."""
    folder = write_artefact(tmp_path / "set", sample(), "card", CONFIG)
    (folder / name).rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "large":
        (tmp_path / "elsewhere").rename(folder / name)
        monkeypatch.setattr(artefact, "LARGEST", (folder / name).stat().st_size - 1)
    else:
        (folder / name).symlink_to(tmp_path / "elsewhere" if kind == "link out" else folder / name)
    signal.alarm(20)
    try:
        with pytest.raises(RunError, match=f"{name} (is no plain file|is a link|takes more than)"):
            read_artefact(folder)
    finally:
        signal.alarm(0)


@given(data=st.data())
def test_a_sealed_file_gives_back_what_it_was_given_or_nothing(data: st.DataObject) -> None:
    array = data.draw(st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1"]).flatmap(lambda d: nps.arrays(d, nps.array_shapes(min_dims=0))))
    record = data.draw(st.text(st.characters(exclude_categories=["Cs"])))
    content = bytearray(sealed({"x": array, "y": array.T}, record))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        back, text = unsealed(path)
        assert text == record
        assert back["x"].tobytes() == array.tobytes()
        assert (back["y"].dtype, back["y"].shape) == (array.dtype, array.T.shape)
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            back, text = unsealed(path)
        except (ValueError, safetensors.SafetensorError):
            return
        assert (back["x"].tobytes(), back["y"].shape, text) == (array.tobytes(), array.T.shape, record)


def test_an_existing_place_is_kept_unless_told(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "set", sample(), "first", CONFIG)
    with pytest.raises(RunError, match="exists already"):
        write_artefact(folder, sample(), "second", CONFIG)
    assert read_artefact(folder).card == "first"
    write_artefact(folder, sample(), "second", CONFIG, replace=True)
    assert read_artefact(folder).card == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(RunError, match="exists already"):
        write_artefact(tmp_path / "photos", sample(), "card", CONFIG, replace=True)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def full_at_third(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_third)
    with pytest.raises(RunError, match="disk full"):
        write_artefact(tmp_path / "set", sample(), "card", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"other.safetensors": {}}, ValueError, "needs data.safetensors"),
        ({"data.safetensors": {"x": np.array([1.0, np.nan])}}, FloatingPointError, "x holds NaN"),
        ({"data.safetensors": {"x": np.array(["a"])}}, ValueError, "x has type"),
        ({"data.safetensors": {}, "../data.safetensors": {}}, ValueError, "plain name"),
        ({"data.safetensors": {}, "model.pkl": {}}, ValueError, "ending in .safetensors"),
    ],
)
def test_what_has_no_place_is_refused(tmp_path: Path, tensors: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        write_artefact(tmp_path / "set", tensors, "card", CONFIG)
    assert list(tmp_path.iterdir()) == []
