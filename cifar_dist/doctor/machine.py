"""The machines: cores, memory, shared memory and GPUs, as far as this process may use them."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from cifar_dist.doctor.check import Check, Visit
from cifar_dist.doctor.lines import Answer, Line, each_host, ok, ranks, warning
from cifar_dist.runtime.cgroup import cgroup_limit, own_cgroup
from cifar_dist.runtime.launch import default_threads, env_int
from cifar_dist.text import count, size

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES = 256e6  # containers get 64 MB unless told otherwise, too little for NCCL's ranks on one node
MEMORY_BYTES = 2e9  # a process with torch and CIFAR-10 takes about half of it
FREE_SHARE = 0.9  # of a GPU's memory; less means that somebody else is on it


def measure(visit: Visit) -> dict[str, Any]:
    """Return what this rank's machine lets it use."""
    group = own_cgroup()
    available = psutil.virtual_memory().available
    limit = cgroup_limit(group, "memory.max")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "quota": cgroup_limit(group, "cpu.max"),
        "threads": visit.config.threads or default_threads(),
        "processes": env_int("LOCAL_WORLD_SIZE", 1),
        "memory": min(available, limit or math.inf),
        "memory limit": limit,
        "shared memory": shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        "gpus": torch.cuda.device_count(),
        "gpu": gpu(visit.device),
    }


def gpu(device: torch.device) -> dict[str, Any] | None:
    """Return what this rank's GPU is; None on a CPU, or where there are fewer GPUs than ranks."""
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return None
    torch.cuda.set_device(device)
    free, total = torch.cuda.mem_get_info(device)
    name, bf16 = torch.cuda.get_device_name(device), torch.cuda.is_bf16_supported(including_emulation=False)
    return {"name": name, "free": free, "total": total, "bf16": bf16}


def judge_host(facts: dict[str, Any]) -> list[Line]:
    return [cpu_line(facts), memory_line(facts), *shared_memory_lines(facts)]


def cpu_line(facts: dict[str, Any]) -> Line:
    cores, quota = facts["cores"], facts["quota"]
    usable = min(cores, quota or math.inf)
    wanted = facts["processes"] * facts["threads"]
    limited = f" (a cgroup grants the time of {quota:g})" if quota and quota < cores else ""
    text = f"{count(cores, 'core')} usable{limited}; {count(facts['processes'], 'process')} here, "
    text += f"{count(facts['threads'], 'thread')} each"
    if wanted > math.ceil(usable):
        threads = max(1, int(usable) // facts["processes"])
        advice = f"ask for more cores (Slurm: --cpus-per-task), or use --threads {threads}"
        if facts["processes"] > usable:
            advice = "ask for more cores (Slurm: --cpus-per-task), or start fewer processes"
        return warning("cpu", f"{text}: {wanted} threads for {usable:g} cores", advice)
    return ok("cpu", text)


def memory_line(facts: dict[str, Any]) -> Line:
    limit = f", the limit of this job or container is {size(facts['memory limit'])}" if facts["memory limit"] else ""
    text = f"{size(facts['memory'])} available{limit}"
    if facts["memory"] < MEMORY_BYTES * facts["processes"]:
        advice = "ask for more memory (Slurm: --mem), or start fewer processes"
        return warning("memory", f"{text}, for {count(facts['processes'], 'process')}", advice)
    return ok("memory", text)


def shared_memory_lines(facts: dict[str, Any]) -> list[Line]:
    free = facts["shared memory"]
    if free is None:
        return []
    if facts["gpu"] and facts["processes"] > 1 and free < SHARED_MEMORY_BYTES:
        advice = "NCCL exchanges data there; start the container with --ipc=host or --shm-size=1g"
        return [warning("/dev/shm", f"{size(free)} free", advice)]
    return [ok("/dev/shm", f"{size(free)} free")]


def judge_gpus(answers: Sequence[Answer]) -> list[Line]:
    """Return a line for each kind of GPU in use, and one for each that somebody else is on."""
    used = [a for a in answers if a.facts["gpu"]]
    if not used:
        gpus = answers[0].facts["gpus"]
        return [ok("GPUs", f"{gpus} here, not used: --device cpu, or a launch config for CPUs" if gpus else "none")]
    kinds: dict[str, list[Answer]] = {}
    for answer in used:
        gpu = answer.facts["gpu"]
        kind = f"{gpu['name']}, {size(gpu['total'])}, {'' if gpu['bf16'] else 'no '}bf16"
        kinds.setdefault(kind, []).append(answer)
    lines = [ok("GPUs", f"{kind}: {ranks(same)}") for kind, same in kinds.items()]
    for answer in used:
        gpu = answer.facts["gpu"]
        if gpu["free"] < FREE_SHARE * gpu["total"]:
            text = f"{answer.where}: {size(gpu['free'])} of {size(gpu['total'])} are free"
            lines.append(warning("GPUs", text, "nvidia-smi shows who uses it; ask for a GPU of your own"))
    return lines


def judge(answers: Sequence[Answer]) -> list[Line]:
    return [*each_host(judge_host)(answers), *judge_gpus(answers)]


CHECKS = [Check("machine", "Machine", measure, judge)]
