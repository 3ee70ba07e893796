"""What joins the ranks: the process group, an all-reduce's result and speed, each rank's link, the clocks."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cifar_dist.doctor import wire
from cifar_dist.doctor.check import Check, Visit
from cifar_dist.doctor.lines import Answer, Line, failed, hosts, ok, ranks, skipped, warning
from cifar_dist.runtime import accelerator
from cifar_dist.text import count, duration

LARGE_BYTES = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}  # a ResNet-18's gradient is 45 MB
LINK_BYTES = 4 * 2**20
SLOW_GB_PER_S = 0.1  # about a network of 1 Gb/s
SLOW_LATENCY_S = 0.02
PERIOD = 251  # of the numbers that are added up: a prime, so that no two chunks look alike
SKEW_WARNING_S, SKEW_FAILED_S = 1.0, 300.0  # Slurm's munge refuses messages that are five minutes off
NETWORK = (
    "the way between the nodes is blocked or takes the wrong interface: see which hosts are named here, and set "
    "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the cluster's interface (ip -br addr); NCCL_DEBUG=INFO says more"
)


def measure_join(visit: Visit) -> dict[str, Any]:
    """Join the process group as a run would."""
    accelerator.join(visit.config)
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if visit.device.type == "cuda" else None
    return {"device": str(visit.device), "backend": wire.backend(), "nccl": nccl}


def judge_join(answers: Sequence[Answer]) -> list[Line]:
    if len(answers) == 1:
        return [ok("ranks", f"one process, {answers[0].facts['device']} on {answers[0].host}")]
    backend, nccl = answers[0].facts["backend"], answers[0].facts["nccl"]
    lines = [
        ok(
            "ranks",
            f"{len(answers)} over {backend}{f' {nccl}' if nccl else ''}, on {count(len(hosts(answers)), 'host')}",
        )
    ]
    for host in hosts(answers):
        here = [a for a in answers if a.host == host]
        devices = sorted({a.facts["device"] for a in here})
        lines.append(ok("host", f"{host}: {ranks(here)} on {', '.join(devices)}"))
    return lines


def measure_all_reduce(visit: Visit) -> dict[str, Any] | None:
    """Add up known numbers over all ranks; time a small and a large tensor. None for a single rank."""
    n = visit.meeting.world_size
    if n == 1:
        return None
    large_bytes = LARGE_BYTES[visit.device.type]
    pattern = torch.arange(large_bytes // 4, device=visit.device) % PERIOD
    own, expected = (pattern + visit.meeting.rank).float(), (n * pattern + n * (n - 1) // 2).float()
    wire.all_reduce(own)
    wrong = int((own != expected).sum())
    small, large = torch.zeros(1, device=visit.device), torch.zeros_like(own)
    latency_s = median_time(lambda: wire.all_reduce(small), warmup=20, count=200)
    seconds = median_time(lambda: wire.all_reduce(large), warmup=1, count=7)
    return {"wrong": wrong, "latency_s": latency_s, "seconds": seconds, "bytes": large_bytes}


def median_time(action: Callable[[], None], warmup: int, count: int) -> float:
    """Return the median seconds of `count` calls after `warmup` more."""
    times = []
    for _ in range(warmup + count):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def judge_all_reduce(answers: Sequence[Answer]) -> list[Line]:
    if answers[0].facts is None:
        return [skipped("all-reduce", "one process has nobody to exchange with; start several with a launcher")]
    n = len(answers)
    wrong = [a for a in answers if a.facts["wrong"]]
    if wrong:
        text = f"wrong sums on {ranks(wrong)} ({wrong[0].facts['wrong']:,} numbers on {wrong[0].where})"
        advice = "don't train on this: it is broken hardware, or libraries of different versions; leave that node out"
        return [failed("all-reduce", text, advice)]
    lines = [ok("all-reduce", f"right on all {n} ranks")]
    slowest = max(answers, key=lambda a: a.facts["latency_s"])
    text = f"{duration(slowest.facts['latency_s'])} for 4 bytes, median of 200; slowest: {slowest.where}"
    slow = slowest.facts["latency_s"] > SLOW_LATENCY_S
    lines.append(warning("latency", text, NETWORK) if slow else ok("latency", text))
    slowest = max(answers, key=lambda a: a.facts["seconds"])
    num_bytes, seconds = slowest.facts["bytes"], slowest.facts["seconds"]
    gb_per_s = num_bytes * 2 * (n - 1) / n / seconds / 1e9
    text = (
        f"{gb_per_s:.2f} GB/s of bus bandwidth = {num_bytes / 2**20:.0f} MiB x 2({n} - 1)/{n} / {duration(seconds)}, "
        f"median of 7; slowest: {slowest.where}"
    )
    return [*lines, warning("bandwidth", text, NETWORK) if gb_per_s < SLOW_GB_PER_S else ok("bandwidth", text)]


def measure_links(visit: Visit) -> dict[int, float] | None:
    """Return, on rank 0, the GB/s to each other rank and back."""
    meeting, speeds = visit.meeting, {}
    tensor: Tensor = torch.zeros(LINK_BYTES // 4, device=visit.device)
    for peer in range(1, meeting.world_size):
        if meeting.rank in (0, peer):
            times = []
            for _ in range(4):
                start = time.perf_counter()
                wire.round_trip(tensor, peer)
                times.append(time.perf_counter() - start)
            speeds[peer] = 2 * LINK_BYTES / min(times) / 1e9
    return speeds if meeting.rank == 0 else None


def judge_links(answers: Sequence[Answer]) -> list[Line]:
    if len(answers) == 1:
        return []
    speeds = {int(peer): speed for peer, speed in answers[0].facts.items()}
    peer, median = min(speeds, key=lambda peer: speeds[peer]), statistics.median(speeds.values())
    slowest = next(a for a in answers if a.rank == peer)
    text = f"slowest from rank 0: {slowest.where}, {speeds[peer]:.2f} GB/s; the median is {median:.2f} GB/s"
    if speeds[peer] < median / 3:
        advice = f"every step waits for it; look at that node, or leave it out (Slurm: --exclude={slowest.host})"
        return [warning("links", text, advice)]
    return [ok("links", text)]


def measure_clock(visit: Visit) -> dict[str, Any]:
    """Return how far the other ranks' clocks are ahead of rank 0's, on rank 0: the best of five exchanges, as NTP does it."""
    meeting = visit.meeting
    offsets: dict[int, tuple[float, float]] = {}  # (round trip, ahead of us), in seconds
    wall, monotonic = time.time(), time.monotonic()
    for peer in visit.others:
        for i in range(5):
            key = f"clock/{peer}/{i}"
            if meeting.rank == 0:
                start = time.time()
                meeting.post(f"{key}/ask", 0)
                theirs, end = meeting.read(f"{key}/tell", 10.0), time.time()
                offsets[peer] = min(offsets.get(peer, (1e9, 0.0)), (end - start, theirs - (start + end) / 2))
            elif meeting.rank == peer:
                meeting.read(f"{key}/ask", 30.0)
                meeting.post(f"{key}/tell", time.time())
    time.sleep(0.1)
    steps = (time.time() - wall) - (time.monotonic() - monotonic)
    return {"offsets": {str(peer): offset for peer, offset in offsets.items()}, "steps_s": steps}


def judge_clock(answers: Sequence[Answer]) -> list[Line]:
    advice = "switch time synchronisation on (chrony or systemd-timesyncd), or tell the cluster's administrators"
    lines = [
        warning("clock", f"{a.where}: it jumped by {a.facts['steps_s']:+.3f} s while this ran", advice)
        for a in answers
        if abs(a.facts["steps_s"]) > 0.05
    ]
    offsets = answers[0].facts["offsets"]
    if not offsets:
        return lines or [ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %z") + ", running evenly")]
    by_rank = {a.rank: a for a in answers}
    peer, (round_trip_s, offset_s) = max(offsets.items(), key=lambda item: abs(item[1][1]))
    text = f"at most {abs(offset_s):.4f} s apart, give or take {round_trip_s / 2:.4f} s: {by_rank[int(peer)].where} against rank 0"
    if abs(offset_s) > SKEW_FAILED_S:
        return [*lines, failed("clock", text, advice)]
    return [*lines, warning("clock", text, advice) if abs(offset_s) > SKEW_WARNING_S else ok("clock", text)]


CHECKS = [
    Check("ranks", "Ranks", measure_join, judge_join, advice=NETWORK, timeout_s=60.0, collective=True),
    Check("all-reduce", "Ranks", measure_all_reduce, judge_all_reduce, advice=NETWORK, collective=True),
    Check("links", "Ranks", measure_links, judge_links, advice=NETWORK, collective=True),
    Check("clock", "Ranks", measure_clock, judge_clock),
]
