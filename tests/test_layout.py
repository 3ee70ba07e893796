"""The package's folders import each other in one direction only."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.runs import ROOT

PACKAGE = ROOT / "cifar_dist"


def room(path: Path) -> str:
    """Return the folder of a module of the package; the module itself where it is on the top floor."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the rooms that a module imports from anywhere in its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("cifar_dist.")}
    return {name for name in rooms if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def test_no_folder_is_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        graph.setdefault(room(path), set()).update(imported(path) - {room(path)})
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph) > 20  # a circle raises CycleError
