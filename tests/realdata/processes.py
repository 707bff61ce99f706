"""Processes of the program `python -m realdata` for tests that kill or join them.

They are forked from a server that has the imports behind it and no other state, so that one costs milliseconds and not the seconds of
importing torch; each is a process of its own, with its own process id, memory and end.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["realdata.__main__"])


def carry_out(words: list[str], environment: Mapping[str, str], errors: Path | None) -> None:
    """The command, in the process that it is run in."""
    from realdata.__main__ import main

    os.environ.update(environment)
    target = os.open(os.devnull if errors is None else errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(target, stream.fileno())
    main(words)


def started(words: list[str], environment: Mapping[str, str] | None = None, errors: Path | None = None) -> ForkServerProcess:
    """A process that carries the command out; what it says goes to the file `errors`, or nowhere."""
    process = CONTEXT.Process(target=carry_out, args=(words, {**os.environ, **(environment or {})}, errors))
    process.start()
    return process


def rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells each rank."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
