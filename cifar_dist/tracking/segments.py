"""Runs that Weights & Biases kept offline, read with wandb's own reader into what a run folder would say."""

import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from cifar_dist.errors import UserError
from cifar_dist.record.lines import DatasetRecord, Line, Summary
from cifar_dist.record.reader import RunRecord, Status
from cifar_dist.tracking.rows import KINDS, SIZE, to_line

WRITING_S = (
    600.0  # a run that has not ended, nor written for as long, was killed: the same as `wandb leet --follow` waits
)
ENDS = ("finished", "interrupted", "failed", "killed")


@dataclass(frozen=True)
class WandbRecord(RunRecord):
    """A run whose only record are W&B's folders, one for each time it was started."""

    display_name: str = ""

    @property
    def name(self) -> str:
        return self.display_name or self.path.name


@dataclass
class Segment:
    """One W&B folder."""

    name: str = ""
    project: str = ""
    entity: str = ""  # empty: the user's own
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)  # what isn't in the rows
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None  # None: it has not ended, or was killed
    problem: str = ""

    @property
    def empty(self) -> bool:
        return not self.config and not self.rows


def is_segment(path: Path) -> bool:
    return path.name.startswith(("offline-run-", "run-")) and not path.is_symlink() and path.is_dir()


def run_id(path: Path) -> str:
    """`offline-run-20261121_025558-bbbb0000` -> bbbb0000."""
    return path.name.removeprefix("offline-").split("-", 2)[-1]


def log_file(segment: Path) -> Path:
    return segment / f"run-{run_id(segment)}.wandb"


def read_wandb_run(folders: Sequence[Path]) -> WandbRecord:
    """Read the folders of one run, in the order of their dates. What can't be read is named in `problem`.

    Raises `UserError` where wandb is not installed.
    """
    folders = sorted(folders, key=lambda path: path.name)
    segments = [read_segment(path) for path in folders]
    problem = "; ".join(segment.problem for segment in segments if segment.problem)
    if not problem and all(segment.empty for segment in segments):
        problem = f"{log_file(folders[-1]).name} holds no records: the run was killed before anything was written"
    config = {
        name: value for segment in segments for name, value in segment.config.items() if not name.startswith("_wandb")
    }
    dataset, start = config.pop("dataset", {}), config.pop("start", None)
    summary = cast(Summary, {name: config.pop(name) for name in SIZE if name in config})
    ended: Status = "broken" if problem else status(segments[-1], log_file(folders[-1]))
    return WandbRecord(
        path=folders[-1],
        status=ended,
        problem=problem or f"exit status {segments[-1].exit_code}" * (ended == "failed"),
        config=config,
        dataset=dataset,
        starts=[start] if start else [],
        summary=summary,
        lines=merge(segments, dataset),
        display_name=next((segment.name for segment in reversed(segments) if segment.name), ""),
    )


def status(last: Segment, log: Path) -> Status:
    """Return what became of the run whose last folder this is."""
    if last.summary.get("status") in ENDS:
        return cast(Status, last.summary["status"])
    if last.exit_code is None:
        return "running" if time.time() - log.stat().st_mtime < WRITING_S else "killed"
    return "failed" if last.exit_code else "finished"


def read_segment(path: Path) -> Segment:
    """Read one W&B folder; raises `UserError` where wandb is not installed."""
    segment = Segment()
    done = subprocess.run(
        [*reader(), "--run-file", str(log_file(path)), str(path.parent)], capture_output=True, check=False
    )
    try:
        for line in done.stdout.splitlines():
            kind = line[:60].partition(b'"type":"')[2].partition(b'"')[0].decode()
            if kind in ("history", "run", "config", "exit") or (kind == "summary" and b'"status"' in line):
                take(segment, kind, json.loads(line)[kind])
    except ValueError as error:
        segment.problem = f"{path.name}: {error}"
    if done.returncode:
        segment.problem = f"{path.name}: {' '.join(done.stderr.decode(errors='replace').split())}"
    return segment


def reader() -> list[str]:
    """Return the command behind `wandb leet inspect --json`; started directly it takes 0.05 s in place of 0.9 s."""
    package = find_spec("wandb")
    core = Path(package.origin or "").parent / "bin" / "wandb-core" if package else None
    if core is None or not core.is_file():
        raise UserError("reading Weights & Biases folders needs the wandb package; pip install 'wandb>=0.31,<0.32'")
    return [str(core), "leet", "inspect", "--json", "--no-observability"]


def take(segment: Segment, kind: str, content: Mapping[str, Any]) -> None:
    """Add what one record of the log says."""
    match kind:
        case "history":
            segment.rows.append(content["item"])
        case "run":
            segment.name = content.get("display_name", "")
            segment.project, segment.entity = content.get("project", ""), content.get("entity", "")
            segment.config |= content.get("config", {}).get("update", {})
        case "config":
            segment.config |= content.get("update", {})
        case "summary":
            segment.summary |= content.get("update", {})
        case "exit":
            segment.exit_code = content.get("exit_code", 0)


def merge(segments: Iterable[Segment], dataset: DatasetRecord) -> list[Line]:
    """Return the rows as lines of metrics.jsonl, in its order. The last row of a step wins: a later start repeats some."""
    lines: dict[tuple[bool, int, str], Line] = {}
    for segment in segments:
        for row in segment.rows:
            for kind in KINDS:
                if line := to_line(row, kind, dataset):
                    lines[kind == "test", line["step"], kind] = line
    return [lines[key] for key in sorted(lines)]
