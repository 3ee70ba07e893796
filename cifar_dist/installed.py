"""Whether what requirements.txt names is installed. Imports nothing of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed() -> Iterator[None]:
    """Hold the imports of a script; for one that is not installed, end with a line in place of a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "cifar_dist").startswith("cifar_dist"):
            raise
        how = "activate the environment (. .venv/bin/activate) or make it: make setup"
        sys.stderr.write(f"error: {error.name} is not installed in {sys.executable}; {how}\n")
        sys.exit(2)
