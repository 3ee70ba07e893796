"""What the commands that list models and recipes share."""

from collections.abc import Sequence

from rich.table import Table

from cifar_dist.errors import UserError
from cifar_dist.recipes import PUBLISHED


def positional(argv: Sequence[str], option: str) -> list[str]:
    """Return `argv` with its first word, where that isn't an option, as the value of `option`; raises `UserError`."""
    if not argv or argv[0].startswith("-"):
        return list(argv)
    if any(word.partition("=")[0] == option for word in argv):
        raise UserError(f"{argv[0]} and {option} both say which; leave one out")
    return [option, *argv]


def listing() -> Table:
    """Return a table without lines, an empty line between its rows."""
    return Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)


def published(recipe: str, model: str) -> str:
    """Return the published test accuracy as its text has it, such as 91.25 %; empty where there is none."""
    share = PUBLISHED.get((recipe, model))
    return "" if share is None else f"{100 * share:.4g} %"
