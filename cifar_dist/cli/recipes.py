"""`python -m cifar_dist recipes [NAME]`: every recipe, or all that one of them says and sets."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from inspect import getdoc

from rich.markup import escape

from cifar_dist.cli import command_parser
from cifar_dist.config import TrainConfig
from cifar_dist.console import Console, listing
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED
from cifar_dist.models import MODELS
from cifar_dist.options import resolve_train_config, to_words
from cifar_dist.recipes import RECIPES, models_of, published


def main(argv: Sequence[str]) -> int:
    """Print the table or the one recipe; raises `UserError`."""
    parser = command_parser("recipes", usage="%(prog)s [NAME [--model MODEL]]", argument_default=argparse.SUPPRESS)
    parser.add_word("recipe", "NAME", "the recipe to print")
    parser.add_argument("--recipe", metavar="NAME", help="the same")
    parser.add_argument("--model", metavar="MODEL", help="for this model (default: the recipe's first)")
    given = parser.parse(argv)
    console = Console(speaks=True)
    if "recipe" in given:
        show_recipe(console, resolve_train_config(given))
    elif "model" in given:
        raise UserError(f"--model {given['model']} needs a recipe: python -m cifar_dist recipes NAME --model MODEL")
    else:
        list_recipes(console)
    return FINISHED


def list_recipes(console: Console) -> None:
    """Print the table."""
    table = listing()
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("what it is", overflow="fold")
    table.add_column("models", no_wrap=True)
    table.add_column("published", no_wrap=True, justify="right")
    for recipe in RECIPES:
        models = models_of(recipe)
        accuracies = [published(recipe, model) for model in models]
        if models == list(MODELS):
            models = ["all"]
        table.add_row(recipe, escape(source(recipe)), "\n".join(models), "\n".join(accuracies).rstrip())
    console.rich.print(table)


def show_recipe(console: Console, config: TrainConfig) -> None:
    """Print a recipe's whole text, and the settings it comes to."""
    for paragraph in (getdoc(RECIPES[config.recipe]) or "").split("\n\n"):
        console.rich.print(escape(" ".join(paragraph.split())) + "\n", soft_wrap=False)
    console.say(f"What it sets for {config.model}, as options of train.py:")
    for words in option_words(config):
        console.say("  " + " ".join(words))


def source(recipe: str) -> str:
    """Return the first line of the recipe's docstring, without the published accuracy that may end it."""
    line = (getdoc(RECIPES[recipe]) or "").partition("\n")[0]
    text, _, claim = line.partition(": ")
    return f"{text}." if "accuracy" in claim else line


def option_words(config: TrainConfig) -> list[list[str]]:
    """Return the command-line words of each option whose value isn't the field's default."""
    differing = [f.name for f in fields(TrainConfig) if getattr(config, f.name) != f.default]
    return [to_words({name: getattr(config, name)}) for name in differing]
