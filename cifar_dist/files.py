"""Files that exist wholly or not at all, and locks."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without locks answer


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a crash leaves the old file or the new one, never a part."""
    partial = path.with_name(f".partial-{path.name}")
    write_synced(partial, data)
    os.replace(partial, path)
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by JSON for people to read, in one piece; raises `ValueError` for a nan, which JSON doesn't have."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def acquire(path: Path, timeout_s: float) -> BaseFileLock:
    """Take the lock `path` and return it; raises filelock's `Timeout`. A negative time waits for ever.

    Where the file system has no locks it is the file `stand_in(path)`, which exists for as long as the lock is held. One that a
    crash left behind is taken over on the same machine; on another, nobody can know.
    """
    held: BaseFileLock = FileLock(path)
    try:
        held.acquire(timeout=timeout_s)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:  # Timeout is one, too
            raise
        held = SoftFileLock(stand_in(path))
        held.acquire(timeout=timeout_s)
    return held


def stand_in(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


@contextmanager
def locked(path: Path, patience_s: float = 10.0) -> Iterator[None]:
    """Hold the lock `path`, once whoever has it lets go; says what it waits for where that may never happen."""
    try:
        held = acquire(path, patience_s)
    except Timeout:
        if stand_in(path).exists():
            print(f"still waiting for {stand_in(path)}; remove it if its process is gone", file=sys.stderr, flush=True)
        held = acquire(path, -1)
    try:
        yield
    finally:
        held.release()
