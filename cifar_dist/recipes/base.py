"""What a recipe is."""

from collections.abc import Callable

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import model_name

Recipe = Callable[[str | None], TrainConfig]  # (a model's name, or None for the recipe's own) -> all settings


def only(recipe: str, model: str | None, models: tuple[str, ...]) -> str:
    """Return the model a recipe is for, its first one by default; raises `UserError` for another."""
    name = model_name(model or models[0])
    if name not in models:
        raise UserError(
            f"recipe {recipe} is for {', '.join(models)}, not {name}; use --recipe default or another --model"
        )
    return name
