"""What a container or a batch system lets a process have, by Linux's control groups."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def own_cgroup() -> Path | None:
    """Return this process's folder in the cgroup v2 tree; None without one."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    return None if own is None else CGROUPS / own.lstrip("/")


def memory_in_use(group: Path | None) -> float:
    """Return the bytes that a group's processes use; 0 where that isn't known."""
    try:
        return float((group / "memory.current").read_text()) if group else 0.0
    except (OSError, ValueError):
        return 0.0


def cgroup_limit(group: Path | None, name: str) -> float | None:
    """Return the smallest limit of a group and those around it: cpu.max in cores, memory.max in bytes; None for none."""
    limits = []
    while group is not None and group != CGROUPS.parent:
        try:
            words = (group / name).read_text().split()
        except OSError:
            words = ["max"]
        if words[0] != "max":
            limits.append(int(words[0]) / int(words[1] if len(words) > 1 else 1))
        group = group.parent
    return min(limits, default=None)
