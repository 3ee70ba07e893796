"""What is around a run: the launcher, Accelerate's config, Slurm, Weights & Biases."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cifar_dist.doctor.check import Check, Visit
from cifar_dist.doctor.lines import Answer, Line, failed, hosts, ok, skipped, warning
from cifar_dist.runtime import launch
from cifar_dist.text import count
from cifar_dist.tracking.link import has_key, resolve_mode

HARMLESS = {"mixed_precision": ("no", None), "num_processes": (1, None), "num_machines": (1, None)}
WANDB_TIMEOUT_S = 10.0
ASK_WANDB = (
    "import wandb\n"
    "try: print(wandb.Api(timeout=5).default_entity)\n"
    "except Exception as error: raise SystemExit(f'{type(error).__name__}: {error}'.splitlines()[0])"
)


def measure_launch(_: Visit) -> dict[str, Any]:
    """Return how these processes were started, and what the next launch without a config file would read."""
    from accelerate.commands.config.config_args import default_config_file

    request, path = launch.launch_request(), Path(default_config_file)
    return {
        "request": asdict(request) if request else None,
        "launched": launch.under_launcher() or "RANK" in os.environ,
        "world_size": launch.env_int("WORLD_SIZE", 1),
        "local_world_size": launch.env_int("LOCAL_WORLD_SIZE", 1),
        "meeting": f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}",
        "default config": str(path),
        "default": yaml.safe_load(path.read_text()) if path.is_file() else None,
        "slurm": slurm(),
    }


def judge_launch(answers: Sequence[Answer]) -> list[Line]:
    facts = answers[0].facts
    return [launcher_line(facts), accelerate_line(facts), *slurm_lines(facts["slurm"], len(hosts(answers)))]


def launcher_line(facts: dict[str, Any]) -> Line:
    if not facts["launched"]:
        return ok("launcher", "none: one process")
    config = (facts["request"] or {}).get("config_file")
    name = f"accelerate launch{f' with {config}' if config else ''}" if facts["request"] else "torchrun or srun"
    if facts["world_size"] == 1:
        return ok("launcher", f"{name}: one process")
    return ok(
        "launcher",
        f"{name}: {facts['world_size']} processes, {facts['local_world_size']} of them here, meeting at {facts['meeting']}",
    )


def accelerate_line(facts: dict[str, Any]) -> Line:
    """Whether the user's own default config would change a launch that names none."""
    name, path, content = "accelerate", facts["default config"], facts["default"]
    if content is None:
        return ok(name, "no default config; a launch without --config_file takes the GPUs it finds, or one CPU")
    surprises = {key: content.get(key) for key, usual in HARMLESS.items() if content.get(key) not in usual}
    surprises |= {key: True for key in ("use_cpu", "debug") if content.get(key)}
    if not surprises:
        return ok(name, f"{path} is read where no --config_file is given; it changes nothing")
    shown = ", ".join(f"{key}: {value}" for key, value in surprises.items())
    text = f"{path} sets {shown}"
    if (facts["request"] or {}).get("config_file"):
        return ok(name, f"{text}; not read by this launch, which names its own")
    advice = "a launch without --config_file reads it silently; name one of launch/*.yaml, or delete it"
    return warning(name, text, advice)


def slurm() -> dict[str, Any]:
    """Return what Slurm says about this process."""
    job = os.environ.get("SLURM_JOB_ID")
    facts: dict[str, Any] = {"tools": [tool for tool in ("sbatch", "squeue", "srun") if shutil.which(tool)], "job": job}
    if job is None:
        return facts
    facts["nodes"] = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    facts["node list"] = os.environ.get("SLURM_JOB_NODELIST", "")
    facts["tasks"] = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1")
    facts["gpus"] = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    facts["left"] = command_output(["squeue", "--noheader", f"--jobs={job}", "--format=%L"])
    return facts


def command_output(command: Sequence[str], timeout_s: float = 10.0) -> str:
    """Return what a command prints; empty where it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def slurm_lines(facts: dict[str, Any], num_hosts: int) -> list[Line]:
    tools = ", ".join(facts["tools"])
    if facts["job"] is None:
        return [ok("slurm", f"not in a job; {tools} are here")] if tools else [skipped("slurm", "not here")]
    left = f", {facts['left']} left" if facts["left"] else ""
    where = f"{count(facts['nodes'], 'node')} ({facts['node list']})"
    text = f"job {facts['job']}: {where}, {count(int(facts['tasks']), 'task')}, {count(int(facts['gpus']), 'GPU')} a node{left}"
    lines = [ok("slurm", text)]
    if num_hosts < facts["nodes"]:
        text = f"the job has {facts['nodes']} nodes, but these processes run on {num_hosts}"
        advice = "start one launcher per node with srun, as slurm/multinode.sbatch does, or ask for fewer nodes"
        lines.append(warning("slurm", text, advice))
    if "sbatch" not in facts["tools"]:
        advice = "preempted jobs can't requeue themselves from here; put Slurm's bin folder into PATH"
        lines.append(warning("slurm", "sbatch is not in PATH", advice))
    return lines


def measure_wandb(visit: Visit) -> dict[str, Any]:
    """Ask the server who we are, where a run would go online. Bounded, and never prompts."""
    mode = resolve_mode(visit.config.wandb)
    facts: dict[str, Any] = {"mode": mode, "key": has_key()}
    if mode in ("auto", "online") and facts["key"]:
        facts["entity"], facts["problem"] = ask_wandb()
    return facts


def ask_wandb(environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Return the account that the key belongs to, and why it can't be had."""
    quiet = {**(environment or os.environ), "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    quiet.pop("WANDB_MODE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_WANDB],
            env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WANDB_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"no answer within {WANDB_TIMEOUT_S:g} s"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
    return (done.stdout.strip().splitlines() or [""])[-1], ""


def judge_wandb(wanted: str) -> Callable[[Sequence[Answer]], list[Line]]:
    """Return the judge of a run with `--wandb WANTED`."""

    def judge(answers: Sequence[Answer]) -> list[Line]:
        name, facts = "W&B", answers[0].facts
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if facts["mode"] == "disabled":
            return [ok(name, "disabled")]
        if facts["mode"] == "offline":
            return [ok(name, "offline: runs are kept in their folders; python -m cifar_dist sync sends them")]
        if not facts["key"]:
            return [
                warning(name, f"no API key for {host}: runs would be kept offline", "wandb login, or sync them later")
            ]
        if not facts["problem"]:
            return [ok(name, f"{host} answers, the key is {facts['entity']}'s: runs would be online")]
        advice = "see whether this node has internet (a proxy: HTTPS_PROXY) and the key is right: wandb login --relogin"
        if wanted == "online":
            return [failed(name, f"{host}: {facts['problem']}", f"{advice}; or use --wandb offline")]
        text = f"{host}: {facts['problem']}; runs would be kept offline"
        return [warning(name, text, f"{advice}; else sync from the login node: python -m cifar_dist sync")]

    return judge


LAUNCH = Check("launch", "Launch", measure_launch, judge_launch)
