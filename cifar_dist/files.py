"""Files that exist wholly or not at all, and locks."""

import errno
import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from cifar_dist.text import size

NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # there is none; other errors may pass
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without locks answer
LARGEST, LARGEST_JSON = 8 * 10**9, 10**8  # bytes; no run writes so many
PARTIAL = ".partial-"  # begins the names of what is being written
FORGOTTEN_S = 3600.0  # after which what another machine was writing counts as left behind


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a crash leaves the old file or the new one, never a part.

    Raises `OSError`, and leaves nothing, where it can't, or where `path` is something else than a file.
    """
    if path.exists() and not path.is_file():  # root could replace a device
        raise FileExistsError(errno.EEXIST, "It is there, and not a regular file", str(path))
    clear_partials(path.parent)
    partial = partial_of(path)
    try:
        write_synced(partial, data)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def partial_of(path: Path) -> Path:
    """Return where this process writes what will be `path`."""
    return path.with_name(f"{PARTIAL}{path.name}.{platform.node()}.{os.getpid()}")


def clear_partials(folder: Path) -> None:
    """Remove what processes that are gone were writing in `folder`, files and folders."""
    for left in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            if _being_written(left):
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def _being_written(partial: Path) -> bool:
    """Whether the process that made it may be alive."""
    name, _, number = partial.name.rpartition(".")
    if not name.endswith(f".{platform.node()}") or not number.isdecimal():
        return time.time() - partial.lstat().st_mtime < FORGOTTEN_S
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by JSON for people to read, in one piece; raises `ValueError` for a nan, which JSON doesn't have."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """Return a regular file's bytes; raises `OSError`, and `ValueError` for one that is too large, or might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for who writes
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_size > largest:
            raise ValueError(f"{path} has {size(status.st_size)}, more than {size(largest)}")
        return file.read()


def read_json(path: Path) -> Any:
    """Return a JSON file's content; raises `OSError`, and `ValueError` for what isn't JSON, not a file, or far too large."""
    return parse_json(read_file(path, LARGEST_JSON))


def parse_json(text: bytes | str) -> Any:
    """Return what the text says; raises `ValueError`, where Python's own parser may give up otherwise."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with the SHA-256 of the rest in it, so that a flipped bit is noticed."""
    return {**content, "sha256": _seal(content)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether it is what `sealed` returned."""
    return content.get("sha256") == _seal({name: value for name, value in content.items() if name != "sha256"})


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def writing(path: Path, num_bytes: int) -> Iterator[None]:
    """Let an error of what is written inside name the file and how much it was: a full disk's own says neither."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, f"{error.strerror}, writing {size(num_bytes)}", str(path)) from None


def write_synced(path: Path, data: bytes) -> None:
    with writing(path, len(data)), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's names to disk; of a file, its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder to disk, with all that is in it."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync_folder(path)


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
