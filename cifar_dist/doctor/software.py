"""Versions: whether they fit one another, the driver and this package, and whether all ranks have the same."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

import cifar_dist
from cifar_dist.doctor.check import Check, Visit
from cifar_dist.doctor.lines import Answer, Line, disagreement, failed, ok, warning
from cifar_dist.record.environment import PACKAGES, git_commit

REQUIREMENTS = Path(cifar_dist.__file__).parents[1] / "requirements.txt"  # in a checkout
DRIVER = Path("/proc/driver/nvidia/version")
SAME = "activate the same environment and the same checkout on every node"


def measure(_: Visit) -> dict[str, Any]:
    """Return what this rank runs."""
    return {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES} | {"torch": torch.__version__},  # with its build: +cpu
        "commit": git_commit(),
        "misfits": misfits(REQUIREMENTS.read_text() if REQUIREMENTS.is_file() else ""),
        "torchvision needs": needs("torchvision", "torch"),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "cuda problem": cuda_problem(),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def misfits(requirements: str) -> list[str]:
    """Return what of a requirements file is not installed, or in another version than it asks for."""
    found = []
    for line in requirements.splitlines():
        if line.strip() and line[0] not in "#-":
            requirement = Requirement(line)
            have = installed(requirement.name)
            if have is None or not requirement.specifier.contains(have, prereleases=True):
                found.append(f"{requirement.name} {have or 'is missing'}, needed is {requirement.specifier}")
    return found


def needs(package: str, other: str) -> str:
    """Return which versions of `other` an installed package asks for, such as ==2.9.1; empty for any."""
    if installed(package) is None:
        return ""
    wanted = (Requirement(text) for text in requires(package) or ())
    return next((str(requirement.specifier) for requirement in wanted if requirement.name == other), "")


def driver_version() -> str | None:
    """Return NVIDIA's kernel driver, None where there is none."""
    if not DRIVER.is_file():
        return None
    words = DRIVER.read_text().splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def cuda_problem() -> str:
    """Return why torch can't use the GPUs that a driver is here for; empty where it can, or where there are none."""
    if driver_version() is None or torch.version.cuda is None or torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch.cuda.is_available() is False"


def judge(answers: Sequence[Answer]) -> list[Line]:
    facts = answers[0].facts
    packages = facts["packages"]
    shown = ", ".join(f"{name} {packages[name] or '-'}" for name in ("torch", "torchvision", "accelerate"))
    lines = [ok("versions", f"Python {facts['python']}, {shown}")]
    lines += [failed("requirements", text, "pip install -r requirements.txt") for text in facts["misfits"]]
    lines.append(pair_line(packages, facts["torchvision needs"]))
    lines.append(cuda_line(facts))
    if len(answers) > 1:
        lines.append(agreement(answers))
    return [*lines, commit_line(facts["commit"])]


def pair_line(packages: dict[str, str | None], wanted: str) -> Line:
    name, torch_version = "torch pair", packages["torch"] or ""
    if not wanted or Requirement(f"torch{wanted}").specifier.contains(torch_version, prereleases=True):
        return ok(name, f"torchvision {packages['torchvision']} is made for this torch")
    text = f"torchvision {packages['torchvision']} needs torch {wanted}, this is {torch_version}"
    return failed(name, text, "pip install -r requirements.txt takes a pair that fits")


def cuda_line(facts: dict[str, Any]) -> Line:
    name, cuda, driver = "CUDA", facts["cuda"], facts["driver"]
    if driver is None:
        return ok(name, f"no NVIDIA driver here; torch is built for {f'CUDA {cuda}' if cuda else 'CPUs'}")
    if cuda is None:
        advice = "install a CUDA build of torch (pytorch.org, Get started), or stay on CPUs with launch/cpu.yaml"
        return warning(name, f"driver {driver} is here, but this torch is built for CPUs only", advice)
    if facts["cuda problem"]:
        advice = "see whether nvidia-smi works here, what CUDA_VISIBLE_DEVICES says, and whether the job asked for GPUs"
        return failed(name, f"torch for CUDA {cuda} can't use driver {driver}: {facts['cuda problem']}", advice)
    return ok(name, f"torch for CUDA {cuda} works with driver {driver}")


def agreement(answers: Sequence[Answer]) -> Line:
    """Return whether all ranks run the same; the commit is part of that."""
    for key in ("python", "commit", *answers[0].facts["packages"]):
        values = [f"{key} {(a.facts['packages'] | a.facts)[key]}" for a in answers]
        if line := disagreement("agreement", answers, values, SAME):
            return line
    return ok("agreement", f"all {len(answers)} ranks have the same versions and the same commit")


def commit_line(commit: str | None) -> Line:
    if commit is None:
        return ok("commit", "not a git checkout, so runs record none")
    changed = ", with uncommitted changes, which runs record as a +" * commit.endswith("+")
    return ok("commit", commit[:12] + changed)


CHECKS = [Check("versions", "Software", measure, judge)]
