"""A run folder as a reader finds it: finished, running, interrupted, killed or broken. Nothing here writes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cifar_dist.errors import UserError
from cifar_dist.files import read_file, read_json
from cifar_dist.record.folder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, in_use, read_line
from cifar_dist.record.lines import DatasetRecord, Line, Options, Start, Summary
from cifar_dist.text import printable

Status = Literal["finished", "running", "interrupted", "failed", "killed", "broken"]


@dataclass(frozen=True)
class RunRecord:
    """What a run has written so far."""

    path: Path
    status: Status  # killed: it says it is running, but no process holds its folder
    problem: str = ""  # why it failed, or what is wrong with the folder; else empty
    config: Options = field(default_factory=dict)
    dataset: DatasetRecord = field(default_factory=DatasetRecord)
    starts: list[Start] = field(default_factory=list)  # one for each time it was started or resumed
    summary: Summary = field(default_factory=Summary)
    lines: list[Line] = field(default_factory=list)  # of metrics.jsonl

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def title(self) -> str:
        """What it trained, by which recipe, on what."""
        title = f"{self.config.get('model')}, recipe {self.config.get('recipe')}, {self.dataset.get('name')}"
        return printable(title) + ", SYNTHETIC DATA" * bool(self.dataset.get("synthetic"))


def is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path / METRICS_FILE).is_file()


def not_a_run(path: Path) -> UserError:
    """Return what a command says that needs a run folder and got something else."""
    return UserError(f"{path} is not a run folder: it has no config.json; give one that train.py has written")


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders directly in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []


def read_run(path: Path) -> RunRecord:
    """Read a run folder. What can't be read is left out and named in `problem`; raises nothing."""
    problems: list[str] = []
    content, summary = (_read_json(path / name, problems) for name in (CONFIG_FILE, SUMMARY_FILE))
    lines = _read_lines(path / METRICS_FILE, problems)
    config, dataset = (_part(content, name, dict, problems) for name in ("config", "dataset"))
    starts = [cast(Start, start) for start in _part(content, "starts", list, problems) if isinstance(start, dict)]
    status: Status = summary.get("status", "broken")
    if status not in get_args(Status):
        problems.append(f"{SUMMARY_FILE}: unknown status {status!r}")
    if not problems and status == "running" and not in_use(path):
        status = "killed"
    return RunRecord(
        path=path,
        status="broken" if problems else status,
        problem="; ".join(problems) or summary.get("error", ""),
        config=config,
        dataset=dataset,
        starts=starts,
        summary=cast(Summary, summary),
        lines=lines,
    )


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error.strerror if isinstance(error, OSError) else error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name}: not a JSON object")
        return {}
    return content


def _part(content: dict[str, Any], name: str, kind: type, problems: list[str]) -> Any:
    """Return an entry of config.json, empty where it isn't what a run writes."""
    value = content.get(name, kind())
    if isinstance(value, kind):
        return value
    problems.append(f"{CONFIG_FILE}: {name} is not a {kind.__name__}")
    return kind()


def _read_lines(path: Path, problems: list[str]) -> list[Line]:
    """Return the whole lines; the last one may be torn by a crash, or about to be written."""
    try:
        pieces = read_file(path).split(b"\n")[:-1]
    except FileNotFoundError:  # nothing was logged yet
        return []
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error.strerror if isinstance(error, OSError) else error}")
        return []
    lines: list[Line] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            lines.append(read_line(piece))
        except ValueError as error:
            problems.append(f"{path.name} line {number}: {error}")
            break
    return lines
