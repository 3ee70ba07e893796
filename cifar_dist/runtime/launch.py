"""What the launcher started and was asked for: read from the environment and its command line, before there is a process group."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # numbers that a launcher sets
SHARDERS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")  # Accelerate's other ways of training
MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # without which processes don't find each other


def env_int(name: str, default: int) -> int:
    """Return a number of the environment; what is none counts as not set, and `check_environment` refuses it."""
    try:
        return int(os.environ.get(name) or default)
    except ValueError:
        return default


def check_environment() -> None:
    """Raise `UserError` for what a launcher would not have set: left over from another program, most likely."""
    for name in RANKS:
        value = os.environ.get(name)
        if value and not value.strip().removeprefix("-").isdecimal():
            raise UserError(f"{name}={value!r} in the environment is not a whole number; unset it")
    said = [name for name in ("RANK", "LOCAL_RANK") if os.environ.get(name)] + ["WORLD_SIZE"] * (
        env_int("WORLD_SIZE", 1) > 1
    )
    missing = [name for name in MEETING if not os.environ.get(name)]
    if said and missing:
        raise UserError(
            f"{said[0]}={os.environ[said[0]]} in the environment says that a launcher started this process, but {missing[0]} is not "
            f"set; unset {said[0]}, or start with accelerate launch or torchrun"
        )


def launch_id() -> str | None:
    """Return what all processes of a launch by torchrun share, over its restarts; None where it doesn't say."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name in (None, "", "none") else name


def one_machine() -> bool:
    """Whether the launcher started all processes on this machine, so that all see the same files and GPUs."""
    return env_int("WORLD_SIZE", 1) == env_int("LOCAL_WORLD_SIZE", env_int("WORLD_SIZE", 1))


def under_launcher() -> bool:
    """Whether accelerate launch or torchrun started this process. They report any exit status but 0 as a crash."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def start_again(script: str, options: Sequence[str]) -> str:
    """Return the line that starts `script` with these options as this process was started: by python, or by its launcher."""
    words = [sys.argv[0] if Path(sys.argv[0]).name == script else script, *options]
    if not under_launcher():
        return shlex.join(["python", *words])
    if not one_machine():
        return f"on each machine the same launch of {shlex.join(words)}"
    try:
        launcher = psutil.Process().parent().cmdline()
        program, *settings = launcher[1 : launcher.index(sys.argv[0])]  # without the interpreter, up to the script
    except (psutil.Error, AttributeError, ValueError):
        return f"the same launch of {shlex.join(words)}"
    return shlex.join([*(["python", program] if program == "-m" else [Path(program).name]), *settings, *words])


@dataclass(frozen=True)
class LaunchRequest:
    """What the parent process, `accelerate launch`, was asked for."""

    num_processes: int | None
    config_file: str | None
    use_cpu: bool


def launch_request() -> LaunchRequest | None:
    """Read the launcher's own command line and config file; None without such a parent.

    The launcher starts one process where it was asked for several CPU processes, and tells nobody.
    """
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    start = next((i for i, word in enumerate(words[:4]) if word.endswith(("launch", "launch.py"))), None)
    if start is None or not any("accelerate" in word for word in words[: start + 1]):
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        args, _ = launch_command_parser().parse_known_args(words[start + 1 :])
        path = args.config_file or (
            default_config_file if Path(default_config_file).is_file() and not args.cpu else None
        )
        file = load_config_from_file(path) if path else None
    except (SystemExit, Exception):  # not ours to judge: the launcher itself accepted them
        return None
    from_file = file.num_processes if file and file.num_processes > 0 else None
    return LaunchRequest(args.num_processes or from_file, args.config_file, args.cpu or bool(file and file.use_cpu))


def check_launch(config: TrainConfig, request: LaunchRequest | None) -> None:
    """Raise `UserError` where the launcher's wish, this machine and the configuration disagree."""
    check_environment()
    gpus = torch.cuda.device_count()
    local_world_size = env_int("LOCAL_WORLD_SIZE", 1)
    if config.device == "gpu" and not uses_gpu(config):
        why = "the launch config asks for the CPU" if gpus else "torch sees no GPU on this machine"
        raise UserError(f"--device gpu, but {why}; use --device auto, or another launch config, or check the driver")
    if request and request.config_file and not request.use_cpu and config.device == "auto" and not gpus:
        raise UserError(
            f"{request.config_file} asks for a GPU (use_cpu: false), but torch sees none; "
            "use launch/cpu.yaml or launch/multi_cpu.yaml, or --device cpu"
        )
    if request and request.num_processes and request.num_processes > 1 and env_int("WORLD_SIZE", 1) == 1:
        raise UserError(
            f"the launcher was asked for {request.num_processes} processes and started 1, which it does on CPUs; "
            f"use accelerate launch --config_file launch/multi_cpu.yaml --num_processes {request.num_processes}"
        )
    if uses_gpu(config) and local_world_size > gpus:
        raise UserError(
            f"{local_world_size} processes on a node with {gpus} GPUs; use --num_processes {gpus}, or --device cpu"
        )
    check_precision(config)
    for name in SHARDERS:
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise UserError(
                f"the launcher was asked for {name.replace('_', ' ')}, but here every process holds the whole model; "
                "use one of launch/*.yaml"
            )
    if env_int("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1) != 1:
        raise UserError(
            "accumulation follows from --batch-size and --micro-batch-size; leave --gradient_accumulation_steps out of the launch"
        )


def check_precision(config: TrainConfig) -> None:
    """Raise `UserError` for a precision that this machine would not compute in."""
    if config.mixed_precision == "fp16" and not uses_gpu(config):
        raise UserError("--mixed-precision fp16 needs a GPU (a CPU would silently compute in fp32); use bf16 or no")


def uses_gpu(config: TrainConfig) -> bool:
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return torch.cuda.is_available() and config.device != "cpu" and not wants_cpu


def default_threads() -> int:
    """Return this process's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return max(1, cores // env_int("LOCAL_WORLD_SIZE", 1))
