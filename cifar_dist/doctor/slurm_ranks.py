"""Ranks that srun started without a launcher: the environment a launcher would have set, from Slurm's."""

import os
import re
import subprocess

FIRST_PORT, PORTS = 20000, 20000


def adopt_slurm_ranks() -> None:
    """Set RANK, WORLD_SIZE and so on where srun started several tasks and no launcher did."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or "WORLD_SIZE" in os.environ:
        return
    per_node = tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    here = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(per_node[int(os.environ["SLURM_NODEID"])]),
        "MASTER_ADDR": first_host(os.environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(FIRST_PORT + (job * 31 + step) % PORTS),  # two jobs on a node don't collide
    }
    os.environ.update({**here, **{name: os.environ[name] for name in here if name in os.environ}})


def tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(part[0])] * int(part[1] or 1)
    return counts


def first_host(node_list: str) -> str:
    """Return the first of Slurm's `node[3-5,9]`, by Slurm's own expansion."""
    expand = ["scontrol", "show", "hostnames", node_list]
    return subprocess.run(expand, capture_output=True, text=True, check=True).stdout.split()[0]
