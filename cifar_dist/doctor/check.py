"""How a check runs: measured on every rank in a bounded time, gathered through the meeting, judged on rank 0."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from cifar_dist.config import TrainConfig
from cifar_dist.doctor.lines import Answer, Line, failed, ranks, skipped
from cifar_dist.doctor.wire import AbsentError, Meeting
from cifar_dist.errors import UserError
from cifar_dist.runtime.launch import env_int, uses_gpu
from cifar_dist.text import reason

T = TypeVar("T")
NOWHERE = "?"  # the host of a rank that never answered
GRACE_S = 15.0  # beyond a check's own limit: ranks don't begin at the same moment


@dataclass
class Visit:
    """What every check knows."""

    config: TrainConfig
    meeting: Meeting
    given: dict[str, Any] = field(default_factory=dict)  # options of the command line
    sound: bool = True  # all ranks answer, so collectives can be tried; equal on every rank
    absent: set[int] = field(default_factory=set)  # ranks that don't; rank 0 knows

    @property
    def others(self) -> list[int]:
        """The ranks besides 0 that can be waited for, as far as rank 0 knows."""
        return sorted(set(range(1, self.meeting.world_size)) - self.absent)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", env_int("LOCAL_RANK", 0)) if uses_gpu(self.config) else torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """One question."""

    name: str
    group: str
    measure: Callable[[Visit], Any]  # on every rank; returns what JSON can hold
    judge: Callable[[Sequence[Answer]], list[Line]]  # of the ranks that could measure, in order; on rank 0
    advice: str = "please report this line: a check should not fail like this"  # where the measurement itself fails
    timeout_s: float = 30.0
    main_only: bool = False  # rank 0 alone measures
    collective: bool = False  # no rank may be missing, and a problem on one leaves the others hanging


def examine(check: Check, visit: Visit) -> list[Line]:
    """Run a check on every rank. Rank 0 gets the lines, others none; raises `AbsentError` there when rank 0 is gone."""
    meeting = visit.meeting
    if check.collective and not visit.sound:
        return [skipped(check.name, "not tried after the failure above")] if meeting.rank == 0 else []
    answer = Answer(meeting.rank, meeting.host)
    if meeting.rank == 0 or not check.main_only:
        answer = measure(check, visit)
    meeting.post(f"{check.name}/{meeting.rank}", answer)
    if meeting.rank != 0:
        visit.sound = meeting.read(f"{check.name}/sound", check.timeout_s + 2 * GRACE_S)
        return []
    answers = [answer] if check.main_only else gather(check, visit)
    problems = [a for a in answers if a.problem]
    visit.sound = visit.sound and not visit.absent and not (check.collective and problems)
    lines = [*problem_lines(check, problems, meeting.world_size), *judged(check, [a for a in answers if not a.problem])]
    meeting.post(f"{check.name}/sound", visit.sound)
    return lines


def measure(check: Check, visit: Visit) -> Answer:
    """Return this rank's facts or its problem, in the check's time."""
    here = Answer(visit.meeting.rank, visit.meeting.host)
    try:
        return here._replace(facts=bounded(lambda: check.measure(visit), check.timeout_s))
    except UserError as error:
        return here._replace(problem=str(error))  # it says what to do
    except (AbsentError, TimeoutError) as error:
        return here._replace(problem=str(error), advice=check.advice)
    except Exception as error:  # whatever it is, the other checks can still be made
        return here._replace(problem=reason(error), advice=check.advice)


def bounded(action: Callable[[], T], timeout_s: float) -> T:
    """Return what `action` does; raises what it raises, and `TimeoutError` while a thread of it still hangs."""
    outcome: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            outcome.put((action(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no result within {timeout_s:g} s") from None
    if error:
        raise error
    return result  # type: ignore[return-value]


def gather(check: Check, visit: Visit) -> list[Answer]:
    """Return every rank's answer, waiting a bounded time for all of them together. Who doesn't answer is not asked again."""
    end = time.monotonic() + check.timeout_s + GRACE_S
    answers = []
    for rank in sorted(set(range(visit.meeting.world_size)) - visit.absent):
        try:
            answers.append(Answer(*visit.meeting.read(f"{check.name}/{rank}", end - time.monotonic())))
        except AbsentError:
            visit.absent.add(rank)
            answers.append(Answer(rank, NOWHERE, None, "does not answer: its process has ended or hangs", check.advice))
    return answers


def problem_lines(check: Check, problems: Sequence[Answer], world_size: int) -> list[Line]:
    """Return one failed line for each different problem, with the ranks that have it."""
    texts = list(dict.fromkeys(answer.problem for answer in problems))
    lines = []
    for text in texts:
        same = [answer for answer in problems if answer.problem == text]
        where = same[0].where if len(same) == 1 and same[0].host != NOWHERE else ranks(same)
        lines.append(failed(check.name, f"{where}: {text}" if world_size > 1 else text, same[0].advice))
    return lines


def judged(check: Check, answers: Sequence[Answer]) -> list[Line]:
    return check.judge(answers) if answers else []
