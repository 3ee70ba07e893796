"""What a user did wrong: one exception, shown as one line with exit status 2, and look-ups that name the nearest choice."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from cifar_dist.text import shortened

T = TypeVar("T")


class UserError(Exception):
    """Wrong usage or input. The message is one line: the values, the rule and the way out."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among `choices`, naming the nearest and then all of them."""
    choices = list(choices)
    return UserError(
        f"unknown {kind} {shortened(repr(name))}.{did_you_mean(name, choices)} Choose one of: {', '.join(choices)}"
    )


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a question naming the choice nearest to `name`, with a space before it; empty where none is near."""
    near = get_close_matches(name, list(choices), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return `table[name]`; raises `UserError` naming the nearest choice."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""
