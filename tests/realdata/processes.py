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


def decode_and_whiten(tree: Path, cache: Path) -> None:
    """The training pictures of a tree, 8 a chunk, and their whitening, both kept below `cache`; in a process of its own, as `started`."""
    from realdata import data, preprocess
    from realdata.data import cache as module

    os.environ["DISTILL_CACHE"] = str(cache)
    module.CHUNK = 8
    preprocess.fit("zca", data.load("folders:3x8x8:2", tree, "train").images, data.cache_folder())


def rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells each rank."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
