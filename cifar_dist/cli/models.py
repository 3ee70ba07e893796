"""`python -m cifar_dist models`: every model, what it is, its size, and the recipes that train it."""

import re
from collections.abc import Sequence
from inspect import getdoc
from itertools import groupby

import torch
from rich.markup import escape

from cifar_dist.cli import command_parser
from cifar_dist.console import Console, listing
from cifar_dist.exits import FINISHED
from cifar_dist.models import ALIASES, MODELS, build_model, default_options
from cifar_dist.recipes import RECIPES, models_of, published
from cifar_dist.text import option_text


def main(argv: Sequence[str]) -> int:
    """Print the table; raises `UserError` for any option."""
    command_parser("models").parse(argv)
    table = listing()
    table.add_column("model", no_wrap=True)
    table.add_column("what it is, its options", overflow="fold")
    table.add_column("parameters", no_wrap=True, justify="right")
    table.add_column("recipes, published", no_wrap=True)
    accepted = {recipe: models_of(recipe) for recipe in RECIPES}
    for model in MODELS:
        names = [f"[bold]{model}[/]", *(f"or {alias}" for alias, name in ALIASES.items() if name == model)]
        about = [escape(source(model))]
        if options := default_options(model):
            about.append(f"[cyan]{' '.join(f'{key}={option_text(value)}' for key, value in options.items())}[/]")
        recipes = recipe_lines(model, [recipe for recipe, models in accepted.items() if model in models])
        table.add_row("\n".join(names), "\n".join(about), f"{num_parameters(model):,}", "\n".join(recipes))
    Console(speaks=True).rich.print(table)
    return FINISHED


def source(model: str) -> str:
    """Return the first line of the builder's docstring, without the number of parameters."""
    return re.sub(r"; [\d,]+ parameters\.", ".", (getdoc(MODELS[model]) or "").partition("\n")[0])


def num_parameters(model: str) -> int:
    """Count the parameters; costs no memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(model).parameters())


def recipe_lines(model: str, recipes: Sequence[str]) -> list[str]:
    """Return a line for each recipe, with what it published; all rows of a paper's table (NAME/1, NAME/2, ...) share one."""
    lines = []
    for _, (first, *rows) in groupby(recipes, key=lambda recipe: recipe.partition("/")[0]):
        lines.append(f"{first} {published(first, model)}".rstrip())
        if rows:
            lines.append(f"{rows[0]} to {rows[-1].rpartition('/')[2]}")
    return lines
