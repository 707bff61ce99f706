"""One step's exact product (Hc and Mc) beside the plain step, in one run: ConvNet-3 of width 128, instance norm, 32 pixels, float32.

Every way is timed in turn, round after round, so that a disturbance meets all of them; ratios are of medians, the smallest times beside
them. The plain step is the gradient from PyTorch's own kernels. Peak bytes are what one call holds at most beyond its arguments.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from realdata.compare.probe import peak_bytes
from realdata.compiled import compiler_here
from realdata.networks import network
from realdata.second_order import derivatives
from tests.oracles import relative_error

ROUNDS = {10: 20, 100: 8}


def now() -> float:
    """Seconds, when everything asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = now()
            way()
            if turn:
                times[name].append(now() - began)
    return times


@pytest.mark.parametrize("images", [10, 100])
def test_product_as_a_multiple_of_the_plain_step(benchmark, images: int) -> None:
    module, drawn = network("convnet3", (3, 32, 32), 10), torch.Generator().manual_seed(0)
    theta = tuple(p.detach().clone() for p in module.parameters())
    c = tuple(torch.randn(p.shape, generator=drawn) for p in theta)
    batch = (torch.randn(images, 3, 32, 32, generator=drawn),)
    p = torch.eye(10)[torch.arange(images) % 10]
    plain, reverse = derivatives(module), derivatives(module, "autograd")
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.gradient(theta, batch, p),
        "double backward": lambda: reverse.products(theta, batch, p, c),
        "fast": lambda: plain.products(theta, batch, p, c),
    }
    found = {"fast": plain.products(theta, batch, p, c)}
    if compiler_here(torch.device("cpu")):
        compiled = derivatives(module, compiled=True)
        ways["fast, compiled"] = lambda: compiled.products(theta, batch, p, c)
        ways["plain, compiled"] = lambda: compiled.gradient(theta, batch, p)
        found["fast, compiled"] = compiled.products(theta, batch, p, c)
    expected = reverse.products(theta, batch, p, c)
    times = interleaved(ways, ROUNDS[images])
    unit = statistics.median(times["plain"])
    print(f"\n{images} images, {torch.get_num_threads()} threads, plain step {1e3 * unit:.1f} ms")
    for name, seconds in times.items():
        ratio, least, held = (
            statistics.median(seconds) / unit,
            min(seconds) / min(times["plain"]),
            peak_bytes(ways[name], torch.device("cpu")),
        )
        error = max(map(relative_error, found[name], expected)) if name in found else None
        benchmark.extra_info[name] = {"ratio": ratio, "ratio_of_least": least, "peak_bytes": held, "error": error}
        assert error is None or error < 1e-4, f"{name} is off double backward by {error:.1e}"
        assert held > 0
        words = "" if error is None else f", relative error {error:.1e}"
        print(f"  {name:<16} {ratio:5.2f} x plain (least {least:.2f}), peak {held / 2**20:6.1f} MiB{words}")
    benchmark.pedantic(ways["fast, compiled" if "fast, compiled" in ways else "fast"], rounds=3)
