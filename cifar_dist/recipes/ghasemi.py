"""Ali Ghasemi, \"CIFAR-10 Image Classification\" (2024): the network of his listing, and the rows of his table."""

from dataclasses import replace
from typing import Literal, NamedTuple

from cifar_dist.config import TrainConfig
from cifar_dist.recipes.base import Recipe, only


class Attempt(NamedTuple):
    """One row of Ghasemi's table."""

    lr: float
    batch_size: int
    epochs: int
    convolutions: int
    linear_layers: int
    optimizer: Literal["adam", "sgd"]
    regularisation: str
    batch_norm: bool
    percent: int  # test accuracy, published


ATTEMPTS = (
    Attempt(0.001, 64, 25, 12, 4, "adam", "", False, 69),
    Attempt(0.0005, 99, 30, 12, 1, "adam", "", False, 73),
    Attempt(0.0005, 99, 30, 12, 1, "sgd", "", False, 67),
    Attempt(0.0005, 99, 30, 12, 3, "adam", "", False, 73),
    Attempt(0.0005, 60, 18, 12, 3, "adam", "", False, 74),
    Attempt(0.0005, 60, 18, 7, 3, "adam", "", False, 79),
    Attempt(0.0005, 60, 30, 6, 3, "adam", "", False, 80),
    Attempt(0.0001, 60, 20, 6, 3, "adam", "", False, 66),
    Attempt(0.0005, 60, 20, 6, 3, "adam", "weight decay", False, 69),
    Attempt(0.0005, 60, 20, 5, 3, "adam", "weight decay", False, 66),
    Attempt(0.0005, 60, 20, 5, 3, "adam", "dropout", False, 80),
    Attempt(0.0005, 60, 20, 7, 3, "adam", "dropout", False, 81),
    Attempt(0.0005, 60, 20, 8, 3, "adam", "dropout", False, 81),
    Attempt(0.0005, 60, 20, 8, 3, "adam", "dropout", True, 83),
    Attempt(0.0005, 60, 20, 8, 3, "adam", "", True, 84),
)

CHOSEN_FOR_ATTEMPTS = (
    "Architecture is convolutions-linear layers. Not given, so chosen: the widths (see the model), dropout 0.2 as in the listing, "
    "momentum 0.9 where he writes SGD, weight decay 1e-4 of every parameter, as torch's Adam does it."
)


def ghasemi2024(model: str | None) -> TrainConfig:
    """Ali Ghasemi, "CIFAR-10 Image Classification" (2024), the network of his listing: 84 % test accuracy.

    84 % is the text's headline; in his table it is row 15, of eight convolutions, and the listing's five have no row.
    Adam lr 0.0005, batch 60, 20 epochs (30 in the listing), inputs in [-1, 1], no augmentation, loss every 100 mini-batches.
    Trains on all 50,000 images, so nothing is held out and the last weights are tested.
    """
    return TrainConfig(
        model=only("ghasemi2024", model, ("ghasemi",)),
        recipe="ghasemi2024",
        val_fraction=0.0,
        normalize="half",
        augment=(),
        epochs=20,
        batch_size=60,
        optimizer="adam",
        lr=0.0005,
        log_every=100,
    )


def attempt(number: int) -> Recipe:
    """Return the recipe of row `number` of his table, from 1."""
    row = ATTEMPTS[number - 1]
    dropout = 0.2 if row.regularisation == "dropout" else 0.0

    def recipe(model: str | None) -> TrainConfig:
        decays = row.regularisation == "weight decay"
        return replace(
            ghasemi2024(model),
            recipe=f"ghasemi2024/{number}",
            model_options=(
                f"batch_norm={'yes' if row.batch_norm else 'no'}",
                f"convolutions={row.convolutions}",
                f"dropout={dropout:g}",
                f"linear_layers={row.linear_layers}",
            ),
            epochs=row.epochs,
            batch_size=row.batch_size,
            optimizer=row.optimizer,
            lr=row.lr,
            weight_decay=1e-4 if decays else 0.0,
            decay_all=decays,
        )

    shape = f"{row.convolutions}-{row.linear_layers}, lr {row.lr:g}, batch {row.batch_size}, {row.epochs} epochs"
    extras = ["SGD" * (row.optimizer == "sgd"), row.regularisation, "batch norm" * row.batch_norm]
    settings = ", ".join(filter(None, [shape, *extras]))
    recipe.__doc__ = (
        f"Row {number} of Ghasemi's table ({settings}): {row.percent} % test accuracy.\n\n{CHOSEN_FOR_ATTEMPTS}"
    )
    return recipe
