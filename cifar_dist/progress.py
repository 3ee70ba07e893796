"""How far something is that takes a while: a function that whoever does it calls, and that somebody else shows."""

from collections.abc import Callable

Report = Callable[[float, int], None]
"""Told how much is done, and of how much; (0, 0): it has begun, and nobody knows how long it takes."""


def unheard(done: float, total: int) -> None:
    """Be the report that nobody listens to."""
