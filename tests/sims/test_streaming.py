"""The streamed passes: blocks inside a chunk change nothing, and memory does not grow with the number of samples."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sims import two_phase
from sims.arrays import GaussianStream
from sims.two_phase import fit_residual, teacher_rows
from theory.multi_index import draw_model

PROGRAM = Path(__file__).parent / "streaming_memory.py"


@pytest.mark.parametrize(("chunk", "block"), [(40, 7), (40, 40), (200, 64), (7, 100)])
def test_blocks_inside_a_chunk_give_the_sum_over_all_samples(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    monkeypatch.setattr(two_phase, "BLOCK_BYTES", 1)
    monkeypatch.setattr(two_phase, "LEAST_BLOCK", block)
    rng = np.random.default_rng(0)
    model, stream = draw_model(6, 2, "cubic", rng, noise=0.3), GaussianStream(np.random.SeedSequence(1), 123, 6, chunk=chunk)
    w, residual = rng.standard_normal((5, 6)), fit_residual(model, stream)
    x, xi = stream.head(123)
    direct = (residual(x, model.labels(x, xi))[:, None] * (x @ w.T >= 0)).T @ x / 123
    np.testing.assert_allclose(teacher_rows(model, stream, residual, w), direct, rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory in /proc")
def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    """d = 1024, L = 512 at reduced N; the peak of N = 64 d^2 is this one."""
    words = [sys.executable, str(PROGRAM), "16384", "49152"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    few, many = (float(line.split()[0]) for line in done.stdout.splitlines())
    assert many <= 1.1 * few, f"peak {few:.0f} MB at N = 16384, {many:.0f} MB at N = 49152"
    assert many < 1024
