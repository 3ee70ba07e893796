"""How fast a model answers: calls from pixels to probabilities, timed one by one, by batch size."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cifar_dist.inference.predictor import Predictor

WARMUP_CALLS, WARMUP_SHARE = 3, 0.2  # at least so many calls, and this share of the time that is measured
LEAST_CALLS, MOST_CALLS = 10, 100_000  # of a cell, however slow or fast a call is


@dataclass(frozen=True)
class Cell:
    """One batch size, in one way of computing."""

    batch_size: int
    compiled: bool
    warmup_s: tuple[float, ...]  # of each call before those that count
    calls_s: tuple[float, ...]  # of each call that counts

    @property
    def images_per_s(self) -> float:
        return self.batch_size * len(self.calls_s) / sum(self.calls_s)

    def percentile_ms(self, percent: int) -> float:
        """Return the latency that `percent` % of the calls have at most, between two calls in proportion."""
        return 1e3 * statistics.quantiles(self.calls_s, n=100, method="inclusive")[percent - 1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "compiled": self.compiled,
            "warmup_calls": len(self.warmup_s),
            "warmup_s": sum(self.warmup_s),
            "first_call_ms": 1e3 * self.warmup_s[0],
            "calls": len(self.calls_s),
            "images_per_s": self.images_per_s,
            "mean_ms": 1e3 * statistics.fmean(self.calls_s),
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 99)},
        }


def measure(
    model: Predictor,
    batch_size: int,
    seconds: float,
    compiled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Cell:
    """Time calls on `batch_size` images of noise for about `seconds`, after a warm-up.

    A call begins with pixels (B, 3, S, S) uint8 in this machine's memory and ends with probabilities there, so that a GPU has
    done all of its work.
    """
    pixels = noise(batch_size, model.side)

    def call() -> object:
        return model.probabilities(pixels)

    warmup_s = timed(call, clock, WARMUP_SHARE * seconds, WARMUP_CALLS)
    return Cell(batch_size, compiled, warmup_s, timed(call, clock, seconds, LEAST_CALLS))


def noise(batch_size: int, side: int) -> Tensor:
    """Return pixels (B, 3, side, side) uint8, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, generator=generator)


def timed(call: Callable[[], object], clock: Callable[[], float], seconds: float, least: int) -> tuple[float, ...]:
    """Return how long each call took, of at least `least` and of as many more as begin within `seconds`."""
    times: list[float] = []
    begun = end = clock()
    while len(times) < least or (end - begun < seconds and len(times) < MOST_CALLS):
        start = clock()
        call()
        end = clock()
        times.append(end - start)
    return tuple(times)
