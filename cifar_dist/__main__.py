"""`python -m cifar_dist COMMAND`: everything besides training and evaluation."""

import sys
from collections.abc import Sequence
from importlib import import_module

from cifar_dist.errors import lookup
from cifar_dist.exits import FINISHED, guarded

COMMANDS = {  # each a module of cifar_dist.cli, imported only when it is asked for
    "models": "list the models: source, parameters, published accuracy",
    "recipes": "list the recipes: source, models, published accuracy",
    "summary": "show a model's layers: output shapes, parameters, multiply-accumulates",
    "prepare": "download, decode and cache a data set, for machines without internet",
    "doctor": "check what this machine or job can do, and with --dry-run what a run would do",
    "sweep": "run a grid or random search, written as a Weights & Biases sweep, on this machine",
    "submit": "submit a run, seeds or a sweep to Slurm, checked before",
    "queue": "show our Slurm jobs with their run's progress",
    "compare": "compare runs: a table by configuration with intervals, a page with curves and tests, CSV and JSON",
    "report": "make the page and pictures of a run anew",
    "sync": "upload the runs that Weights & Biases does not have yet, and verify each",
}


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
        print("\n".join(["usage: python -m cifar_dist COMMAND [--help]", "", *lines]))
        return FINISHED
    return guarded(lambda: _run(argv[0], argv[1:]))


def _run(name: str, argv: Sequence[str]) -> int:
    lookup(COMMANDS, name, "command")
    command: int = import_module(f"cifar_dist.cli.{name}").main(argv)
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
