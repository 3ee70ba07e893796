"""Which runs a list of paths means, and reading them: each once, and again only where it has changed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifar_dist.compare.runs import ComparedRun
from cifar_dist.errors import UserError
from cifar_dist.record.folder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, in_use
from cifar_dist.record.reader import RunRecord, is_run, read_run
from cifar_dist.tracking.link import read_link
from cifar_dist.tracking.segments import is_segment, log_file, read_wandb_run, run_id

DEPTH = 3  # levels of folders under a path in which runs are looked for: runs/SWEEP/0000, runs/wandb/offline-run-*
READERS = 4  # W&B folders read at a time, each by a process of its own

Signature = tuple[tuple[int, int] | None, ...]  # (time of change in ns, bytes) of each file a run is read from


@dataclass(frozen=True)
class Source:
    """Where one run is recorded."""

    kind: Literal["folder", "wandb", "unreadable"]
    paths: tuple[Path, ...]  # one folder, or those of all starts for W&B
    problem: str = ""

    def files(self) -> list[Path]:
        if self.kind == "wandb":
            return [log_file(path) for path in self.paths]
        return [self.paths[0] / name for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE)]

    def signature(self) -> Signature:
        return tuple(_stamp(path) for path in self.files())

    def read(self) -> ComparedRun:
        if self.kind == "wandb":
            return ComparedRun.of(read_wandb_run(self.paths))
        if self.kind == "folder":
            return ComparedRun.of(read_run(self.paths[0]))
        return ComparedRun.of(RunRecord(self.paths[0], "broken", self.problem))


class Reader:
    """Reads runs, and remembers them as long as their files stay as they are."""

    def __init__(self) -> None:
        self._known: dict[Source, tuple[Signature, ComparedRun]] = {}

    def read(self, sources: Sequence[Source]) -> list[ComparedRun]:
        """Return what is recorded at each source; raises `UserError` where wandb is needed and not installed."""
        stale = [source for source in sources if self._is_stale(source)]
        external = [source for source in stale if source.kind == "wandb"]
        stamps = {source: source.signature() for source in stale}  # before reading: what comes after is read again
        with ThreadPoolExecutor(READERS) as threads:
            fresh = dict(zip(external, threads.map(Source.read, external), strict=True))
        fresh |= {source: source.read() for source in stale if source.kind != "wandb"}
        self._known |= {source: (stamps[source], run) for source, run in fresh.items()}
        return [self._known[source][1] for source in sources]

    def _is_stale(self, source: Source) -> bool:
        if source not in self._known:
            return True
        signature, run = self._known[source]
        if signature != source.signature():
            return True
        if run.record.status != "running":
            return False
        return source.kind == "wandb" or not in_use(source.paths[0])  # killed, it leaves no trace in its files


def find_runs(words: Sequence[str]) -> list[Source]:
    """Return the runs in these folders and under them, each once; raises `UserError` where there are none.

    A W&B run that is also there as a run folder is left out.
    """
    found: list[Source] = []
    for word in words:
        if not Path(word).exists():
            raise UserError(f"{word} does not exist; give run folders, folders of runs, or W&B's offline folders")
        found += _under(Path(word), DEPTH)
    folders = [source for source in dict.fromkeys(found) if source.kind == "folder"]
    unreadable = [source for source in dict.fromkeys(found) if source.kind == "unreadable"]
    sources = folders + _without_folder([source.paths[0] for source in found if source.kind == "wandb"], folders)
    if not sources:
        reasons = "".join(f"; {source.problem}" for source in unreadable)
        raise UserError(
            f"no runs in {' '.join(words)}{reasons}; give run folders, folders of runs such as runs, or W&B's offline folders"
        )
    return sources + unreadable


def _under(path: Path, depth: int) -> Iterator[Source]:
    try:
        if is_run(path):
            yield Source("folder", (path.resolve(),))
        elif is_segment(path):
            yield Source("wandb", (path.resolve(),))
        elif path.is_dir():
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
            for name in names if depth else ():
                if not (path / name).is_symlink():  # such as W&B's latest-run
                    yield from _under(path / name, depth - 1)
    except OSError as error:
        yield Source("unreadable", (path.absolute(),), f"{path} can't be read: {error.strerror}")


def _without_folder(segments: Iterable[Path], folders: Iterable[Source]) -> list[Source]:
    """Return a source for each W&B run that no run folder knows as its own."""
    taken = {link.id for folder in folders if (link := read_link(folder.paths[0]))}
    starts: dict[str, list[Path]] = {}
    for path in dict.fromkeys(segments):
        starts.setdefault(run_id(path), []).append(path)
    return [Source("wandb", tuple(paths)) for id, paths in starts.items() if id not in taken]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
