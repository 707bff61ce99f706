"""The simulator's streamed passes against the machine's own matrix-product rate of the same run, their cost in N, L and d, and memory.

    same-shape share   4 N K d operations of the teacher pass (K = L/2 rows) over its time, over the rate of its two products on stored data
    square share       the same over the rate of an n x n product
Generation is included, the least-squares pass stands apart. One thread, as in every worker. Nothing is asserted: the targets are printed
beside the figures, and both are stored with --benchmark-json.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from sims.arrays import GaussianStream, cupy_device, is_cupy, namespace, to_numpy
from sims.two_phase import Residual, fit_residual, teacher_rows
from theory.multi_index import MultiIndexModel, as_backend, draw_model

DTYPES = ("float32", "float64")
SAME_SHAPE_TARGET, SQUARE_TARGET = 0.5, 0.6  # for L = 1024, and for L >= 4096 with d >= 256


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    if request.param == "cupy" and cupy_device() is None:
        pytest.skip("no CUDA device for CuPy")
    return namespace(request.param)


def seconds(xp: Any, work: Callable[[], Any]) -> float:
    """Time of one call: of this thread's processor, so that other work on the machine counts little, or of the device by the clock."""
    clock = time.perf_counter if is_cupy(xp) else time.thread_time
    began = clock()
    work()
    if is_cupy(xp):
        xp.cuda.Device().synchronize()
    return clock() - began


def normals(xp: Any, shape: tuple[int, ...], dtype: str) -> Any:
    return xp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.dtype(dtype)))


def square_product(xp: Any, dtype: str) -> tuple[float, Callable[[], Any]]:
    """(operations, product) of a square matrix."""
    n = 8192 if is_cupy(xp) else 1024
    a = normals(xp, (n, n), dtype)
    return 2.0 * n**3, lambda: a @ a


def same_shape_products(xp: Any, n: int, d: int, k: int, dtype: str) -> tuple[float, Callable[[], Any]]:
    """(operations, the two products of the teacher pass on n samples at rest)."""
    x, w = normals(xp, (n, d), dtype), normals(xp, (k, d), dtype)
    z = x @ w.T
    return 4.0 * n * d * k, lambda: (xp.matmul(x, w.T, out=z), z.T @ x)


def problem(xp: Any, n: int, d: int, k: int, dtype: str) -> tuple[MultiIndexModel, GaussianStream, Residual, Any]:
    """What the teacher pass takes: K = k rows, N = n samples."""
    model = as_backend(draw_model(d, 4, "cubic", np.random.default_rng(0)), xp, getattr(xp, dtype))
    on_device = {"native": True, "chunk": 2**17} if is_cupy(xp) else {}
    stream = GaussianStream(np.random.SeedSequence(1), n, d, xp, dtype, **on_device)
    return model, stream, fit_residual(model, stream, "none"), normals(xp, (k, d), dtype)


def check_rows(arguments: tuple[Any, ...], rows: Any, dtype: str) -> None:
    """The first rows beside the sum over all samples at once; in single precision a gate at zero may fall the other way: 1/N each."""
    model, stream, residual, w = arguments
    x, xi = stream.head(stream.n)
    y, w = residual(x, model.labels(x, xi)), w[:4, :]
    direct = to_numpy(((x @ w.T >= 0) * y[:, None]).T @ x) / stream.n
    error = np.linalg.norm(to_numpy(rows)[:4] - direct) / np.linalg.norm(direct)
    assert error <= (4 / np.sqrt(stream.n) if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1024, 4096])
