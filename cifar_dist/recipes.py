"""Named, reproducible settings. One function a recipe; its docstring is its claim and its source."""

from collections.abc import Callable
from dataclasses import replace

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import model_name


def default(model: str | None) -> TrainConfig:
    """What we would use ourselves for each model: pad-crop and flip, Nesterov SGD, one cosine cycle after a short warm-up.

    No published number; docs/RESULTS.md has what was measured.
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
    if model == "resnet110":  # diverges at first without a longer warm-up (He et al. 2016, §4.2)
        return replace(strong, warmup=0.05)
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


def _only(recipe: str, model: str | None, models: tuple[str, ...]) -> str:
    """Return the model a recipe is for, its first one by default; raises `UserError` for another."""
    name = model_name(model or models[0])
    if name not in models:
        raise UserError(
            f"recipe {recipe} is for {', '.join(models)}, not {name}; use --recipe default or another --model"
        )
    return name


RECIPES: dict[str, Callable[[str | None], TrainConfig]] = {"default": default, "li2024": li2024, "he2016": he2016}
