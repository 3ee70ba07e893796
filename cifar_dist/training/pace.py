"""Ranks that take longer than others for the same work. All wait for them at each step, so no step shows which they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

SLOW = 1.5  # times the median of the others


def slow_ranks(block_s: Sequence[float | None]) -> dict[int, float]:
    """Return the ranks that take `SLOW` times as long for a block of evaluation as the others do in the median, and how many times.

    A rank that had no block has None.
    """
    slow = {}
    for rank, own in enumerate(block_s):
        others = [seconds for other, seconds in enumerate(block_s) if other != rank and seconds]
        if own and others and own >= SLOW * median(others):
            slow[rank] = own / median(others)
    return slow


@dataclass
class Pace:
    """Which ranks were slow, over a run's validations."""

    before: set[int] = field(default_factory=set)  # at the last one
    named: set[int] = field(default_factory=set)

    def notice(self, block_s: Sequence[float | None]) -> Mapping[int, float]:
        """Return the ranks that were slow at two validations in a row, each once, and how many times as slow as the others."""
        now = slow_ranks(block_s)
        lasting = {rank: times for rank, times in now.items() if rank in self.before - self.named}
        self.before, self.named = set(now), self.named | set(lasting)
        return lasting
