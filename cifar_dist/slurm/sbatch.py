"""The sbatch command of a job: our templates, what a site sets, time limits, and Slurm's refusals in one line."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import cifar_dist
from cifar_dist.errors import UserError

TEMPLATES = Path(cifar_dist.__file__).parents[1] / "slurm"
SITE_TIMEOUT_S = 60.0
PREFIXES = re.compile(r"^(?:sbatch: (?:error: |fatal: )?|allocation failure: )(?:Batch job submission failed: )?")
WAYS_OUT = (  # what Slurm says, and what to do; the first that fits
    ("invalid partition", "sinfo -s lists the partitions; name one with --partition or in slurm/site.sh"),
    ("policy", "a limit of your account; wait until some of your jobs have ended, or ask for less at once"),
    ("account", 'sacctmgr show assoc user="$USER" lists yours; name one with --account or in slurm/site.sh'),
    ("qos", 'sacctmgr show assoc user="$USER" format=account,qos lists yours; set SBATCH_QOS in slurm/site.sh'),
    ("time limit", "sinfo -o '%P %l' lists the longest; use a shorter --time, a preemptible job goes on after it"),
    (
        "node configuration is not available",
        "use fewer --nodes or --gpus-per-node (sinfo -o '%P %D %c %m %G' lists nodes, their CPUs, MB and GPUs), or, "
        "if nodes are down just now, queue it by hand with the command that --dry-run shows",
    ),
    ("gres", "sinfo -o '%P %G' lists the GPUs; use another --gpus-per-node or --partition"),
    ("generic resource", "sinfo -o '%P %G' lists the GPUs; use another --gpus-per-node or --partition"),
    ("array", "scontrol show config | grep MaxArraySize shows the longest; submit fewer tasks"),
    ("configuration", "sbatch is not set up on this machine; use a login node of the cluster"),
    ("contact", "the controller does not answer; try again in a few minutes"),
)
PER_GPU = ("cpus-per-task", "mem")
HAND_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")
SLURM_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Submission:
    """A job as sbatch takes it."""

    template: str  # train, sweep, ...
    options: dict[str, str]  # sbatch's long options, without those that are left to the template or the site
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)  # what it needs besides ours

    def words(self, *extra: str) -> list[str]:
        options = [f"--{name}={value}" if value else f"--{name}" for name, value in self.options.items()]
        return ["sbatch", *extra, *options, f"{TEMPLATES.name}/{self.template}.sbatch", *self.arguments]

    def shell_line(self) -> str:
        """Return the command as a line for a shell."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.words())])

    def run(self, *extra: str) -> str:
        """Run the command with `extra` options and return what it said; raises `UserError` where Slurm refuses."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(self.words(*extra), env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(refusal(done.stderr))
        return (done.stdout or done.stderr).strip()


def refusal(stderr: str) -> str:
    """Return what sbatch said as one line with a way out."""
    lines = [PREFIXES.sub("", line).strip() for line in stderr.splitlines()]
    said = "; ".join(filter(None, lines)) or "no reason"
    wants = (way_out for text, way_out in WAYS_OUT if text in said.lower())
    return f"sbatch refuses: {said}; {next(wants, 'man sbatch explains its options')}"


def directives(template: str) -> dict[str, str]:
    """Return the options of the template's #SBATCH lines, written as --NAME=VALUE or --NAME; raises `UserError` where there is none."""
    path, found = TEMPLATES / f"{template}.sbatch", dict[str, str]()
    if not path.is_file():
        raise UserError(f"there is no {path}; run the package from its repository, which holds the templates")
    for line in path.read_text().splitlines():
        if line.startswith("#SBATCH"):
            words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
            found |= {name: value for name, _, value in (word[2:].partition("=") for word in words)}
        elif line.strip() and not line.startswith("#"):  # Slurm reads none after the first command either
            break
    return found


def resources(template: str, nodes: int, gpus_per_node: int | None, time: str | None) -> dict[str, str]:
    """Return what to ask for besides what the template does; raises `UserError` where the time is too short for it."""
    asked, chosen = directives(template), dict[str, str]()
    if nodes > 1:
        chosen["nodes"] = str(nodes)
    if gpus_per_node is not None:
        chosen["gpus-per-node"] = str(gpus_per_node)
    if gpus_per_node and "exclusive" in asked:  # some of its GPUs: not the whole node then
        chosen["oversubscribe"] = ""
    if gpus_per_node:
        for name, per_gpu in directives("sweep").items():  # whose jobs have one GPU
            if name in PER_GPU:
                chosen[name] = re.sub(r"\d+", lambda number: str(int(number[0]) * gpus_per_node), per_gpu)
    if time is not None:
        limit, lead_s = time_limit(time), int(asked.get("signal", "@0").partition("@")[2])
        if limit.total_seconds() <= lead_s:
            raise UserError(f"--time {time} is too short: the run stops {lead_s} s before it, to save a checkpoint")
        chosen["time"] = slurm_time(limit)
    return chosen


def site_environment() -> dict[str, str]:
    """Return the SBATCH_* variables that slurm/site.sh adds to ours; raises `UserError` where it can't be sourced."""
    site = TEMPLATES / "site.sh"
    if not site.is_file():
        return {}
    script = 'source "$0" >/dev/null; env -0'
    try:
        done = subprocess.run(
            ["bash", "-c", script, str(site)], capture_output=True, timeout=SITE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{site} took longer than {SITE_TIMEOUT_S:g} s; what it does on a login node must end"
        ) from None
    if not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{site} ends the shell that sources it: {said[-1]}; leave exit and set -e out of it")
    variables = dict(entry.split("=", 1) for entry in done.stdout.decode(errors="replace").split("\0") if "=" in entry)
    return changed_variables(variables, os.environ)


def changed_variables(after: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in sorted(after.items()) if k.startswith("SBATCH_") and before.get(k) != v}


def time_limit(text: str) -> timedelta:
    """Return the time that 90m, 2h, 1d12h or a form of Slurm's means: 30 (minutes), 1:30:00, 1-12; raises `UserError`."""
    if (by_hand := HAND_TIME.fullmatch(text)) and text:
        days, hours, minutes, seconds = *_numbers(by_hand.groups()), 0
    elif by_slurm := SLURM_TIME.fullmatch(text):
        days, hours, minutes, seconds = _slurm_time(by_slurm.groups())
    else:
        raise UserError(f"--time {text} is not a time; use 30m, 2h, 1d12h, or Slurm's HH:MM:SS or D-HH:MM:SS")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def slurm_time(limit: timedelta) -> str:
    """Return a time in Slurm's longest form, which nobody takes for minutes and seconds: 01:30:00, 1-12:00:00."""
    minutes, seconds = divmod(limit.seconds, 60)
    clock = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    return f"{limit.days}-{clock}" if limit.days else clock


def _slurm_time(groups: Sequence[str | None]) -> tuple[int, int, int, int]:
    """MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]] (man sbatch)."""
    days, first, second, third = _numbers(groups)
    if groups[0] is not None or groups[3] is not None:
        return days, first, second, third
    return 0, 0, first, second


def _numbers(groups: Sequence[str | None]) -> list[int]:
    return [int(group or 0) for group in groups]
