"""One teacher gradient at d = 1024, L = 512 from N streamed samples, float32, least squares: prints peak megabytes and CPU seconds.

    python tests/sims/streaming_memory.py N [N ..]       each N in turn in one process, so that a later line can only add to the peak
N = 67108864 = 64 d^2 is the size to reach (6.9e10 numbers a pass, two passes).
"""

import sys
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from sims.arrays import GaussianStream
from sims.two_phase import fit_residual, teacher_rows
from theory.multi_index import as_backend, draw_model
from theory.two_layer import symmetric_init


def main(sizes: list[int], d: int = 1024, width: int = 512) -> None:
    rng = np.random.default_rng(0)
    stream = GaussianStream(np.random.SeedSequence(1), 1, d, dtype="float32")
    model = as_backend(draw_model(d, 4, "cubic", rng), stream.xp, np.float32)
    rows = symmetric_init(d, width, rng)[1][: width // 2].astype(np.float32)
    for n in sizes:
        began = time.process_time()
        stream = GaussianStream(np.random.SeedSequence(1), n, d, dtype="float32")
        teacher_rows(model, stream, fit_residual(model, stream), rows)
        print(peak_megabytes(), time.process_time() - began, flush=True)


def peak_megabytes() -> float:
    """Of this process alone: getrusage would tell the parent's where that is more."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    with threadpool_limits(1):
        main([int(word) for word in sys.argv[1:]])
