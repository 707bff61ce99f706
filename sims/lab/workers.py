"""Trials on worker processes: executors for `sims.lab.sweep`, here in this process or through a Dask scheduler, local or remote.

    here       one process, no Dask
    local      W processes of one thread each on this machine, with a scheduler that lives and dies with this process
    cluster    whatever workers a running scheduler has, also while it gains or loses some

A worker that dies has its trials run again elsewhere. Numerical libraries run on one thread: many small matrix products gain nothing
from more, and threads that wait for each other on busy cores lose a factor of ten and more.
"""

import logging
import os
import signal
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any

from threadpoolctl import threadpool_limits

from sims.lab.files import RunError
from sims.lab.store import store_version
from sims.lab.sweep import Config, Executor, Outcome, Task, Trial, attempt, serial

DEATHS = 3  # of its local workers, after which a trial is given up; a scheduler elsewhere has its own rule
AHEAD = 3  # trials handed to the scheduler for every worker thread, so that none waits for the next
REFRESH = 2.0  # seconds after which workers that joined or left are counted again
PATIENCE = 30  # seconds for a scheduler to answer, and then for it to have a worker

# Trials wait at the scheduler: one that waits on a worker would share the blame when that worker dies.
# Dask's own environment for workers also makes the allocator give memory back at every turn, at four times the processor time of a trial.
SETTINGS = {
    "distributed.scheduler.allowed-failures": DEATHS - 1,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1),
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
}
MISSING = "sweeps on several workers need the cluster extra: pip install 'distillation-laws[cluster]', or use --workers 1"
LOST = "the connection to the workers' scheduler was lost: finished trials are kept, the same command continues"


def executor_for(workers: int = 1, scheduler: str | None = None) -> Executor:
    """Trials here (one worker), on that many local processes, or on the cluster whose scheduler is at an address tcp://host:port.

    Nothing is started before there is a trial to run. RunError, where it is called, for a count below 1 and for a missing extra.
    """
    if workers < 1:
        raise RunError(f"a sweep needs at least one worker: workers={workers}")
    if scheduler is None and workers == 1:
        return _here
    if find_spec("distributed") is None:
        raise RunError(MISSING)
    connect = (lambda: _cluster(scheduler)) if scheduler else (lambda: _local(workers))
    return lambda tasks: _through(connect, tasks)


def _here(tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
    with threadpool_limits(1):
        yield from serial(tasks)


def _through(connect: Callable[[], AbstractContextManager[Any]], tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
    if not tasks:
        return
    from distributed import KilledWorker

    killers: list[tuple[int, Config]] = []
    with connect() as client:
        for i, error, outcome in _completed(client, tasks):
            if isinstance(error, KilledWorker):
                killers.append((error.allowed_failures + 1, tasks[i][1]))
            elif isinstance(error, ImportError):
                raise RunError(f"a worker lacks what the trials need ({error}): install the same version there") from error
            elif error is not None:
                raise error
            elif outcome is not None:
                yield i, outcome
    if killers:
        (deaths, config), more = killers[0], f" (and {len(killers) - 1} more)" if len(killers) > 1 else ""
        raise RunError(
            f"{deaths} worker processes died (out of memory?) on trial {dict(config)}{more}; "
            "all other trials are stored, the same command tries this one again"
        )


def _completed(client: Any, tasks: Sequence[Task]) -> Iterator[tuple[int, BaseException | None, Outcome | None]]:
    """(index, error, outcome) of each task as it ends, with at most AHEAD tasks a worker thread at the scheduler at any time."""
    run, version, sent, counted, room = uuid.uuid4().hex, store_version(), 0, -REFRESH, 0
    running: dict[Any, int] = {}
    while running or sent < len(tasks):
        try:
            if time.monotonic() - counted > REFRESH:
                room, counted = AHEAD * max(1, sum(client.nthreads().values())), time.monotonic()
            new = range(sent, min(len(tasks), sent + max(0, room - len(running))))
            if new:
                columns = zip(*((version, *tasks[i]) for i in new), strict=True)
                futures = client.map(_on_worker, *columns, key=[(run, i) for i in new], pure=False)
                running.update(zip(futures, new, strict=True))
                sent = new.stop
            errors = {future: future.exception() if future.status == "error" else None for future in _ended(running)}
            outcomes = client.gather([future for future, error in errors.items() if error is None])
        except (CancelledError, OSError) as error:
            raise RunError(LOST) from error
        results = iter(outcomes)
        for future, error in errors.items():
            yield running.pop(future), error, None if error else next(results)


def _ended(futures: Collection[Any]) -> Collection[Any]:
    """Those that have ended, after a wait of at most REFRESH for the first one."""
    from distributed import wait

    try:
        found: Any = wait(list(futures), timeout=REFRESH, return_when="FIRST_COMPLETED")
    except TimeoutError:
        return ()
    return found.done


def _on_worker(version: str, fn: Trial, config: Config) -> Outcome:
    if store_version() != version:
        raise RunError(f"a worker has version {store_version()}, this process {version}: install the same version on both")
    with threadpool_limits(1):
        return attempt(fn, config)


@contextmanager
def _local(workers: int) -> Iterator[Any]:
    with _quiet(), _kept_environment():
        import dask
        from distributed import Client, LocalCluster

        quiet: dict[str, Any] = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
        with dask.config.set(SETTINGS):
            # No memory limit of Dask's own: a worker that pauses near it looks like a hang.
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, preload=[__name__], **quiet)
        try:
            with Client(cluster) as client:
                yield client
        except BaseException:
            for nanny in cluster.workers.values():  # not to wait for trials that have begun
                nanny.close_gracefully()
                if nanny.pid:
                    os.kill(nanny.pid, signal.SIGKILL)
            raise
        finally:
            cluster.close()


def dask_setup(worker: Any) -> None:
    """Called by Dask in a new local worker: Ctrl-C at the terminal reaches it too, and is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    with _quiet():
        from distributed import Client

        try:
            client = Client(address, timeout=PATIENCE)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"no Dask scheduler answers at {address!r} within {PATIENCE} s: check --scheduler tcp://host:port") from error
        with client:
            try:
                client.wait_for_workers(1, timeout=PATIENCE)
            except TimeoutError as error:
                raise RunError(f"the scheduler at {address} has no workers: start one with `dask worker {address} --nthreads 1`") from error
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of Dask in a run's output: what matters of them becomes an outcome or an error here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="distributed")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _kept_environment() -> Iterator[None]:
    """Dask sets the number of threads in this process's environment for its workers to inherit."""
    kept = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
