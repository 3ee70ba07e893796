"""`python -m cifar_dist submit`: check a run on the login node, then hand the template in slurm/ that fits to sbatch.

A thin layer of our own, not submitit: what runs is the readable script that people also submit, copy and edit by hand.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from cifar_dist.cli import command_parser
from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED
from cifar_dist.options import add_flags, to_words
from cifar_dist.record.repeats import without
from cifar_dist.slurm.checks import OF_SWEEP, SubmitOptions, check_place, check_run, check_sweep, clashes, data_notes
from cifar_dist.slurm.sbatch import Submission, directives, resources, site_environment
from cifar_dist.slurm.squeue import MARK, SWEEP_TASK, fill, folder_pattern
from cifar_dist.sweep.prepare import SweepOptions


@dataclass(frozen=True)
class Plan:
    """What will be submitted, and what to say of it."""

    submission: Submission
    folder: str  # pattern of the run folder
    tasks: int | None  # of a job array
    notes: list[str]


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status; raises `UserError`."""
    options, given = read_options(argv)
    check_place()
    plan = make_plan(options, given)
    console, submission = Console(speaks=True), plan.submission
    there = shutil.which("sbatch") is not None
    if options.dry_run:
        console.say(submission.shell_line())
        for note in [*plan.notes, estimate(submission)] if there else plan.notes:
            console.say(f"# {note}")
        return FINISHED
    if not there:
        raise UserError(
            "there is no sbatch on this machine; submit on a login node of the cluster (--dry-run shows the command here too), "
            "or train here with python train.py"
        )
    for note in plan.notes:
        console.warn(note)
    console.say(estimate(submission), "dim")
    job_id = submission.run("--parsable").partition(";")[0]  # of several clusters, the name follows
    for line in how_to_follow(plan, job_id):
        console.say(line)
    return FINISHED


def read_options(argv: Sequence[str]) -> tuple[SubmitOptions, dict[str, Any]]:
    """Return our own options, and those of the runs that were given; raises `UserError`."""
    parser = command_parser("submit", "It takes the options of train.py and these first ones.")
    add_flags(parser, SubmitOptions)
    add_flags(parser, SweepOptions, OF_SWEEP)
    add_flags(parser, TrainConfig)
    given = parser.parse(argv)
    own = {f.name for f in fields(SubmitOptions)}
    options = SubmitOptions(**{name: value for name, value in given.items() if name in own})
    given = without(given, own)
    for wrong, message in clashes(options, given):
        if wrong:
            raise UserError(message)
    return options, given


def make_plan(options: SubmitOptions, given: dict[str, Any]) -> Plan:
    """Check everything that can be checked without a GPU, and choose the template; raises `UserError`."""
    if options.sweep is None:
        tasks, name, config = options.array_seeds, *check_run(options, given)
    else:
        tasks, name, config = check_sweep(options, given)
    single = "preemptible" if options.preemptible else "train" if options.nodes == 1 else "multinode"
    template = single if tasks is None else "sweep"
    folder = folder_pattern(given.get("output_dir"), options.sweep, tasks is not None)
    choices = {"job-name": options.job_name or name, "comment": MARK + folder}
    if tasks is not None:
        choices["array"] = f"0-{tasks - 1}" + (f"%{options.throttle}" if options.throttle else "")
    choices |= resources(template, options.nodes, options.gpus_per_node, options.time)
    choices |= {name: value for name in ("partition", "account") if (value := getattr(options, name)) is not None}
    environment = {k: v for k, v in site_environment().items() if k[7:].lower().replace("_", "-") not in choices}
    if options.gpus_per_node == 0:
        environment["GPUS_PER_NODE"] = "0"  # of a whole node Slurm gives us the GPUs, asked for or not
    arguments = [options.sweep] if options.sweep is not None else []
    submission = Submission(template, choices, [*arguments, *to_words(given)], environment)
    return Plan(submission, folder, tasks, data_notes(config))


def estimate(submission: Submission) -> str:
    """Return when Slurm would start the job; raises `UserError` where it never would."""
    said = re.sub(r"^sbatch: Job \d+ ", "", submission.run("--test-only").rpartition("\n")[2])
    return f"Slurm accepts it, {said}"


def how_to_follow(plan: Plan, job_id: str) -> list[str]:
    """Return what was submitted, where its files will be, and the commands to watch and to stop it."""
    submission, several = plan.submission, plan.tasks is not None
    name, task = submission.options["job-name"], "0" if several else None
    log = fill(directives(submission.template)["output"], name, job_id, job_id, task)
    if plan.folder.endswith(SWEEP_TASK):
        runs = fill(plan.folder.removesuffix(SWEEP_TASK), name, job_id, job_id, None)
    else:
        runs = fill(plan.folder, name, job_id, job_id, "*" if several else None)
    what = f"job array {job_id} of {plan.tasks} runs" if several else f"job {job_id}"
    return [
        f"submitted    {what}, {name}, with slurm/{submission.template}.sbatch",
        f"run folder{'s' if several else ' '}  {runs}",
        f"log          tail -F {log}",
        "progress     python -m cifar_dist queue",
        f"curves       python -m cifar_dist compare {runs} --follow",
        f"stop         scancel {job_id}",
    ]
