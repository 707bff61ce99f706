"""The machine that a run works on: its device, its processor threads, and the arithmetic of its contractions.

float32   IEEE single precision in every convolution and matrix product; PyTorch's own default is TensorFloat-32 in convolutions
tf32      TensorFloat-32 on a GPU's tensor cores: factors rounded to 11 significant bits (a relative error up to 2^-11), sums in float32
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from realdata.checks import at_least, one_of
from sims.lab.files import RunError

PRECISIONS = ("float32", "tf32")


@dataclass(frozen=True)
class Runtime:
    """Where and how a run works; nothing here changes what it computes, save that sums round differently on other devices, threads and
    chunks, compiled and at another precision, and that batch norm takes the statistics of a chunk of real images.
    """

    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """Processor threads; 0 leaves it to PyTorch."""
    chunk: int = 32
    """Real images worked on at a time (32 suit a processor, 500 a GPU), and the share of one process under torchrun; with batch
    norm part of what a distillation is: stored in its folder, and the same whenever it goes on."""
    compiled: bool = False
    """Compile the training step, its second-order product and the loss on real images: some minutes at the start, then faster steps (a
    C++ compiler is needed)."""
    precision: str = "float32"
    """Of convolutions and matrix products: float32, or tf32 (a GPU's tensor cores, inputs rounded to 11 bits) in distill, compare and
    plan, where each run is first tested against float32."""
    checkpoint_every: int = 10
    """Updates between two checkpoints."""

    def __post_init__(self) -> None:
        at_least(0, threads=self.threads)
        at_least(1, chunk=self.chunk, checkpoint_every=self.checkpoint_every)
        one_of(PRECISIONS, precision=self.precision)


def device_named(name: str) -> torch.device:
    """The device called `name`; auto is the first CUDA device where there is one, else the processor."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"no device {name!r} here ({str(error).splitlines()[0]}): choose auto, cpu or cuda") from error
    return device


def set_arithmetic(precision: str) -> None:
    """From now on, in the whole process."""
    # Both switches before the second setter, which refuses to tell of a mixture; the compiler asks for all three.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Inside, contractions take `precision`; before and after, float32."""
    set_arithmetic(precision)
    try:
        yield
    finally:
        set_arithmetic("float32")


def set_up(runtime: Runtime, *, tested: bool = False) -> torch.device:
    """The device, with threads and strict float32 set; `tested`: the command has a parity test, behind which it may take less than that."""
    device = device_named(runtime.device)
    if runtime.precision != "float32" and not tested:
        raise RunError(f"precision={runtime.precision} is tested, and so allowed, in distill, compare and plan: leave out --precision")
    if runtime.precision != "float32" and device.type != "cuda":
        raise RunError(f"precision={runtime.precision} is an arithmetic of GPUs: leave out --precision on the device {device}")
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    set_arithmetic("float32")
    return device
