"""The teacher pass against the machine's own matrix-product rate, in one run: the share is stored with the timing."""

import time

import numpy as np
import pytest

from sims.arrays import GaussianStream
from sims.two_phase import fit_residual, teacher_rows
from theory.multi_index import draw_model


def square_rate(dtype: str, n: int = 2048, repeats: int = 3) -> float:
    """Floating-point operations a second of an n x n matrix product, best of a few."""
    a = np.random.default_rng(0).standard_normal((n, n)).astype(dtype)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return 2.0 * n**3 / min(times)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "d"), [(1024, 64), (1024, 256), (4096, 256)])
def test_teacher_rows_share_of_the_square_product_rate(benchmark, rows: int, d: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    model = draw_model(d, 4, "cubic", rng)
    stream = GaussianStream(np.random.SeedSequence(1), 32768, d, dtype=dtype)
    residual = fit_residual(model, stream, "none")
    w = rng.standard_normal((rows, d)).astype(dtype)
    rate = square_rate(dtype)
    benchmark.pedantic(teacher_rows, (model, stream, residual, w), rounds=3, warmup_rounds=1)
    share = 4.0 * stream.n * rows * d / benchmark.stats.stats.min / rate
    benchmark.extra_info["share_of_square_rate"] = round(share, 3)
    print(f"\nteacher rows L/2 J = {rows}, d = {d}, {dtype}: {share:.2f} of the square product rate, generation included")
