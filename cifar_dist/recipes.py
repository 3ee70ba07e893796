"""Named, reproducible settings. One function a recipe; its docstring is its claim and its source."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal, NamedTuple

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import MODELS, model_name

Recipe = Callable[[str | None], TrainConfig]  # (a model's name, or None for the recipe's own) -> all settings


def default(model: str | None) -> TrainConfig:
    """What we would use ourselves for each model. No published number; docs/RESULTS.md has what was measured.

    Pad-crop and flip, Nesterov SGD with weight decay, one cosine cycle after a short warm-up; Adam where there is no batch norm.
    """
    model = model_name(model or "resnet20")
    strong = TrainConfig(
        model=model,
        epochs=100,
        batch_size=128,
        lr=0.1,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=0.02,
    )
    if model == "lenet":  # small: under-fits with strong decay
        return replace(strong, epochs=50, lr=0.05, weight_decay=1e-4)
    if model in ("pandey", "sengar", "mlp"):
        return replace(strong, epochs=50, optimizer="adamw", lr=1e-3, nesterov=False, weight_decay=0.01)
    if model == "som":  # a high lr: of a batch's mean update each unit gets a small part
        plain = replace(strong, momentum=0.0, nesterov=False, weight_decay=0.0, augment=(), warmup=0.0)
        return replace(plain, epochs=20, batch_size=16, lr=3.0)
    if model == "resnet110":  # diverges at first without a longer warm-up (He et al. 2016, §4.2)
        return replace(strong, warmup=0.05)
    if model in ("resnet18", "resnet34", "resnet50"):  # about 95-96 % in 200 epochs, says the literature
        return replace(strong, epochs=200)
    return strong


def li2024(model: str | None) -> TrainConfig:
    """Zhaoyu Li, "Application research of image classification based on Pytorch and CNN": 61 % test accuracy.

    SGD lr 0.001, momentum 0.9, batch 4, 20 epochs, inputs in [-1, 1], no augmentation, loss every 2,000 mini-batches.
    Trains on all 50,000 images, so nothing is held out and the last weights are tested.
    """
    return TrainConfig(
        model=_only("li2024", model, ("lenet",)),
        recipe="li2024",
        val_fraction=0.0,
        normalize="half",
        augment=(),
        epochs=20,
        batch_size=4,
        lr=0.001,
        momentum=0.9,
        log_every=2000,
    )


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
        model=_only("ghasemi2024", model, ("ghasemi",)),
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


def ghasemi2024_attempt(number: int) -> Recipe:
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


def pandey2020(model: str | None) -> TrainConfig:
    """Abhishek Pandey, "Image classification using PyTorch" (2020): his CNN, and his self-organizing map. Gives no number in %.

    He gives no hyper-parameters. Chosen for `pandey`: Adam lr 0.001, batch 64, 20 epochs, no augmentation, so that it over-fits
    as he describes. For `som`: batches of 16, 10 epochs, the rate falling from 1 by a cosine.
    """
    model = _only("pandey2020", model, ("pandey", "som"))
    shared = TrainConfig(
        model=model, recipe="pandey2020", augment=(), epochs=20, batch_size=64, optimizer="adam", lr=0.001
    )
    if model == "som":
        return replace(shared, epochs=10, batch_size=16, optimizer="sgd", lr=1.0, momentum=0.0, schedule="cosine")
    return shared


def sengar2024(model: str | None) -> TrainConfig:
    """Sengar & Shweat, "Image classification using Pytorch" (2024): "99 %" accuracy, loss 0.02.

    80/10/10 split: all 60,000 images are pooled and cut into 48,000, 6,000 and 6,000. Mean/std normalisation; flip, crop,
    rotation. Not given, so chosen: pad-4 crop, rotation by up to 15 degrees, Adam lr 0.001, batch 64, 30 epochs.
    Mean and std are those of the official training images.
    """
    return TrainConfig(
        model=_only("sengar2024", model, ("sengar",)),
        recipe="sengar2024",
        test_fraction=0.1,
        val_fraction=1 / 9,  # of the 54,000 that are left
        augment=("flip", "crop", "rotate"),
        epochs=30,
        batch_size=64,
        optimizer="adam",
        lr=0.001,
    )


def zhang(model: str | None) -> TrainConfig:
    """Zixuan Zhang, "CIFAR10 Image Classification": 72.5 % test accuracy.

    Adam lr 0.01, weight decay 0.003, batch 64, 70 epochs, lr x 0.1 every 15 epochs. Not given, so chosen: no augmentation,
    mean/std normalisation. Ours: 45,000 images train and validation chooses the weights.
    """
    return TrainConfig(
        model=_only("zhang", model, ("zhang",)),
        recipe="zhang",
        augment=(),
        epochs=70,
        batch_size=64,
        optimizer="adam",
        lr=0.01,
        weight_decay=0.003,
        decay_all=True,
        schedule="step",
        step_epochs=15,
        lr_factor=0.1,
    )


def he2016(model: str | None) -> TrainConfig:
    """He, Zhang, Ren, Sun 2016, §4.2: test accuracy 20: 91.25 %, 32: 92.49 %, 44: 92.83 %, 56: 93.03 %, 110: 93.57 %.

    SGD lr 0.1, momentum 0.9, weight decay 1e-4 on every parameter, batch 128, 64k iterations, lr / 10 at 32k and 48k,
    pad-4 random crop and flip, 45k/5k split. Ours: the weights that are best on validation are tested, his are the last.
    ResNet-110 warms up for 400 iterations as his does, but linearly and not at a constant 0.01.
    """
    resnets = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
    model = _only("he2016", model, resnets)
    return TrainConfig(
        model=model,
        recipe="he2016",
        steps=64_000,
        batch_size=128,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        decay_all=True,
        schedule="multistep",
        milestones=(0.5, 0.75),
        lr_factor=0.1,
        warmup=400 / 64_000 if model == "resnet110" else 0.0,
    )


def speed94(model: str | None) -> TrainConfig:
    """Keller Jordan's airbench94_muon: 94.01 % test accuracy (mean of 200, with test-time augmentation) in 200 steps.

    Its settings in ours: filters by Muon at lr 0.24, biases and head by SGD at 0.053 and 0.67 times the batch of 2,000 (its loss
    is a sum, ours a mean), all falling linearly to 0; label smoothing 0.2, alternating flip, shifts by 2 pixels. Trains on all
    50,000 images, so nothing is held out and the last weights are tested. In place of its 8 epochs ours are 10, the first 5 of
    them of images of 24 x 24 pixels, chosen on validation: no more operations in all. bf16 on every processor that has it;
    docs/EXPERIMENTS.md says what else differs.
    """
    return TrainConfig(
        model=_only("speed94", model, ("speednet",)),
        recipe="speed94",
        val_fraction=0.0,
        augment=("shift", "alternate"),
        early_size=24,
        epochs=10,
        batch_size=2000,
        drop_last=True,
        optimizer="muon",
        lr=0.24,
        momentum=0.85,
        bias_lr=106.0,
        head_lr=1340.0,
        weight_decay=0.004,
        label_smoothing=0.2,
        mixed_precision="auto",
        schedule="linear",
        eval_every=10,
        log_every=5,
        tta=True,
    )


def _only(recipe: str, model: str | None, models: tuple[str, ...]) -> str:
    """Return the model a recipe is for, its first one by default; raises `UserError` for another."""
    name = model_name(model or models[0])
    if name not in models:
        raise UserError(
            f"recipe {recipe} is for {', '.join(models)}, not {name}; use --recipe default or another --model"
        )
    return name


RECIPES: dict[str, Recipe] = {
    "default": default,
    "li2024": li2024,
    "ghasemi2024": ghasemi2024,
    **{f"ghasemi2024/{number}": ghasemi2024_attempt(number) for number in range(1, len(ATTEMPTS) + 1)},
    "pandey2020": pandey2020,
    "sengar2024": sengar2024,
    "zhang": zhang,
    "he2016": he2016,
    "speed94": speed94,
}
PUBLISHED: dict[tuple[str, str], float] = {  # (recipe, model) -> test accuracy as the text gives it
    ("li2024", "lenet"): 0.61,
    ("ghasemi2024", "ghasemi"): 0.84,
    **{(f"ghasemi2024/{i}", "ghasemi"): row.percent / 100 for i, row in enumerate(ATTEMPTS, start=1)},
    ("sengar2024", "sengar"): 0.99,
    ("zhang", "zhang"): 0.725,
    ("he2016", "resnet20"): 0.9125,
    ("he2016", "resnet32"): 0.9249,
    ("he2016", "resnet44"): 0.9283,
    ("he2016", "resnet56"): 0.9303,
    ("he2016", "resnet110"): 0.9357,
    ("speed94", "speednet"): 0.9401,
}


def models_of(name: str) -> list[str]:
    """Return the models that a recipe is for: those it doesn't refuse."""
    accepted = []
    for model in MODELS:
        with suppress(UserError):
            accepted.append(RECIPES[name](model).model)
    return accepted
