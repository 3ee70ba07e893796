"""Files that exist wholly or not at all, and locks."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock


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


def acquire(path: Path, timeout_s: float) -> FileLock:
    """Take the lock `path` and return it; raises filelock's `Timeout`. A file system without locks goes without."""
    held = FileLock(path)
    with suppress(NotImplementedError):
        held.acquire(timeout=timeout_s)
    return held