@pytest.mark.parametrize("d", [64, 256, 1024])
def test_teacher_pass_against_matrix_products(benchmark: Any, xp: Any, d: int, width: int, dtype: str) -> None:
    k, n = width // 2, 2**20 if is_cupy(xp) else 2**14
    arguments = problem(xp, n, d, k, dtype)
    references = square_product(xp, dtype), same_shape_products(xp, arguments[1].chunk, d, k, dtype)
    work = [*(call for _, call in references), lambda: teacher_rows(*arguments), lambda: fit_residual(*arguments[:2], "ols")]
    # In turns, so that a change of the machine's speed meets all of them.
    times = np.min([[seconds(xp, call) for call in work] for _ in range(5)], axis=0)
    square, same = (operations / t for (operations, _), t in zip(references, times[:2], strict=True))
    rate = 4.0 * n * d * k / times[2]
    check_rows(arguments, teacher_rows(*arguments), dtype)
    shares = {"same_shape": rate / same, "square": rate / square, "least_squares_pass_over_teacher_pass": times[3] / times[2]}
    assert all(np.isfinite(value) and value > 0 for value in shares.values())
    benchmark.extra_info |= {name: round(float(value), 3) for name, value in shares.items()} | {"L": width, "d": d, "dtype": dtype}
    benchmark.pedantic(work[2], rounds=1)
    reached = shares["same_shape"] >= SAME_SHAPE_TARGET if width == 1024 else shares["square"] >= SQUARE_TARGET if d >= 256 else "no target"
    print(
        f"\n{'cupy' if is_cupy(xp) else 'numpy'} {dtype} L = {width}, d = {d}: {shares['same_shape']:.2f} of the same-shape products, "
        f"{shares['square']:.2f} of the square one; target reached: {reached}; least-squares pass {times[3] / times[2]:.2f} x this one"
    )


SIZES = {"N": (2**13, 2**14, 2**15), "L": (512, 1024, 2048, 4096), "d": (128, 256, 512, 1024)}
BASE = {"N": 2**13, "L": 2048, "d": 256}


@pytest.mark.parametrize("along", SIZES)
def test_cost_is_linear(benchmark: Any, along: str) -> None:
    np_ = namespace("numpy")
    cases = [BASE | {along: size} for size in SIZES[along]]
    calls = [problem(np_, case["N"], case["d"], case["L"] // 2, "float32") for case in cases]
    times = np.min([[seconds(np_, lambda a=a: teacher_rows(*a)) for a in calls] for _ in range(4)], axis=0)
    slopes = np.diff(np.log(times)) / np.diff(np.log(SIZES[along]))
    slope = float(np.polyfit(np.log(SIZES[along]), np.log(times), 1)[0])
    benchmark.extra_info |= {"slope": round(slope, 3), "seconds": [round(float(t), 4) for t in times], "sizes": list(SIZES[along])}
    rows = benchmark.pedantic(lambda: teacher_rows(*calls[0]), rounds=1)
    check_rows(calls[0], rows, "float32")
    assert np.all(np.isfinite(slopes))
    print(
        f"\nteacher pass, time against {along} = {SIZES[along]}: log-log slope {slope:.2f}, between neighbours "
        f"{', '.join(f'{local:.2f}' for local in slopes)} (linear: 1; drawing the samples costs the same at every L)"
    )


STREAMING = Path(__file__).parents[1] / "sims" / "streaming_memory.py"


@pytest.mark.parametrize("share", [0.0005, 0.01])
def test_a_gradient_at_64_d_squared_samples(benchmark: Any, share: float) -> None:
    """One teacher gradient at d = 1024, L = 512 over a share of N = 64 d^2 (share = 1 is the whole: run streaming_memory.py by hand)."""
    n = int(share * 64 * 1024**2)
    words = [sys.executable, str(STREAMING), str(n)]
    done = benchmark.pedantic(lambda: subprocess.run(words, capture_output=True, text=True, check=True), rounds=1)
    megabytes, taken = map(float, done.stdout.split())
    assert 0 < megabytes < 4096, "4 GB are allowed at any N"
    whole = taken / share / 3600
    benchmark.extra_info |= {"samples": n, "peak_megabytes": megabytes, "seconds": taken, "hours_for_all": round(whole, 2)}
    print(f"\nN = {n}: peak {megabytes:.0f} MB, {taken:.1f} s; all of N = 64 d^2 on one core: about {whole:.1f} h")
