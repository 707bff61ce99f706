"""Files that are either whole or absent: a write goes to a temporary neighbour, reaches the disk, then takes its name in one step.

A process that dies half-way leaves at most a hidden temporary `.NAME.*.tmp`, which no reader looks at.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

TEMPORARY = ".*.tmp"


class RunError(Exception):
    """A fault the user can mend (place, input, disk). Its message is one line; programs print it and exit with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def file_error(error: OSError, path: Path) -> RunError:
    """What an operating-system error at `path` means to the user, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"disk full while writing {path}: earlier results are untouched; free some space and run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return RunError(f"cannot write {path} ({error.strerror}): choose an --out that you may write to")
    return RunError(f"cannot use {path} ({error.strerror or error}): choose another --out")


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Puts `content` (text as UTF-8) at `path`, replacing what was there; readers see the old file or the new one, never a part.

    Raises RunError when the place cannot be written; the old file then stands and no temporary file is left.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files private; results are meant to be read
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise file_error(error, path) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; where the block ends well it takes `path`, and a folder that lies there goes with that.

    Raises RunError where the place does not allow it, or for an operating-system error of the block; nothing new is left then.
    """
    make_folder(path.parent)
    building = None
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield building
        building.chmod(0o755)
        if path.exists():
            old = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            building.rename(path)
            shutil.rmtree(old)
        else:
            building.rename(path)
    except OSError as error:
        raise file_error(error, path) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Creates the folder and its parents where they are missing; RunError when the place does not allow it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, path) from error


def clean_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders of writers that died in `folder`. Only the holder of the run's lock may call this."""
    for leftover in folder.glob(TEMPORARY):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def toml_text(config: Mapping[str, Any]) -> str:
    """A configuration as TOML: nested dicts become tables, tuples arrays, paths strings; None entries are left out (TOML has no null)."""

    def prepared(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): prepared(item) for name, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [prepared(item) for item in value]
        return str(value) if isinstance(value, os.PathLike) else value

    return tomli_w.dumps(prepared(config))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; some network file systems do not sync folders, and then the file's own sync has to do.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
