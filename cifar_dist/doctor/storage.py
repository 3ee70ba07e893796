"""The data that runs read, and the folder that they write checkpoints to."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar_dist.data import cache_folder
from cifar_dist.data.cache import inspect_cache, recorded_fingerprint
from cifar_dist.data.cifar import OFFICIAL
from cifar_dist.doctor.cached_data import folder_bytes
from cifar_dist.doctor.check import Visit
from cifar_dist.doctor.lines import Answer, Line, disagreement, failed, hosts, ok, ranks, warning
from cifar_dist.files import write_synced
from cifar_dist.runtime.launch import env_int
from cifar_dist.text import duration, size

BLOCK_BYTES = 64 * 10**6  # of the disk test; a checkpoint of ResNet-18 with momentum is 134 MB
SLOW_BYTES_PER_S, SLOW_FSYNC_S = 20e6, 0.5
SCARCE_BYTES, TOO_LITTLE_BYTES = 5e9, 0.5e9
RUNS = "runs"  # where runs go without --output-dir
OTHER_PLACE = "give --output-dir a place that you may write to, on a disk that all nodes see"


def measure_data(visit: Visit) -> dict[str, Any]:
    """Look for the decoded data; the first rank of each machine reads all of it. Builds nothing."""
    config = visit.config
    data_dir = Path(config.data_dir)
    folder = cache_folder(config.data, data_dir, config.image_size)
    facts = {"folder": str(folder), "recorded": recorded_fingerprint(folder), "damage": "", "archive": False}
    if not folder.is_dir():
        return facts | {
            "missing": True,
            "archive": config.data in OFFICIAL and needs_no_download(config.data, data_dir),
        }
    start = time.perf_counter()
    if env_int("LOCAL_RANK", 0) == 0:
        state = inspect_cache(folder)
        facts |= {"damage": "" if state.whole else state.damage, "recorded": state.recorded}
    return facts | {"missing": False, "seconds": time.perf_counter() - start, "bytes": folder_bytes(folder)}


def needs_no_download(official: str, data_dir: Path) -> bool:
    """Whether an official set is there, packed or unpacked, or decoded at its own size."""
    return OFFICIAL[official].is_in(data_dir) or cache_folder(official, data_dir).is_dir()


def judge_data(data: str, data_dir: str, image_size: int | None = None) -> Callable[[Sequence[Answer]], list[Line]]:
    """Return the judge of what `measure_data` found for these options."""
    prepare = f"python -m cifar_dist prepare --data {'cifar10' if data == 'auto' else data} --data-dir {data_dir}"
    prepare += f" --image-size {image_size}" if image_size else ""

    def judge(answers: Sequence[Answer]) -> list[Line]:
        lines = []
        if missing := [a for a in answers if a.facts["missing"]]:
            lines.append(missing_line(data, missing, prepare))
        for answer in answers:
            if answer.facts["damage"]:
                folder = answer.facts["folder"]
                advice = f"delete {folder}, then {prepare}"
                lines.append(failed("data", f"{folder} is damaged on {answer.host}: {answer.facts['damage']}", advice))
        there = [a for a in answers if not a.facts["missing"]]
        prints = [f"fingerprint {a.facts['recorded'][:12] or 'none'}" for a in there]
        if line := disagreement("data", there, prints, f"copy one node's {data_dir}/cache to the others, or share it"):
            lines.append(line)
        return lines or [whole_line(there)]

    return judge


def missing_line(data: str, missing: Sequence[Answer], prepare: str) -> Line:
    where = "" if len(missing) == 1 and missing[0].rank == 0 else f" for {ranks(missing)}"
    text = f"{data} is not prepared{where}: there is no {missing[0].facts['folder']}"
    if data in OFFICIAL and not missing[0].facts["archive"]:
        return failed("data", text, f"on a machine with internet: {prepare}")
    return warning("data", f"{text}; the first run would make it", f"to have it ready: {prepare}")


def whole_line(answers: Sequence[Answer]) -> Line:
    readers = list(hosts(answers).values())
    slowest = max(readers, key=lambda a: a.facts["seconds"])
    facts = slowest.facts
    at = f" on {slowest.host}, the slowest of {len(readers)} hosts" if len(readers) > 1 else ""
    equal = f", equal on {len(answers)} ranks" if len(answers) > 1 else ""
    text = f"{facts['folder']}, {size(facts['bytes'])}, read and hashed in {duration(facts['seconds'])}{at}"
    return ok("data", f"{text}; fingerprint {facts['recorded'][:12]} as written{equal}")


def output_parent(output_dir: str | None) -> Path:
    """Return the folder that runs are made in, or the nearest one above it that exists."""
    parent = (Path(output_dir).parent if output_dir else Path(RUNS)).absolute()
    return next(path for path in (parent, *parent.parents) if path.is_dir())


def measure_disk(visit: Visit) -> dict[str, Any]:
    """Write as checkpoints are written, in a folder that is removed again; other hosts see whether they see it."""
    meeting, parent = visit.meeting, output_parent(visit.config.output_dir)
    if meeting.rank != 0:
        place = meeting.read("disk/place", 60.0)
        visible = place is not None and Path(place).is_dir()
        meeting.post(f"disk/visible/{meeting.rank}", visible)
        return {"visible": visible}
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=parent))
    finally:
        meeting.post("disk/place", str(folder) if folder else None)
    try:
        facts = {"parent": str(parent), "free": shutil.disk_usage(parent).free, **write_speed(folder)}
        facts |= {"locks": locks_hold(folder), "rename": renames(folder), "visible": True}
        for rank in visit.others:
            meeting.read(f"disk/visible/{rank}", 30.0)  # removing it earlier would hide it
        return facts
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_speed(folder: Path) -> dict[str, float]:
    """Return the bytes a second of a large write with fsync, and the median seconds of a small one."""
    block = os.urandom(BLOCK_BYTES)  # a disk that compresses has no advantage
    start = time.perf_counter()
    write_synced(folder / "block", block)
    seconds = time.perf_counter() - start
    latencies = []
    for _ in range(9):
        start = time.perf_counter()
        write_synced(folder / "small", b"4" * 4096)
        latencies.append(time.perf_counter() - start)
    return {"bytes_per_s": BLOCK_BYTES / seconds, "fsync_s": statistics.median(latencies)}


def locks_hold(folder: Path) -> str:
    """Return `yes`, `no`, or `none` where the file system has no locks."""
    try:
        with FileLock(folder / "lock"):
            try:
                with FileLock(folder / "lock", timeout=0):
                    return "no"
            except Timeout:
                return "yes"
    except (NotImplementedError, OSError):
        return "none"


def renames(folder: Path) -> bool:
    """Whether a file replaces another in one move, and a folder can be moved to its final name."""
    (folder / "old").write_bytes(b"old")
    (folder / "new").write_bytes(b"new")
    (folder / "partial").mkdir()
    try:
        os.replace(folder / "new", folder / "old")
        os.replace(folder / "partial", folder / "final")
    except OSError:
        return False
    return (folder / "old").read_bytes() == b"new" and not (folder / "new").exists() and (folder / "final").is_dir()


def judge_disk(answers: Sequence[Answer]) -> list[Line]:
    facts = answers[0].facts
    if answers[0].rank != 0:
        return []
    speed, fsync_s, free = facts["bytes_per_s"], facts["fsync_s"], facts["free"]
    text = f"{size(speed)}/s written to {facts['parent']}, a small fsync takes {duration(fsync_s)}"
    slow = speed < SLOW_BYTES_PER_S or fsync_s > SLOW_FSYNC_S
    advice = "use a faster file system with --output-dir, or a larger --checkpoint-minutes"
    lines = [warning("disk", text, advice) if slow else ok("disk", text), free_line(free)]
    stand_in = "nothing to do: a file stands in for one; after a crash on another machine the next start names it, to be removed"
    no_locks = "never start two runs with one --output-dir at a time: nothing would keep them apart here"
    locks = {
        "yes": ok("locks", "a second process is kept out of a run folder"),
        "none": warning("locks", "this file system has none", stand_in),
        "no": failed("locks", "a lock was given twice", f"{no_locks}; better use another file system"),
    }
    lines.append(locks[facts["locks"]])
    if facts["rename"]:
        lines.append(ok("rename", "files and folders appear whole or not at all"))
    else:
        lines.append(failed("rename", "renaming does not replace a file in one move", OTHER_PLACE))
    return [*lines, *sharing_lines(answers)]


def free_line(free: float) -> Line:
    advice = "delete old runs' checkpoints, or give --output-dir a place on another disk"
    if free < TOO_LITTLE_BYTES:
        return failed("space", f"{size(free)} free", advice)
    return warning("space", f"{size(free)} free", advice) if free < SCARCE_BYTES else ok("space", f"{size(free)} free")


def sharing_lines(answers: Sequence[Answer]) -> list[Line]:
    """Whether a job that is requeued on another node would find its run."""
    others = [a for a in hosts(answers).values() if a.host != answers[0].host]
    if not others:
        return []
    blind = [a.host for a in others if not a.facts["visible"]]
    if blind:
        text = f"the output folder of {answers[0].host} is not seen on {', '.join(blind)}"
        return [warning("sharing", text, f"a run resumed there would start over; {OTHER_PLACE}")]
    return [ok("sharing", f"all {len(others) + 1} hosts see the output folder")]
