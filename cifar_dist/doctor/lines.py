"""What a check says: one line with a status, what was measured and, where something is wrong, what to do."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from cifar_dist import text

Status = Literal["ok", "warning", "failed", "skipped"]
GB = 1e9


@dataclass(frozen=True)
class Line:
    """One finding."""

    status: Status
    name: str
    text: str
    advice: str = ""  # what to do about it


class Answer(NamedTuple):
    """What one rank found: JSON-ready facts, or the problem that kept it from finding any."""

    rank: int
    host: str
    facts: Any = None
    problem: str = ""
    advice: str = ""  # about the problem, where it doesn't say itself what to do

    @property
    def where(self) -> str:
        return f"rank {self.rank} on {self.host}"


def ok(name: str, text: str) -> Line:
    return Line("ok", name, text)


def skipped(name: str, text: str) -> Line:
    return Line("skipped", name, text)


def warning(name: str, text: str, advice: str) -> Line:
    return Line("warning", name, text, advice)


def failed(name: str, text: str, advice: str) -> Line:
    return Line("failed", name, text, advice)


def ranks(answers: Iterable[Answer]) -> str:
    """Return who says so: `ranks 0-2, 5`."""
    return text.ranks(answer.rank for answer in answers)


def hosts(answers: Iterable[Answer]) -> dict[str, Answer]:
    """Return the first rank's answer of each host."""
    found: dict[str, Answer] = {}
    for answer in answers:
        found.setdefault(answer.host, answer)
    return found


def each_host(judge: Callable[[Any], list[Line]]) -> Callable[[Sequence[Answer]], list[Line]]:
    """Return a judge of all answers: a line that all hosts share is said once, others with the host's name."""

    def judge_all(answers: Sequence[Answer]) -> list[Line]:
        found = {host: judge(answer.facts) for host, answer in hosts(answers).items()}
        lines: list[Line] = []
        for row in zip_longest(*found.values()):
            if len(set(row)) == 1:
                lines.append(row[0])
                continue
            for host, line in zip(found, row, strict=True):
                if line:
                    lines.append(Line(line.status, line.name, f"{host}: {line.text}", line.advice))
        return lines

    return judge_all


def disagreement(name: str, answers: Sequence[Answer], values: Sequence[str], advice: str) -> Line | None:
    """Return a failed line where the ranks' `values` differ, naming the first that differs from rank 0's."""
    for answer, value in zip(answers, values, strict=True):
        if value != values[0]:
            first = answers[0]
            return failed(name, f"{value} on {answer.where}, but {values[0]} on {first.where}", advice)
    return None
