"""`python -m cifar_dist doctor`: check what this machine or job can do, and with --dry-run what a run would do."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.text import Text

from cifar_dist.cli import command_parser
from cifar_dist.config import TrainConfig, flag
from cifar_dist.console import Console
from cifar_dist.doctor import dry_run, machine, network, services, software, storage
from cifar_dist.doctor.check import Check, Visit, examine
from cifar_dist.doctor.lines import Line
from cifar_dist.doctor.slurm_ranks import adopt_slurm_ranks
from cifar_dist.doctor.wire import AbsentError, Meeting
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED, finish
from cifar_dist.options import add_flags, resolve_train_config, with_launchers
from cifar_dist.recipes import own_config
from cifar_dist.training.preflight import check_early

CHECKED = ("data", "data_dir", "output_dir", "device", "threads", "wandb")  # the options that checks look at
MARKS = {"ok": "✓", "warning": "!", "failed": "✗", "skipped": "-"}
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
NAME_WIDTH, WIDTH = 12, 80
STATUS_END = len("  ! warning")
MEETING_TIMEOUT_S, PARTING_TIMEOUT_S = 60.0, 5.0


def main(argv: Sequence[str]) -> int:
    """Make all checks on all ranks; returns the exit status, failed if anything is. Raises `UserError`."""
    adopt_slurm_ranks()
    config, given, wants = read_options(argv)
    meeting = Meeting.open(MEETING_TIMEOUT_S)
    visit = Visit(config, meeting, given)
    report = Report(Console(speaks=meeting.rank == 0), as_json=wants["json"])
    try:
        status = visit_all(visit, report, wants["dry_run"])
    except AbsentError:
        print(f"failed: rank 0 has ended, or hangs, says rank {meeting.rank} on {meeting.host}", file=sys.stderr)
        status = FAILED
    if meeting.world_size > 1:
        finish(status)  # whatever hangs by now, a process group or a thread, must not keep this process
    return status


def read_options(argv: Sequence[str]) -> tuple[TrainConfig, dict[str, Any], dict[str, bool]]:
    """Return the configuration, the options given for it, and our own switches; raises `UserError`."""
    parser = command_parser(
        "doctor",
        "Exit status 1 if something failed.",
        usage="%(prog)s [--dry-run] [--json] [options of train.py]",
        epilog=f"Without --dry-run only these options matter: {' '.join(map(flag, CHECKED))}.",
    )
    parser.add_argument("--dry-run", action="store_true", help="also say what train.py would do with these options")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")
    add_flags(parser, TrainConfig)
    given = parser.parse(argv)
    wants = {name: given.pop(name) for name in ("dry_run", "json")}
    if wants["dry_run"]:
        given = with_launchers(given)
        config = resolve_train_config(given)
        check_early(config)
        return config, given, wants
    if idle := [name for name in given if name not in CHECKED]:
        raise UserError(f"{flag(idle[0])} has no effect without --dry-run, which says what such a run would do")
    return TrainConfig(epochs=1, **given), given, wants


def checks(config: TrainConfig, wants_run: bool) -> list[Check]:
    """Return the checks in their order."""
    data = Check(
        "data",
        "Storage",
        storage.measure_data,
        storage.judge_data(config.data, config.data_dir, config.image_size),
        timeout_s=120.0,
    )
    disk = Check("disk", "Storage", storage.measure_disk, storage.judge_disk, storage.OTHER_PLACE, timeout_s=120.0)
    wandb = Check("W&B", "Services", services.measure_wandb, services.judge_wandb(config.wandb), main_only=True)
    first = [*software.CHECKS, *machine.CHECKS, services.LAUNCH, *network.CHECKS]
    return [*first, data, disk, wandb, *([dry_run.CHECK] if wants_run else [])]


def visit_all(visit: Visit, report: "Report", wants_run: bool) -> int:
    """Make every check, and return the exit status, the same on every rank."""
    for group, members in groupby(checks(visit.config, wants_run), key=lambda check: check.group):
        report.heading(group)
        if group == dry_run.CHECK.group:
            report.configuration(visit)
        for check in members:
            report.show(group, examine(check, visit))
    report.close(visit)
    return part(visit, FAILED if report.count("failed") else FINISHED)


def part(visit: Visit, status: int) -> int:
    """Return rank 0's status on every rank. Rank 0 leaves last: where there is no launcher, the meeting ends with it."""
    meeting = visit.meeting
    if meeting.rank != 0:
        status = int(meeting.read("status", MEETING_TIMEOUT_S))
        meeting.post(f"left/{meeting.rank}", True)
        return status
    meeting.post("status", status)
    end = time.monotonic() + PARTING_TIMEOUT_S
    for rank in visit.others:
        with suppress(AbsentError):
            meeting.read(f"left/{rank}", end - time.monotonic())
    return status


class Report:
    """What rank 0 prints: groups of lines as they come, or one JSON object at the end."""

    def __init__(self, console: Console, as_json: bool) -> None:
        self.console, self.as_json = console, as_json
        self.groups: dict[str, list[Line]] = {}
        encoding = (sys.stdout.encoding or "").lower()
        self.marks = MARKS if encoding.startswith("utf") else {**MARKS, "ok": "+", "failed": "x"}

    def say(self, text: str, style: str | None = None) -> None:
        if not self.as_json:
            self.console.say(text, style)

    def heading(self, group: str) -> None:
        self.say(("\n" if self.groups else "") + group, "bold")
        self.groups.setdefault(group, [])

    def configuration(self, visit: Visit) -> None:
        if not self.as_json:
            self.console.configuration(visit.config, own_config(visit.config.recipe, visit.config.model))

    def show(self, group: str, lines: Sequence[Line]) -> None:
        self.groups[group] += lines
        for line in lines:
            if not self.as_json:
                text = Text(layout(line, self.marks, width()))
                text.stylize(STYLES[line.status], 0, STATUS_END)
                self.console.rich.print(text)

    def count(self, status: str) -> int:
        return sum(line.status == status for lines in self.groups.values() for line in lines)

    def close(self, visit: Visit) -> None:
        """Print the counts, or everything as JSON."""
        counts = {status: self.count(status) for status in MARKS}
        if self.as_json:
            groups = {group: [asdict(line) for line in lines] for group, lines in self.groups.items()}
            content: dict[str, Any] = {"counts": counts, "world_size": visit.meeting.world_size, "groups": groups}
            if dry_run.CHECK.group in groups:
                content["options"] = visit.config.to_dict()
            if visit.meeting.rank == 0:
                self.console.say(json.dumps(content, indent=1))
            return
        words = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        worst = "failed" if counts["failed"] else "warning" if counts["warning"] else "ok"
        self.say(f"\n{words}", {"failed": "bold red", "warning": "yellow", "ok": "green"}[worst])


def layout(line: Line, marks: dict[str, str], columns: int) -> str:
    """Return a line's text, wrapped under its beginning, its advice below."""
    head = f"  {marks[line.status]} {line.status:7}  {line.name:{NAME_WIDTH}} "
    indent = " " * len(head)
    return "\n".join(
        textwrap.fill(
            text, columns, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
        )
        for text, first, rest in ((line.text, head, indent), (line.advice, f"{indent}> ", f"{indent}  "))
        if text
    )


def width() -> int:
    return max(50, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
