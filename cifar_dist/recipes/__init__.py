"""Named, reproducible settings. One function a recipe; its docstring is its claim and its source."""

from contextlib import suppress
from dataclasses import replace

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import MODELS, model_name
from cifar_dist.recipes.base import Recipe, only
from cifar_dist.recipes.ghasemi import ATTEMPTS, attempt, ghasemi2024


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
        model=only("li2024", model, ("lenet",)),
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


def pandey2020(model: str | None) -> TrainConfig:
    """Abhishek Pandey, "Image classification using PyTorch" (2020): his CNN, and his self-organizing map. Gives no number in %.

    He gives no hyper-parameters. Chosen for `pandey`: Adam lr 0.001, batch 64, 20 epochs, no augmentation, so that it over-fits
    as he describes. For `som`: batches of 16, 10 epochs, the rate falling from 1 by a cosine.
    """
    model = only("pandey2020", model, ("pandey", "som"))
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
        model=only("sengar2024", model, ("sengar",)),
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
        model=only("zhang", model, ("zhang",)),
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
    model = only("he2016", model, resnets)
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
        model=only("speed94", model, ("speednet",)),
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
        bias_lr_per_image=0.053,
        head_lr_per_image=0.67,
        weight_decay=0.004,
        label_smoothing=0.2,
        mixed_precision="auto",
        schedule="linear",
        eval_every=10,
        log_every=5,
        tta=True,
    )


RECIPES: dict[str, Recipe] = {
    "default": default,
    "li2024": li2024,
    "ghasemi2024": ghasemi2024,
    **{f"ghasemi2024/{number}": attempt(number) for number in range(1, len(ATTEMPTS) + 1)},
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


def published(recipe: str, model: str) -> str:
    """Return the published test accuracy as its text has it, such as 91.25 %; empty where there is none."""
    share = PUBLISHED.get((recipe, model))
    return "" if share is None else f"{100 * share:.4g} %"


def own_config(recipe: str, model: str | None) -> TrainConfig | None:
    """Return a recipe's configuration without other options; None where this version doesn't have it for that model."""
    try:
        return RECIPES[recipe](model)
    except (UserError, KeyError):
        return None


def models_of(name: str) -> list[str]:
    """Return the models that a recipe is for: those it doesn't refuse."""
    accepted = []
    for model in MODELS:
        with suppress(UserError):
            accepted.append(RECIPES[name](model).model)
    return accepted
