"""Our jobs in squeue's answer, and the run folder of each.

Asked for with `--format`, not `--json`: that one ignores `--user` and `--states` in Slurm 22.05, so that a query fetches the
whole cluster's jobs, is left out of some builds, and changes its types from release to release.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.options import option_value
from cifar_dist.slurm.sbatch import TEMPLATES

SEPARATOR = "\x1f"
CODES = ("%F", "%K", "%A", "%j", "%T", "%r", "%N", "%M", "%l", "%k", "%o", "%Z")  # man squeue; in the order of `parse`
MARK = "cifar_dist:"  # a job's comment: this and the pattern of its run folder
SWEEP_TASK = "/%4a"


@dataclass(frozen=True)
class Job:
    """A job, or a task of a job array; of the tasks that wait, one entry for all."""

    array_id: str  # the job's own id where there is no array
    task: str | None  # 3, or 3-9%2 of those that wait
    job_id: str
    name: str
    state: str
    reason: str
    nodes: str
    elapsed: str
    limit: str
    comment: str
    command: str  # the script and its arguments, unquoted
    directory: str  # where it was submitted

    @property
    def label(self) -> str:
        """4242, 4242_3 or 4242_[3-9%2], as scancel takes it."""
        if self.task is None:
            return self.job_id
        return f"{self.array_id}_{self.task if self.task.isdigit() else f'[{self.task}]'}"

    @property
    def stands_for_several(self) -> bool:
        return self.task is not None and not self.task.isdigit()


def squeue_lines() -> str:
    """Return squeue's lines about this user's jobs, with those that have just ended; raises `UserError`."""
    words = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", f"--format={SEPARATOR.join(CODES)}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "there is no squeue on this machine; use a login node of the cluster, or python -m cifar_dist compare for the runs alone"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise UserError(
            f"squeue fails ({said}); try again in a few minutes, python -m cifar_dist compare shows the runs"
        )
    return done.stdout


def parse(answer: str) -> list[Job]:
    """Return the jobs of squeue's lines, by id and task."""
    jobs = []
    for line in answer.splitlines():
        fields = line.split(SEPARATOR)
        if len(fields) == len(CODES):  # not the rest of another's job name that has a line break
            array_id, task, *texts = fields
            jobs.append(Job(array_id, None if task == "N/A" else task, *texts))
    return sorted(jobs, key=_order)


def _order(job: Job) -> tuple[int, bool, int]:
    """By task and not by id: the last task to start has the array's own, all others have later ones."""
    return int(job.array_id), job.stands_for_several, int(job.task or 0) if not job.stands_for_several else 0


def template_of(job: Job) -> tuple[str, str] | None:
    """Return which of our templates, from this or another checkout, the job runs, and its arguments; None: another script."""
    for path in TEMPLATES.glob("*.sbatch"):
        checkout, found, arguments = job.command.partition(f"/{TEMPLATES.name}/{path.name}")
        if found and arguments[:1] in ("", " ") and (Path(checkout) / "cifar_dist").is_dir():
            return path.stem, arguments.strip()
    return None


def is_ours(job: Job) -> bool:
    return job.comment.startswith(MARK) or template_of(job) is not None


def run_folder(job: Job) -> Path | None:
    """Return the folder of the job's run: as `submit` left it in the comment, else by what the templates do.

    None for several tasks that wait, and for a job that trains nothing.
    """
    template, arguments = template_of(job) or ("", "")
    if job.stands_for_several or template == "eval":
        return None
    if job.comment.startswith(MARK):
        pattern = job.comment.removeprefix(MARK)
    else:
        words = arguments.split()  # squeue doesn't say where a word with spaces ends
        sweep = words[0] if template == "sweep" and words and not words[0].startswith("-") else None
        pattern = folder_pattern(option_value(words, "output_dir"), sweep, job.task is not None)
    return Path(job.directory) / fill(pattern, job.name, job.job_id, job.array_id, job.task)


def folder_pattern(output_dir: str | None, sweep: str | None, is_array: bool) -> str:
    """Return where a job puts its run, as a pattern of `man sbatch`."""
    folder = output_dir.replace("%", "%%") if output_dir else None
    if sweep:
        return (folder or "runs/" + Path(sweep).name.removesuffix(".yaml").replace("%", "%%")) + SWEEP_TASK
    return folder or ("runs/%x-%A_%a" if is_array else "runs/%x-%j")


def fill(pattern: str, name: str, job_id: str, array_id: str, task: str | None) -> str:
    """Return the pattern with %x the job's name, %j its id, %A the array's, %a the task, %4a that with four digits."""
    values = {"x": name, "j": job_id, "A": array_id, "a": task or "", "%": "%"}
    return re.sub(r"%(\d*)([xjAa%])", lambda match: values[match[2]].zfill(int(match[1] or 0)), pattern)
