"""Less than float32, behind its test: what is set, what is measured, what is refused. Rounded factors stand in for a GPU's tensor cores."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from realdata import distill, machine, parity
from realdata.config import DistillConfig
from realdata.machine import Runtime, arithmetic, set_up
from realdata.networks import ConvNetConfig
from realdata.parity import BOUND, Parity
from realdata.preprocess import fit
from realdata.task import Task, build, training_split
from sims.lab.files import RunError

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 300, "test": 100}
CPU = torch.device("cpu")
CONTRACTIONS = {"aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm"}


class Rounded(TorchDispatchMode):
    """Factors of contractions rounded to so many significant bits."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.calls = 0

    def _rounded(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return x
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp(torch.round(mantissa * 2**self.bits) / 2**self.bits, exponent)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in CONTRACTIONS:
            self.calls += 1
            args = tuple(self._rounded(x) for x in args)
        return func(*args, **(kwargs or {}))


def config_of(**changes: Any) -> DistillConfig:
    return DistillConfig(
        "mnist", network=ConvNetConfig(2, 8), transform="standardise", horizon=30, window=12, real_batch=64, init_norm=25.0, **changes
    )


def task_of(root: Path, **changes: Any) -> Task:
    config = config_of(**changes)
    split = training_split(config, str(root))
    return build(config, split, fit("standardise", split.fitted.images), CPU, 64)


METHODS: dict[str, dict[str, Any]] = {
    "rat-bptt": {},
    "low rank": {"hessian_rank": 2},
    "labels": {"learn_labels": True},
}


@pytest.mark.parametrize("name", METHODS)
def test_eleven_bits_pass_and_few_do_not(name: str, root: Path):
    task = task_of(root, **METHODS[name])
    fine = Rounded(11)
    found = parity.parity(task, 0, fine)
    assert fine.calls > 0
    assert found.passed, found
    assert found.inner > 1e-5, "as if nothing had been rounded"
    coarse = parity.parity(task, 0, Rounded(4))
    assert not coarse.passed, coarse
    assert coarse.meta > 4 * found.meta


def test_the_same_arithmetic_has_no_error(root: Path):
    assert parity.parity(task_of(root), 0, arithmetic("float32")) == Parity(0.0, 0.0)


@pytest.mark.parametrize("found", [Parity(2 * BOUND, 0.0), Parity(0.0, 2 * BOUND), Parity(float("nan"), 0.0), Parity(0.0, float("inf"))])
def test_either_error_fails_and_so_does_what_is_no_number(found: Parity, monkeypatch: pytest.MonkeyPatch, root: Path):
    assert not found.passed
    monkeypatch.setattr(parity, "parity", lambda *args: found)
    with pytest.raises(RunError, match="leave out --precision"):
        parity.tested(task_of(root), 0, "tf32")


def switches() -> tuple[bool, bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()


def test_float32_is_strict_and_comes_back_after_an_error():
    set_up(Runtime())
    assert switches() == (False, False, "highest")
    with arithmetic("tf32"):
        assert switches() == (True, True, "high")
    assert switches() == (False, False, "highest")
    with pytest.raises(KeyboardInterrupt), arithmetic("tf32"):
        _stop()
    assert switches() == (False, False, "highest")


def test_it_is_refused_where_it_is_not_tested_or_does_not_exist():
    with pytest.raises(RunError, match="distill, compare and plan"):
        set_up(Runtime(precision="tf32"))
    with pytest.raises(RunError, match="of GPUs"):
        set_up(Runtime(device="cpu", precision="tf32"), tested=True)
    with pytest.raises(RunError, match="unknown precision 'bf16'"):
        Runtime(precision="bf16")


def test_a_run_is_tested_first_and_leaves_its_errors(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole way of a run on a GPU, its arithmetic left out."""
    monkeypatch.setattr(distill, "set_up", lambda runtime, tested: CPU)
    seen = []
    monkeypatch.setattr(distill, "_loop", lambda *args: seen.append(switches()) or _stop())
    with pytest.raises(KeyboardInterrupt):
        distill.run(config_of(outer_steps=1), root, tmp_path / "run", Runtime(precision="tf32"))
    assert seen == [(True, True, "high")]
    assert switches() == (False, False, "highest")
    assert json.loads((tmp_path / "run" / distill.PARITY).read_text()) == dataclasses.asdict(Parity(0.0, 0.0))
    assert json.loads((tmp_path / "run" / "env.json").read_text())["backend"].endswith("tf32")


def _stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_tf32_rounds_and_passes(root: Path):
    config = config_of()
    split = training_split(config, str(root))
    machine.set_up(Runtime(device="cuda"))
    task = build(config, split, fit("standardise", split.fitted.images), torch.device("cuda"), 64)
    found = parity.tested(task, 0, "tf32")
    assert np.isfinite(found.meta)
    assert found.inner > 1e-6, "as if nothing had been rounded"
