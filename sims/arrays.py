"""Where arrays live and where Gaussian samples come from: namespace, host and device moves, chunked streams.

A stream of N samples is never stored: chunk k has its own child of the stream's seed and can be drawn again at any time, so every
pass over the data sees the same samples with O(chunk) memory. Draws are NumPy's on every backend but `cupy-native`, where the device's
own generator makes other samples and no chunk crosses from the host.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import array_api_compat.numpy as np_compat
import numpy as np

from theory.distill.leaves import Array

BACKENDS = ("auto", "numpy", "cupy", "cupy-native")
DTYPES = ("float32", "float64")


class BackendError(ValueError):
    """The asked-for backend cannot run here."""


def cupy_device() -> str | None:
    """Name of the CUDA device that CuPy sees, or None."""
    try:
        import cupy  # pyright: ignore[reportMissingImports]

        if cupy.cuda.runtime.getDeviceCount() < 1:
            return None
        return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    except Exception:  # CuPy raises many kinds where driver or device is missing
        return None


def namespace(backend: str) -> Any:
    """The array namespace of a backend: `auto` is CuPy where a device answers, else NumPy; `cupy-native` draws on the device too."""
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "numpy":
        return np_compat
    if cupy_device() is None:
        if backend != "auto":
            raise BackendError(f"backend {backend!r} needs CuPy and a CUDA device; install the gpu extra or use --backend numpy")
        return np_compat
    import array_api_compat.cupy as cp_compat

    return cp_compat


def backend_name(backend: str) -> str:
    """The backend that `backend` comes to here: numpy, cupy or cupy-native."""
    found = "cupy" if is_cupy(namespace(backend)) else "numpy"
    return backend if draws_on_device(backend) else found


def draws_on_device(backend: str) -> bool:
    """Whether samples are drawn by the device's own generator."""
    return backend == "cupy-native"


def runtime_words(backend: str) -> str:
    """The backend with its device, for the record of a run: "numpy", or "cupy: NVIDIA H200"."""
    name = backend_name(backend)
    return name if name == "numpy" else f"{name}: {cupy_device()}"


def is_cupy(xp: Any) -> bool:
    """Whether xp is the CuPy namespace."""
    return xp.__name__.endswith("cupy")


def to_numpy(x: Array) -> np.ndarray:
    """The array on the host."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def child(seed: np.random.SeedSequence, *key: int) -> np.random.SeedSequence:
    """The descendant of a seed under a key. Unlike `seed.spawn` it keeps no count: the same key gives the same child."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *key))


@dataclass(frozen=True, eq=False)
class GaussianStream:
    """N samples x ~ N(0, I_d) with label-noise draws xi ~ N(0, 1), in chunks (x (n, d), xi (n,))."""

    seed: np.random.SeedSequence
    n: int
    d: int
    xp: Any = np_compat
    dtype: str = "float64"
    chunk: int = 8192
    native: bool = False

    def __post_init__(self) -> None:
        if self.n < 1 or self.d < 1 or self.chunk < 1:
            raise ValueError(f"a stream needs N >= 1 samples, d >= 1 and chunk >= 1: N={self.n}, d={self.d}, chunk={self.chunk}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        if self.native and not is_cupy(self.xp):
            raise ValueError("native draws need the CuPy backend")

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for k, start in enumerate(range(0, self.n, self.chunk)):
            yield self._draw(k, min(self.chunk, self.n - start))

    def _draw(self, k: int, n: int) -> tuple[Array, Array]:
        seeds = child(self.seed, k, 0), child(self.seed, k, 1)
        dtype: Any = np.dtype(self.dtype)
        if self.native:
            import cupy  # pyright: ignore[reportMissingImports]

            x_rng, xi_rng = (cupy.random.Generator(cupy.random.Philox4x3210(int(c.generate_state(1, np.uint64)[0]))) for c in seeds)
            return x_rng.standard_normal((n, self.d), dtype=dtype), xi_rng.standard_normal((n,), dtype=dtype)
        x_rng, xi_rng = (np.random.default_rng(seed) for seed in seeds)
        x, xi = x_rng.standard_normal((n, self.d), dtype=dtype), xi_rng.standard_normal(n, dtype=dtype)
        return (x, xi) if self.xp is np_compat else (self.xp.asarray(x), self.xp.asarray(xi))

    def head(self, n: int) -> tuple[Array, Array]:
        """The first n samples as one pair of arrays."""
        if not 1 <= n <= self.n:
            raise ValueError(f"the stream has N={self.n} samples: n={n}")
        x, xi = zip(*islice(self, math.ceil(n / self.chunk)), strict=True)
        return self.xp.concat(x, axis=0)[:n, :], self.xp.concat(xi, axis=0)[:n]
