"""Trials on several local processes: an executor for `sims.lab.sweep`.

Each worker runs its numerical libraries on one thread: many small matrix products gain nothing from more, and threads that wait
for each other on busy cores lose a factor of ten and more.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from threadpoolctl import threadpool_limits

from sims.lab.files import RunError
from sims.lab.sweep import Config, Executor, Outcome, Trial, attempt, serial

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def local_executor(workers: int) -> Executor:
    """`workers` processes with one thread each; 1 runs the trials here, on one thread as well."""
    if workers < 1:
        raise RunError(f"a sweep needs at least one worker: workers={workers}")
    return _single_threaded if workers == 1 else lambda fn, configs: _pool(workers, fn, configs)


def _single_threaded(fn: Trial, configs: Sequence[Config]) -> Iterator[tuple[int, Outcome]]:
    with threadpool_limits(1):
        yield from serial(fn, configs)


def _pool(workers: int, fn: Trial, configs: Sequence[Config]) -> Iterator[tuple[int, Outcome]]:
    if not configs:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(configs)), multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    )
    kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # read by a library when a worker first loads it
    try:
        futures: dict[Future[Outcome], int] = {pool.submit(attempt, fn, config): i for i, config in enumerate(configs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunError("a worker process died (out of memory, or killed): finished trials are kept, the same command continues") from error
    finally:
        # Waiting, because the interpreter's own exit would race with the pool's thread for its pipe.
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker(parent: int) -> None:
    """No Ctrl-C of its own, and an end when the parent is gone (a killed parent cannot say so)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
