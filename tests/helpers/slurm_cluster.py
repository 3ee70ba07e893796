"""A real Slurm cluster on this machine for the tests, and the jobs that they submit to it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import ROOT

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter")
SITE = f"""
export PATH={Path(sys.executable).parent}:$PATH
export GPUS_PER_NODE=0 WANDB_MODE=disabled
"""


def why_not() -> str | None:
    """Return why there can be no cluster here, or None."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        return f"not installed: {' '.join(missing)} (Debian: slurm-wlm munge iproute2)"
    if os.geteuid() != 0:
        return "the nodes of the cluster need root, for namespaces of their own"
    namespaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "--mount-proc", "true"]
    tried = subprocess.run(namespaces, capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, and the checkout that jobs are submitted from."""

    environment: dict[str, str]
    checkout: Path

    def call(self, *command: str | Path, **more: str) -> str:
        """Run a command of Slurm's in the checkout and return what it printed; `more` adds to its environment."""
        done = subprocess.run(
            command, cwd=self.checkout, env={**self.environment, **more}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *words: str, **environment: str) -> "Job":
        """Call sbatch and return the job."""
        return Job(self, self.call("sbatch", "--parsable", *words, **environment).strip())

    def node(self, action: str, node: str) -> None:
        self.call(ROOT / "tests/slurm/node.sh", action, node)


@dataclass(frozen=True)
class Job:
    """A submitted job, or one task of an array (id `7_0`)."""

    cluster: Cluster
    id: str

    def facts(self) -> dict[str, str]:
        """Return what Slurm knows of it."""
        return dict(re.findall(r"(\w+)=(\S*)", self.cluster.call("scontrol", "show", "job", self.id)))

    @property
    def log(self) -> str:
        """All that its attempts have printed."""
        paths = [*self.cluster.checkout.glob(f"*-{self.id}.out")]
        return paths[0].read_text() if paths else ""

    def wait_for(self, what: Callable[[], Any], seconds: float = 120) -> None:
        """Wait until `what()` holds."""
        give_up = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < give_up, f"job {self.id}: {self.facts()}\n{self.log}"
            time.sleep(0.3)

    def training(self) -> "Job":
        """Wait until it has trained a few steps."""
        self.wait_for(lambda: re.search(r"^step ", self.log, re.MULTILINE))
        return self

    def ended(self) -> dict[str, str]:
        """Wait for its end and return what Slurm knows of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        self.wait_for(lambda: self.facts()["JobState"] in over)
        return self.facts()

    def stop(self) -> None:
        """Send what --signal sends before the time limit."""
        self.cluster.call("scancel", "--signal=USR1", "--batch", self.id)


@contextmanager
def cluster(nodes: int, checkout: Path) -> Iterator[Cluster]:
    """Bring a cluster up; whatever happens, take it down."""
    if reason := why_not():
        pytest.skip(reason)
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, checkout)
    for name in ("cifar_dist", "launch", "slurm"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("site.sh"))
    (checkout / "slurm/site.sh").write_text(SITE)
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PYTHON"))}
    lab = checkout.with_name("slurm-lab")
    own = {"SLURM_LAB_ID": str(1 + os.getpid() % 200), "SLURM_LAB": str(lab), "SLURM_CONF": str(lab / "etc/slurm.conf")}
    environment = {**outer, **own, "NODES": str(nodes)}
    try:
        up = subprocess.run(
            [ROOT / "tests/slurm/up.sh"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert up.returncode == 0, up.stdout
        yield Cluster(environment, checkout)
    finally:
        subprocess.run([ROOT / "tests/slurm/down.sh"], env=environment, check=False)


def read(folder: Path, name: str = "summary.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())
