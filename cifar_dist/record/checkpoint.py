"""Checkpoint folders that exist wholly or not at all: written aside, checksummed, fsynced, renamed, verified on load."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cifar_dist.files import NO_FILE, clear_partials, partial_of, read_file, read_json, sync_folder, write_synced

MANIFEST = "manifest.json"


class Checkpoint(NamedTuple):
    """A verified checkpoint, in memory."""

    step: int
    files: dict[str, bytes]


class BrokenCheckpointError(RuntimeError):
    """A checkpoint folder whose files don't match its manifest."""


def folder_for(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def saved_steps(checkpoints: Path) -> list[int]:
    """Return the steps that have a folder, oldest first, whole or not."""
    names = (p.name for p in checkpoints.glob("step_*") if p.is_dir())
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def save(checkpoints: Path, step: int, files: Mapping[str, bytes]) -> None:
    """Write `files` as the checkpoint of `step`, and read it back. An older one of the same step is replaced."""
    final = folder_for(checkpoints, step)
    partial = partial_of(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    for name, data in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
        write_synced(partial / name, data)
    sync_folder(partial)
    if final.exists() or final.is_symlink():
        remove(final)
    os.replace(partial, final)
    sync_folder(checkpoints)
    load(final)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; raises `BrokenCheckpointError` saying what is wrong with it.

    What can't be read now but may be in a moment, an input/output error or a file handle of a server that was restarted, is an
    `OSError`: nobody may take the checkpoint for broken, and go on from another, because of that.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        files = {name: read_file(folder / name) for name in manifest}
        for name, entry in manifest.items():
            if len(files[name]) != entry["bytes"]:
                raise BrokenCheckpointError(f"{folder / name} has {len(files[name])} bytes, not {entry['bytes']}")
            if _sha256(files[name]) != entry["sha256"]:
                raise BrokenCheckpointError(f"{folder / name} doesn't match its checksum")
        return Checkpoint(int(folder.name[5:]), files)
    except (*NO_FILE, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{folder}: {error}") from None


def load_newest(
    checkpoints: Path, check: Callable[[Checkpoint], object] = lambda _: None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, or None, and what was wrong with each newer one.

    `check` raises `BrokenCheckpointError` for what is whole, but can't be gone on from.
    """
    problems: list[str] = []
    for step in reversed(saved_steps(checkpoints)):
        try:
            saved = load(folder_for(checkpoints, step))
            check(saved)
            return saved, problems
        except BrokenCheckpointError as error:
            problems.append(str(error))
    return None, problems


def prune(checkpoints: Path, keep_newest: int, keep_steps: Iterable[int]) -> list[str]:
    """Remove all checkpoints but the newest few and those of `keep_steps`; returns what was in the way. Call after a save has verified."""
    steps, problems = saved_steps(checkpoints), []
    old = [folder_for(checkpoints, step) for step in sorted(set(steps[:-keep_newest]) - set(keep_steps))]
    for folder in old:
        try:
            remove(folder)
        except OSError as error:
            problems.append(f"{folder} can't be removed: {error}")
    clear_partials(checkpoints)
    return problems


def remove(folder: Path) -> None:
    """Remove a checkpoint's folder; of a link to one the link. A crash leaves no part that looks like a checkpoint."""
    if folder.is_symlink():
        folder.unlink()
        return
    partial = partial_of(folder.with_name(f"removed_{folder.name}"))
    os.replace(folder, partial)
    shutil.rmtree(partial)


def discard_after(checkpoints: Path, step: int) -> None:
    """Remove the checkpoints newer than `step`: broken, or left behind by going back to it."""
    for newer in saved_steps(checkpoints):
        if newer > step:
            remove(folder_for(checkpoints, newer))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
