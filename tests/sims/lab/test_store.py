"""The trial store: what goes in comes out bit for bit, what is damaged counts as absent."""

import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.lab import store as store_module
from sims.lab.store import RESERVED, TrialStore, trial_key

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = st.text("abcdrLJM1_", min_size=1, max_size=6)
SCALARS = st.none() | st.booleans() | INTS | FLOATS | TEXT
LISTS = (
    st.lists(FLOATS | st.none(), max_size=5) | st.lists(INTS, max_size=5) | st.lists(st.booleans(), max_size=3) | st.lists(TEXT, max_size=3)
)
CONFIGS = st.dictionaries(NAMES.map("c_".__add__), SCALARS | LISTS, max_size=5)
RESULTS = st.dictionaries(NAMES.map("r_".__add__), SCALARS | LISTS, max_size=5)


def bits(value: Any) -> Any:
    """Equal exactly when type and every bit are (0.0 and -0.0 differ, 1 and 1.0 differ)."""
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    return struct.pack("d", value) if isinstance(value, float) else (type(value), value)


@given(config=CONFIGS, result=RESULTS)
def test_round_trip_is_bit_identical(config: dict[str, Any], result: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        put = TrialStore(folder).put("risk", config, result)
        again = TrialStore(folder)
        got = again.get("risk", config)
        assert got is not None
        assert bits(got) == bits(put)
        assert {name: bits(got[name]) for name in config | result} == bits(config | result)
        assert got["failed"] is None
        assert again.rows("risk") == [got]
        assert again.rows("other") == []
        assert not again.has("other", config)


@given(config=CONFIGS, data=st.data())
def test_key_ignores_the_order_of_names(config: dict[str, Any], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(config.items()))))
    key = trial_key("risk", config)
    assert trial_key("risk", shuffled) == key
    assert trial_key("risk2", config) != key
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")


@given(one=CONFIGS, other=CONFIGS)
def test_different_configurations_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (trial_key("risk", one) == trial_key("risk", other)) == (bits(one) == bits(other))


def test_key_tells_versions_and_number_types_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    key = trial_key("risk", {"r": 1})
    assert trial_key("risk", {"r": 1.0}) != key
    assert trial_key("risk", {"r": "1"}) != key
    assert trial_key("risk", {"r": np.int64(1)}) == key
    assert trial_key("risk", {"r": (1, 2)}) == trial_key("risk", {"r": [1, 2]}) == trial_key("risk", {"r": np.array([1, 2])})
    monkeypatch.setattr(store_module, "RESULT_SCHEMA", store_module.RESULT_SCHEMA + 1)
    assert trial_key("risk", {"r": 1}) != key
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "package_version", lambda: "99.0")
    assert trial_key("risk", {"r": 1}) != key


def test_another_version_is_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrialStore(tmp_path)
    store.put("risk", {"r": 1}, {"v": 0.5})
    monkeypatch.setattr(store_module, "package_version", lambda: "99.0")
    assert not store.has("risk", {"r": 1})
    assert store.rows("risk") == []


def test_numpy_values_are_plain_ones(tmp_path: Path) -> None:
    row = TrialStore(tmp_path).put("risk", {"r": np.int32(2)}, {"v": np.float32(0.1), "curve": np.arange(3.0), "ok": np.bool_(True)})
    assert bits(row | {"version": ""}) == bits(
        {"kind": "risk", "version": "", "failed": None, "r": 2, "v": float(np.float32(0.1)), "curve": [0.0, 1.0, 2.0], "ok": True}
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, -math.inf], np.array([np.nan]), np.float32("inf")])
def test_nan_and_infinity_are_numerical_failures(tmp_path: Path, value: Any) -> None:
    store = TrialStore(tmp_path)
    with pytest.raises(FloatingPointError, match="risk: result v is"):
        store.put("risk", {"r": 1}, {"v": value})
    assert not store.has("risk", {"r": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": 1}, 2**63, [1, "a"], object(), 1j, "\ud800"])
def test_a_configuration_that_cannot_be_stored_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="config: width"):
        trial_key("risk", {"width": value})


@pytest.mark.parametrize("name", ["r", *sorted(RESERVED)])
def test_a_name_used_twice_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=repr(name)):
        TrialStore(tmp_path).put("risk", {"r": 1}, {name: 2.0})


def stored(folder: Path) -> tuple[TrialStore, dict[str, Any], Path]:
    store = TrialStore(folder)
    row = store.put("risk", {"r": 2, "d": 64}, {"v": 0.25, "curve": [1.0, None, 0.5]})
    (path,) = (folder / "trials").iterdir()
    return store, row, path


@given(data=st.data())
def test_a_damaged_file_counts_as_absent(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, row, path = stored(Path(folder))
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans(), label="truncated"):
            path.write_bytes(whole[:place])
            assert store.get("risk", {"r": 2, "d": 64}) is None
        else:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
            assert store.get("risk", {"r": 2, "d": 64}) in (None, row)  # bytes that carry nothing (padding, writer's name) may change


def test_damage_is_one_line_on_stderr_and_a_new_trial_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, row, path = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    assert store.rows("risk") == []
    assert capsys.readouterr().err == f"warning: {path} is damaged and counts as absent: its trial runs again\n"
    assert store.put("risk", {"r": 2, "d": 64}, {"v": 0.25, "curve": [1.0, None, 0.5]}) == row
    assert store.get("risk", {"r": 2, "d": 64}) == row


def test_temporary_files_of_a_dead_writer_are_not_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, row, path = stored(tmp_path)
    (path.parent / f".{path.name}.ab12.tmp").write_bytes(path.read_bytes()[:50])
    assert store.rows("risk") == [row]
    assert capsys.readouterr().err == ""


def test_the_same_trial_makes_the_same_bytes(tmp_path: Path) -> None:
    _, _, one = stored(tmp_path / "a")
    _, _, other = stored(tmp_path / "b")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()
