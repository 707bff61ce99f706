"""The environment record: what has to be known beside a result to obtain it again (commit, versions, machine, device, seed)."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, control groups 2 and 1


def environment(backend: str = "numpy", seed: int | None = None) -> dict[str, Any]:
    """A JSON-ready record of this process. `backend` names runtime and device in words, e.g. "numpy" or "cupy: NVIDIA H200"."""
    commit, modified = _commit()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "backend": backend,
        "commit": commit,
        "modified": modified,
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": cores(),
        "threads": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ
        },
    }


def cores() -> int:
    """Processor cores that this process may use; all of the machine's where the system does not tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less where its container has less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in MEMORY_LIMITS:
        try:
            sizes.append(int(Path(place).read_text()))
        except (OSError, ValueError):  # not there, or the word max
            continue
    return min(sizes)


def versions() -> dict[str, str]:
    """Installed versions of the package and of everything it may depend on, extras included."""
    names = {"distillation-laws"}
    for requirement in metadata.requires("distillation-laws") or ():
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        names |= {match[0]} if match else set()
    found: dict[str, str] = {}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it); (None, None) outside a checkout of this project."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    if shutil.which("git") is None:
        return None, None
    try:
        # A package installed inside some other project's checkout must not record that project's commit.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (subprocess.SubprocessError, OSError):
        return None, None
