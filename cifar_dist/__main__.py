"""`python -m cifar_dist COMMAND`, or `cifar-dist COMMAND` where it is installed: everything besides training and evaluation."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cifar_dist.installed import needed

with needed():
    from cifar_dist.cli import COMMANDS
    from cifar_dist.console import Console
    from cifar_dist.errors import UserError, lookup
    from cifar_dist.exits import FINISHED, guarded


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
        Console(speaks=True).say("\n".join(["usage: python -m cifar_dist COMMAND [--help]", "", *lines]))
        return FINISHED
    return guarded(lambda: _run(argv[0], argv[1:]))


SCRIPTS = {"train": "train.py", "eval": "eval.py", "evaluate": "eval.py", "test": "eval.py"}


def _run(name: str, argv: Sequence[str]) -> int:
    if name in SCRIPTS:
        raise UserError(f"{name} is no command here: python {SCRIPTS[name]} does that")
    lookup(COMMANDS, name, "command")
    with needed():
        command: Callable[[Sequence[str]], int] = import_module(f"cifar_dist.cli.{name}").main
    return command(argv)


def run() -> int:
    """Run the command that was typed: what `cifar-dist` starts."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
