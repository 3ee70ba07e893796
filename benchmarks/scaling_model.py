"""How long a step takes on p processes, by a model of two numbers for the computing and two for the network.

Computing a step on b images, on one process:         t_c(b) = a + c b                        a, c: `Compute`
Adding up n bytes over p processes (all-reduce):      t_r(n, p) = r(p) L + 2 (p-1)/p n / B     L, B: `Link`
    ring:    r = 2 (p-1): 1/p of the bytes goes from neighbour to neighbour, round the ring twice. No algorithm sends
             fewer bytes (Patarasuk & Yuan 2009). What gloo does, and NCCL for large messages.
    halving: r = 2 log2 p: recursive halving, then doubling, with as many bytes (Thakur, Rabenseifner & Gropp 2005).
             Stands for the trees that NCCL takes on many GPUs, whose latency grows as slowly.
The step:                                             t(p, b) = t_c(b) + max(0, t_r - h t_c(b))
    The all-reduce starts while the backward pass still computes, and may hide behind it. h = 2/3 of the computing is
    backward pass: gradients of inputs and of weights each cost about what the forward pass does. h = 0: nothing hides.
Images per second:                                    p b / t(p, b)
Efficiency:                                           E = c b / t(p, b)
    against p processes that spend no time on overhead and on sending.
The smallest b with E >= e has to satisfy both branches of the maximum, each linear in b:
    b >= a / (c (1/e - 1))    and    b >= ((1-h) a + t_r) / (c (1/e - 1 + h))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import least_squares

Algorithm = Literal["ring", "halving"]
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Compute:
    """Computing a step on one process: seconds, and seconds per image."""

    overhead_s: float
    image_s: float

    def step_s(self, batch: float) -> float:
        return self.overhead_s + self.image_s * batch


@dataclass(frozen=True)
class Link:
    """What joins the processes: seconds a message takes, and bytes per second that one process sends."""

    latency_s: float
    bandwidth: float

    def all_reduce_s(self, num_bytes: float, processes: int, algorithm: Algorithm = "ring") -> float:
        sent = 2 * (processes - 1) / processes * num_bytes
        return rounds(processes, algorithm) * self.latency_s + sent / self.bandwidth


@dataclass(frozen=True)
class Interconnect:
    """A nominal link, where its two numbers come from, and how many GPUs it joins at most."""

    link: Link
    source: str
    most_gpus: int | None = None


HOP = "NCCL's tuning table (src/graph/tuning.cc, hwLatencies, ring, Simple)"
TCP = "20 us between applications (Hurwitz & Feng 2003), a share of software that a faster line does not shorten"
INTERCONNECTS = {
    "nvlink": Interconnect(Link(3.4e-6, 450e9), f"NVLink 4: 900 GB/s a GPU, half of it each way; 3.4 us by {HOP}", 8),
    "infiniband": Interconnect(Link(14e-6, 50e9), f"NDR: 400 Gb/s (ConnectX-7's manual); 14 us by {HOP}"),
    "ethernet100": Interconnect(Link(20e-6, 12.5e9), f"100 Gb/s (IEEE 802.3ba); {TCP}"),
    "ethernet10": Interconnect(Link(20e-6, 1.25e9), f"10 Gb/s (IEEE 802.3ae); {TCP}"),
}


def rounds(processes: int, algorithm: Algorithm) -> float:
    """Return how many messages follow one another in an all-reduce; `halving` of a power of two is a whole number."""
    return 2 * (processes - 1) if algorithm == "ring" else 2 * math.log2(processes)


def step_s(compute: Compute, all_reduce_s: float, batch: float, hidden: float = BACKWARD_SHARE) -> float:
    """Return the seconds of a step with `batch` images a process."""
    computing = compute.step_s(batch)
    return computing + max(0.0, all_reduce_s - hidden * computing)


def efficiency(compute: Compute, all_reduce_s: float, batch: float, hidden: float = BACKWARD_SHARE) -> float:
    """Return the share of a step's time that images need, in (0, 1]."""
    return compute.image_s * batch / step_s(compute, all_reduce_s, batch, hidden)


def smallest_batch(compute: Compute, all_reduce_s: float, goal: float, hidden: float = BACKWARD_SHARE) -> int:
    """Return the fewest images a process that make the efficiency `goal`, in (0, 1), or more."""
    slack = 1 / goal - 1
    alone = compute.overhead_s / (compute.image_s * slack)
    sending = ((1 - hidden) * compute.overhead_s + all_reduce_s) / (compute.image_s * (slack + hidden))
    return max(1, math.ceil(max(alone, sending) * (1 - 1e-12)))  # not one more for a rounding


def fit_compute(points: Sequence[tuple[int, float]]) -> Compute:
    """Fit (images, seconds); raises `ValueError` where seconds don't grow with images."""
    return Compute(*_fit([(1.0, images) for images, _ in points], [seconds for _, seconds in points], "images"))


def fit_link(points: Sequence[tuple[int, int, float]]) -> Link:
    """Fit (processes, bytes, seconds) of ring all-reduces; raises `ValueError` where seconds don't grow with bytes."""
    columns = [(rounds(p, "ring"), 2 * (p - 1) / p * num_bytes) for p, num_bytes, _ in points]
    latency_s, byte_s = _fit(columns, [seconds for *_, seconds in points], "bytes")
    return Link(latency_s, 1 / byte_s)


def _fit(columns: Sequence[tuple[float, float]], seconds: Sequence[float], what: str) -> tuple[float, float]:
    """Return the x, y >= 0 with which x u + y v comes nearest to `seconds`, by the logarithm of the ratio.

    So microseconds count like seconds, twice as much like half as much, and an outlier (soft L1) little.
    """
    rows, times = np.array(columns), np.array(seconds)
    scale = rows.max(axis=0)  # rounds and bytes lie orders of magnitude apart
    start = np.array([times.min(), times.max()])
    found = least_squares(
        lambda x: np.log(rows / scale @ x / times), start, bounds=(0, np.inf), loss="soft_l1", f_scale=0.1
    )
    x, y = found.x
    if y < 0.01 * times.max():
        raise ValueError(f"more {what} take no more time; measure more of them at once")
    return float(x / scale[0]), float(y / scale[1])
