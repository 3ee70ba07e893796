"""Loops that throughput.py compares with train.py, one to a process. Each prints a line of JSON with its images/s.

    PYTHONPATH=. python benchmarks/loops.py tutorial --model lenet --batch-size 4 --seconds 10 --threads 1

throughput.py says what they are. Torch is imported before cifar_dist, so that what OpenMP then reads is left as it comes; to
measure `best` throughput.py imports cifar_dist first, as train.py does.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from cifar_dist.config import TrainConfig
from cifar_dist.data import Dataset as Decoded
from cifar_dist.data import load_dataset
from cifar_dist.errors import UserError
from cifar_dist.models import build_model
from cifar_dist.models.dropout import Dropout
from cifar_dist.recipes import RECIPES
from cifar_dist.runtime import accelerator
from cifar_dist.training.state import build_state

WARM_UP = 0.2  # seconds that aren't counted, for each one that is

Steps = Iterator[int]  # does a step for each item, which is the step's number of images


def configure(model: str, **options: Any) -> TrainConfig:
    """Return the settings all loops share: the recipe's (li2024 for lenet, else default), under `options`."""
    recipe = RECIPES["li2024" if model == "lenet" else "default"]
    config = replace(recipe(model), **options)
    if config.model == "som":
        raise UserError("som does not learn by cross-entropy, which these loops minimise; use another model")
    return config


def bare(config: TrainConfig) -> Steps:
    """Forward, backward and optimizer on one batch in memory, with torch as it comes."""
    torch.set_flush_denormal(True)  # as our runs do
    model = plain_model(config, 10)
    return on_one_batch(model, plain_optimizer(model, config), torch.randn(config.batch_size, 3, 32, 32))


def best(config: TrainConfig) -> Steps:
    """The same with the model, the optimizer and the process as our runs set them up."""
    state = build_state(config, 10, accelerator.accelerate(config))
    state.masks.draw(torch.arange(config.batch_size))
    channels_last = any(p.ndim == 4 and not p.is_contiguous() for p in state.model.parameters())
    images = torch.randn(config.batch_size, 3, 32, 32)
    images = images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return on_one_batch(state.wrapped, state.optimizer, images)


def on_one_batch(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> Steps:
    targets = torch.randint(10, (len(images),))
    while True:
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield len(images)


def tutorial(config: TrainConfig) -> Steps:
    """The loop of PyTorch's tutorial on CIFAR-10."""
    loader, num_classes = users_loader(config)
    model = plain_model(config, num_classes)
    criterion = nn.CrossEntropyLoss()
    optimizer = plain_optimizer(model, config)
    while True:
        running_loss = 0.0
        for i, (inputs, labels) in enumerate(loader, start=1):
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 2000 == 0:
                print(f"{i:6}: loss {running_loss / 2000:.3f}")
                running_loss = 0.0
            yield len(inputs)


def accelerate(config: TrainConfig) -> Steps:
    """The loop of Accelerate's examples."""
    accelerator = Accelerator(cpu=True)
    loader, num_classes = users_loader(config)
    model = plain_model(config, num_classes)
    optimizer = plain_optimizer(model, config)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, (config.epochs or 1) * len(loader))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    while True:
        model.train()
        total_loss = torch.zeros(())
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            total_loss += loss.detach().float()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            yield len(inputs)


def plain_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """Return the model as users would have it: laid out as torch does it, and with its dropout.

    Ours needs to be told which samples a batch holds.
    """
    model = build_model(config.model, num_classes, config.model_options)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model.to(memory_format=torch.contiguous_format)


def plain_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimizer as users write it: all parameters in one group, torch's defaults."""
    if config.optimizer == "sgd":
        sgd = {"momentum": config.momentum, "nesterov": config.nesterov, "weight_decay": config.weight_decay}
        return torch.optim.SGD(model.parameters(), lr=config.lr, **sgd)  # type: ignore[arg-type]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, each made a PIL image and transformed when asked for, as torchvision's CIFAR10 does it."""

    def __init__(self, pixels: Any, targets: list[int], transform: Callable[[Any], Tensor]) -> None:
        """`pixels` are (N, 32, 32, 3) uint8."""
        self.pixels, self.targets, self.transform = pixels, targets, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[place])), self.targets[place]


def users_loader(config: TrainConfig) -> tuple[Any, int]:
    """Return a loader of the training images, as PyTorch's tutorial makes it, and the number of classes."""
    dataset = load_dataset(config.data, Path(config.data_dir))
    halves = (0.5,) * 3
    mean, std = (halves, halves) if config.normalize == "half" else (dataset.mean, dataset.std)
    moves = {"crop": transforms.RandomCrop(32, padding=4), "flip": transforms.RandomHorizontalFlip()}
    tail = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    images = users_images(config, dataset, transforms.Compose([*(moves[name] for name in config.augment), *tail]))
    return DataLoader(images, batch_size=config.batch_size, shuffle=True, num_workers=2), len(dataset.classes)


def users_images(config: TrainConfig, dataset: Decoded, transform: Callable[[Any], Tensor]) -> Dataset[Any]:
    """Return torchvision's CIFAR10, or where there is no archive for it the decoded images."""
    if dataset.name == "CIFAR-10":
        with suppress(RuntimeError):
            return datasets.CIFAR10(config.data_dir, transform=transform)
    return DecodedImages(dataset.train.pixels(), dataset.train.labels().tolist(), transform)


class Taken(NamedTuple):
    """What some steps came to."""

    steps: int
    images: int
    seconds: float


def take(steps: Steps, seconds: float) -> Taken:
    """Do steps until `seconds` have passed, one at least."""
    count, images, passed, start = 0, 0, 0.0, time.perf_counter()
    while not count or passed < seconds:
        count, images = count + 1, images + next(steps)
        passed = time.perf_counter() - start
    return Taken(count, images, passed)


def measure(steps: Steps, seconds: float) -> dict[str, float]:
    """Return the speed of `steps` over about `seconds`, after a warm-up."""
    next(steps)  # loads the data and builds the model too
    warm_up = take(steps, WARM_UP * seconds)
    counted = take(steps, seconds)
    speed = counted.images / counted.seconds
    return {"images_per_s": speed, "warm_up_steps": 1 + warm_up.steps, **counted._asdict()}


LOOPS: dict[str, Callable[[TrainConfig], Steps]] = {
    "bare": bare,
    "best": best,
    "tutorial": tutorial,
    "accelerate": accelerate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--mixed-precision", default="no")  # which `best` alone has
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    given = parser.parse_args()
    try:
        where = {"threads": given.threads, "device": "cpu", "data": given.data, "data_dir": given.data_dir}
        where |= {"batch_size": given.batch_size, "mixed_precision": given.mixed_precision}
        config = accelerator.choose_precision(configure(given.model, **where))
        if given.threads:
            torch.set_num_threads(given.threads)
        result = measure(LOOPS[given.loop](config), given.seconds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps({"recipe": config.recipe, "log_every": config.log_every, **result}))


if __name__ == "__main__":
    main()
