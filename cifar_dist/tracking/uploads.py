"""Sends to the Weights & Biases server what was kept offline, a run at a time, and asks the server whether it is all there.

The server's number of rows decides what is sent: wandb's own folders, which hold system metrics too, where they follow what is
there, and rows of the run folder for whatever is still missing. Synced twice, a wandb folder would be there twice.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar_dist.files import acquire
from cifar_dist.record.folder import CHECKPOINTS, LINK_FILE, PLOTS, WANDB_LOCK, in_use
from cifar_dist.record.reader import read_run
from cifar_dist.tracking.follower import SETTLE_S
from cifar_dist.tracking.link import PROJECT, client_environment, read_link, write_link
from cifar_dist.tracking.process import follow
from cifar_dist.tracking.segments import Segment, read_segment, run_id

SYNC_TIMEOUT_S = 300.0  # of one folder; in an outage wandb sync waits for ever
OFFLINE = "offline-run-"
SKIPPED = (CHECKPOINTS, PLOTS, "files", "logs", "tmp")  # folders with no run in them


class UploadError(RuntimeError):
    """Not all of a run is with the server."""


@dataclass
class Upload:
    """A run that was kept offline: its run folder, or where that is gone, wandb's own folders, oldest first."""

    id: str
    folder: Path | None = None
    directories: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.folder or self.directories[0])


def find_uploads(paths: Iterable[Path]) -> list[Upload]:
    """Return the runs in or under `paths`, in order of their names."""
    uploads: dict[str, Upload] = {}
    folders: dict[Path, Upload] = {}
    loose: list[Path] = []
    for path in paths:
        for root, names, files in os.walk(path):
            folder = Path(root)
            names[:] = sorted(name for name in names if name not in SKIPPED)
            link = read_link(folder) if LINK_FILE in files else None
            if link:
                upload = Upload(link.id, folder, [Path(directory) for directory in link.directories])
                folders[folder.resolve()] = uploads[link.id] = upload
            elif folder.name.startswith(OFFLINE):
                loose.append(folder)
    for directory in sorted(loose):  # by their time
        upload = uploads.setdefault(run_id(directory), Upload(run_id(directory)))
        if not upload.folder:
            upload.directories.append(directory)
    wandbs = [upload for upload in uploads.values() if not upload.folder]
    return sorted([*folders.values(), *wandbs], key=lambda upload: upload.name)


def send_upload(upload: Upload, server: "Server") -> str:
    """Bring all of a run to the server; returns what was done, raises `UploadError`."""
    link = read_link(upload.folder) if upload.folder else None
    if upload.folder and in_use(upload.folder):
        return "is still running; left alone"
    segments = {directory: read_segment(directory) for directory in upload.directories if directory.is_dir()}
    path = link.path if link and link.path else run_path(upload.id, [*segments.values()])
    there, before = server.rows(path), 0
    if upload.folder and there == expected_rows(upload.folder):
        segments = {}
    # A killed training's own process may still be sending.
    held = acquire(upload.folder / WANDB_LOCK, timeout_s=-1) if upload.folder else None
    try:
        for directory, segment in segments.items():
            rows = len(segment.rows)
            if rows and there == before and directory.name.startswith(OFFLINE):
                sync(directory)
                there = server.wait_for_rows(path, before + rows)
            before += rows
    finally:
        if held:
            held.release()
    expected = expected_rows(upload.folder) if upload.folder else before
    if upload.folder and there < expected:
        follow(upload.folder, "online")
        link = read_link(upload.folder) or link
        path = link.path if link and link.path else path
        there = server.wait_for_rows(path, expected)
    if there < expected:
        raise UploadError(f"the server has {there} of {expected} rows")
    url = server.url(path)
    if upload.folder and link:
        link.mode, link.note, link.complete, link.url = "online", "", True, url
        write_link(upload.folder, link)
    return f"{there} rows, all there: {url}"


def expected_rows(folder: Path) -> int:
    """Return how many rows a run has there: one a line, and one of media at its end."""
    record = read_run(folder)
    return len(record.lines) + (record.status == "finished")


def run_path(id: str, segments: Sequence[Segment]) -> str:
    """Return [entity/]project/id."""
    last = segments[-1] if segments else Segment()
    return "/".join(filter(None, (last.entity, last.project or PROJECT, id)))


def sync(directory: Path) -> None:
    """Run `wandb sync` on one folder. Its exit status is 0 whatever happens, so what it prints decides; raises `UploadError`."""
    command = [sys.executable, "-m", "wandb", "sync", str(directory)]
    environment = {**os.environ, **client_environment(directory.parent), "WANDB_SILENT": "false"}
    environment.pop("WANDB_MODE", None)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SYNC_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UploadError(f"wandb sync {directory} did not end within {SYNC_TIMEOUT_S:g} s") from None
    said = (done.stdout + done.stderr).strip()
    if "Finished syncing" not in said and "ERROR" not in said:
        raise UploadError(said.splitlines()[-1] if said else f"wandb sync {directory} said nothing")


class Server:
    """What the server holds, by wandb's public interface."""

    def __init__(self) -> None:
        """Raises `UploadError`."""
        import wandb

        try:
            self.api = wandb.Api(timeout=10)
            self.entity = self.api.default_entity
        except wandb.Error as error:
            raise UploadError(str(error)) from None

    def rows(self, path: str) -> int:
        """Return how many rows it has of the run at [entity/]project/id."""
        run = self._run(path)
        return 0 if run is None else int(run.lastHistoryStep) + 1

    def wait_for_rows(self, path: str, rows: int) -> int:
        """Return how many it has once there are so many, or after `SETTLE_S`: it counts what has arrived after some seconds."""
        end = time.monotonic() + SETTLE_S
        while (there := self.rows(path)) < rows and time.monotonic() < end:
            time.sleep(1.0)
        return there

    def url(self, path: str) -> str:
        run = self._run(path)
        return "" if run is None else str(run.url)

    def _run(self, path: str) -> Any:
        from wandb.errors import CommError

        self.api.flush()  # else it answers from what it was told before
        try:
            return self.api.run(path if path.count("/") == 2 else f"{self.entity}/{path}")
        except CommError as error:
            if "Could not find run" in str(error):
                return None
            raise UploadError(str(error)) from None
