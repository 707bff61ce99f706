"""A stored state comes back bit for bit, whatever it holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realdata import checkpoint
from realdata.checkpoint import FILE, CurvePoint, RunState, read_checkpoint, write_checkpoint
from sims.lab.files import RunError
from tests.strategies import generators
from theory.distill.distiller import OuterState
from theory.distill.stages import Stage, StageState

numbers = st.floats(allow_nan=False, allow_infinity=False)
points = st.builds(CurvePoint, st.integers(0, 10**9), st.none() | numbers, numbers, numbers, st.none() | numbers, st.none() | numbers)


@st.composite
def states(draw: st.DrawFn) -> RunState:
    rng = draw(generators)
    shapes = draw(st.lists(st.sampled_from([(2, 1, 3, 3), (2, 4), ()]), min_size=1, max_size=3))

    def leaves() -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.asarray(rng.standard_normal(shape), dtype=np.float32)) for shape in shapes)

    slots = tuple(leaves() for _ in range(draw(st.integers(0, 2))))
    average = leaves() if draw(st.booleans()) else None
    profile = draw(st.none() | st.lists(numbers, max_size=4).map(tuple))
    stage = StageState(draw(st.sampled_from(list(Stage))), draw(st.integers(0, 99)), draw(st.none() | numbers))
    outer = OuterState(leaves(), slots, draw(st.none() | numbers), average, draw(st.integers(0, 10**9)), profile, stage)
    curve, losses = draw(st.lists(points, max_size=3)), draw(st.lists(numbers, max_size=3))
    return RunState(outer, leaves(), tuple(curve), tuple(losses), draw(numbers), leaves()[:1] if draw(st.booleans()) else None)


def plain(value: Any) -> Any:
    """Tensors as bytes, so that states compare."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes(), tuple(value.shape), str(value.dtype)
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


@given(state=states())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, state: RunState):
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, state)
    again = read_checkpoint(folder, torch.device("cpu"))
    assert again is not None
    for name in OuterState.__dataclass_fields__:
        assert plain(getattr(again.outer, name)) == plain(getattr(state.outer, name)), name
    for name in RunState.__dataclass_fields__.keys() - {"outer"}:
        assert plain(getattr(again, name)) == plain(getattr(state, name)), name


def test_absent_damaged_and_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert read_checkpoint(tmp_path, torch.device("cpu")) is None
    state = RunState(OuterState((torch.ones(2),), (), None, None, 3), (torch.ones(2),))
    write_checkpoint(tmp_path, state)
    whole = (tmp_path / FILE).read_bytes()
    flips = [whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in range(len(whole))]
    for content in (whole[:-1], whole[:20], b"", whole.replace(b'\\"step\\"', b'\\"stop\\"'), *flips):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(RunError, match="is damaged"):
            read_checkpoint(tmp_path, torch.device("cpu"))
    monkeypatch.setattr(checkpoint, "FORMAT", 9)
    write_checkpoint(tmp_path, state)
    monkeypatch.undo()
    with pytest.raises(RunError, match="is of format 9"):
        read_checkpoint(tmp_path, torch.device("cpu"))
