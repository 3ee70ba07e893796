"""Time spent training: images per second between log lines, without evaluation and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts seconds since `start`; all of them for the record, the unpaused ones for the speed."""

    def start(self, samples: int) -> None:
        """`samples` is the global sample cursor the first lap starts at."""
        now = time.monotonic()
        self._read_at = self._lap_at = now
        self._lap_samples = samples
        self._paused_s = 0.0

    def elapsed_since_last_read(self) -> float:
        """Return the seconds since this was last called, pauses included."""
        now = time.monotonic()
        elapsed, self._read_at = now - self._read_at, now
        return elapsed

    def lap(self, samples: int) -> float:
        """End a lap at the sample cursor `samples`; return its images per second, pauses left out."""
        now = time.monotonic()
        seconds = now - self._lap_at - self._paused_s
        images_per_s = (samples - self._lap_samples) / max(seconds, 1e-9)
        self._lap_at, self._lap_samples, self._paused_s = now, samples, 0.0
        return images_per_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused_s += time.monotonic() - start
