"""A run folder: one place on disk that belongs to one configuration and, while a run is going, to one process.

DIR/config.toml   the resolved configuration      DIR/env.json   commit, versions, device, seed; later starts under "resumed"
DIR/.lock         held with flock by the running process; the system lets go of it when that process dies, however it dies
DIR/trials/       see sims.lab.store
"""

import fcntl
import functools
import json
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sims.lab.environment import environment
from sims.lab.files import RunError, atomic_write, clean_leftovers, file_error, make_folder, toml_text
from sims.lab.store import TrialStore

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """An open run folder, held until `close` (use it as a context manager)."""

    path: Path
    lock: int

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        resume: bool = True,
        free: Collection[str] = (),
        backend: str = "numpy",
        seed: int | None = None,
        record: bool = True,
    ) -> "RunFolder":
        """Creates the folder or takes up the run that lies in it, and locks it.

        config  what determines the results (nested dicts allowed; a None entry is left out, TOML has no null)
        free    dotted names that may change from start to start, such as "workers": written, never compared
        record  whether this start enters env.json; a program that only reads the trials leaves it as it is
        Raises RunError for a folder in use, of another configuration, of something else, or not writable; with resume=False
        also for one that holds a run already.
        """
        path = Path(path)
        asked = toml_text(config)
        _refuse_foreign(path)
        make_folder(path)
        lock = _take_lock(path)
        try:
            for place in (path, path / "trials", path / "figures"):
                clean_leftovers(place)
            if (path / "config.toml").exists():
                if not resume:
                    raise RunError(f"{path} already holds a run: choose another --out, or resume it")
                _refuse_other(path, tomllib.loads(asked), free)
            else:
                atomic_write(path / "config.toml", asked)
            if record:
                _record_environment(path / "env.json", environment(backend, seed))
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    @property
    def store(self) -> TrialStore:
        return TrialStore(self.path)

    def write(self, name: str, content: bytes | str) -> Path:
        """Writes one result file, e.g. "figures/law.png", atomically; gives its path back."""
        target = self.path / name
        make_folder(target.parent)
        atomic_write(target, content)
        return target

    def close(self) -> None:
        """Lets the folder go. The lock file stays: removing it would let two later runs lock different files."""
        os.close(self.lock)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stored_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the run in `path`, for programs that only read (no lock taken). RunError when there is none."""
    file = Path(path) / "config.toml"
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path} is no run folder (it has no config.toml)") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}): choose another folder") from error


def main_guard(program: Callable[P, T]) -> Callable[P, T]:
    """Makes a program's main speak plainly: one line on stderr and an exit status in the place of a traceback.

    RunError, or a ValueError raised while a configuration is validated (under a `__post_init__`)   "error: ...", status 2
    FloatingPointError (a numerical failure with its name)                                          "error: ...", status 1
    Ctrl-C                                                       finished work is kept, the same command continues, status 130
    Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(program)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return program(*args, **kwargs)
        except (RunError, ValueError) as error:
            if isinstance(error, ValueError) and not _from_validation(error):
                raise
            status, line = 2, f"error: {error}"
        except FloatingPointError as error:
            status, line = 1, f"error: {error}"
        except KeyboardInterrupt:
            status, line = 130, "interrupted: finished work is kept, the same command continues"
        print(" ".join(line.split()), file=sys.stderr)
        sys.exit(status)

    return guarded


def _from_validation(error: ValueError) -> bool:
    return any(frame.name == "__post_init__" for frame in traceback.extract_tb(error.__traceback__))


def _refuse_foreign(path: Path) -> None:
    """Before anything is written: `path` must be absent, empty, or a run folder (one that died while being made is one)."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise file_error(error, path) from error
    if "config.toml" not in names and any(name != ".lock" and not name.endswith(".tmp") for name in names):
        raise RunError(f"{path} is not empty and is no run folder (it has no config.toml): choose another --out")


def _take_lock(path: Path) -> int:
    try:
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise file_error(error, path) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
    except BlockingIOError as error:
        holder = os.read(lock, 20).decode(errors="replace") or "unknown"
        os.close(lock)
        raise RunError(f"{path} is in use by another run (process {holder}): wait for it or choose another --out") from error
    except OSError as error:
        os.close(lock)
        raise file_error(error, path) from error
    return lock


def _refuse_other(path: Path, asked: dict[str, Any], free: Collection[str]) -> None:
    old, new = flat(stored_config(path)), flat(asked)
    different = [name for name in sorted(old.keys() | new.keys()) if name not in free and old.get(name) != new.get(name)]
    if different:
        shown = ", ".join(f"{name} = {_word(old, name)} there, {_word(new, name)} asked" for name in different[:3])
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise RunError(f"{path} holds another configuration ({shown}{more}): choose another --out")


def _word(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "unset"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"network": {"width": 3}} -> {"network.width": 3}: settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _record_environment(path: Path, record: dict[str, Any]) -> None:
    try:
        first = json.loads(path.read_text())
        record = first | {"resumed": [*first.get("resumed", []), record]}
    except (OSError, ValueError):
        pass  # the first start, or a record that was damaged: this start's record is the one there is
    atomic_write(path, json.dumps(record, indent=1) + "\n")
