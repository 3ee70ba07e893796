"""The imports of a script: whether what requirements.txt names is installed, and Ctrl-C while they last. Imports nothing of it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOTHING_TO_SAVE = "interrupted before there was anything to save"


@contextmanager
def needed() -> Iterator[None]:
    """Hold the imports of a script; for one that is not installed, and for Ctrl-C, end with a line in place of a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "cifar_dist").startswith("cifar_dist"):
            raise
        how = "activate the environment (. .venv/bin/activate) or make it: make setup"
        sys.stderr.write(f"error: {error.name} is not installed in {sys.executable}; {how}\n")
        sys.exit(2)
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(*_: Any) -> None:
    """End the process with status 1, at once: numpy turns an exception within its import into another one.

    Of several processes one says why.
    """
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{NOTHING_TO_SAVE}\n".encode())
    os._exit(1)
