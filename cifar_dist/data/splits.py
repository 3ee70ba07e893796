"""Which images train, validate and test: cut by seed, the classes in proportion, the same on every machine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.data.dataset import Dataset, Split
from cifar_dist.errors import UserError
from cifar_dist.randomness import Purpose, random_bits

# What decides which image is in which split.
SPLIT_OPTIONS = ("val_fraction", "test_fraction", "folds", "fold", "split_seed")


@dataclass(frozen=True)
class Splits:
    """What a run uses of a data set. `val` is None when it trains on all training images."""

    train: Split
    val: Split | None
    test: Split


def make_splits(dataset: Dataset, config: TrainConfig, device: torch.device) -> Splits:
    """Cut the images as SPLIT_OPTIONS say, apply the limits, and move everything to `device`. Raises `UserError`."""
    train, test = dataset.train.to(device), dataset.test.to(device)
    seed = config.split_seed
    if config.test_fraction is not None:
        pool = _joined(train, test)
        train, test = _hold_out(pool, stratified(pool.labels(), round(len(pool) * config.test_fraction), seed))
        _check_size(f"--test-fraction {config.test_fraction}", "use more, or leave it out", pool, test, dataset)
    targets = train.labels()
    if config.folds is not None:
        held_out = fold_numbers(targets, config.folds, seed).eq(config.fold or 0).nonzero().flatten()
    else:
        held_out = stratified(targets, round(len(targets) * config.val_fraction), seed)
    kept, val = _hold_out(train, held_out)
    if config.folds is not None:
        _check_size(f"a fold of --folds {config.folds}", "use fewer", train, val, dataset)
    elif config.val_fraction:
        _check_size(f"--val-fraction {config.val_fraction}", "use more, or 0", train, val, dataset)
    return Splits(
        train=_limit(kept, config.limit_train, seed),
        val=_limit(val, config.limit_eval, seed) if len(val) else None,
        test=_limit(test, config.limit_eval, seed),
    )


def _joined(a: Split, b: Split) -> Split:
    images, targets = torch.cat((a.images, b.images)), torch.cat((a.targets, b.targets))
    return Split(images, targets, torch.cat((a.index, b.index + len(a.images))))


def _hold_out(split: Split, places: Tensor) -> tuple[Split, Split]:
    """Return (the rest, the images at `places`)."""
    chosen = torch.zeros(len(split), dtype=torch.bool)
    chosen[places] = True
    return split.subset((~chosen).nonzero().flatten()), split.subset(chosen.nonzero().flatten())


def _check_size(what: str, way_out: str, source: Split, part: Split, dataset: Dataset) -> None:
    if len(part) < len(dataset.classes):
        raise UserError(
            f"{what} of {len(source)} images is {len(part)}, fewer than the {len(dataset.classes)} classes; {way_out}"
        )


def _limit(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    return split.subset(stratified(split.labels(), limit, seed))


def fold_numbers(targets: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold (N,) int64 of each of `targets` (N,): folds differ by at most one image, in all and of each class."""
    order = random_bits(seed, Purpose.SPLIT, torch.arange(len(targets))).argsort(stable=True)
    by_class = order[targets[order].argsort(stable=True)]
    numbers = torch.empty_like(targets)
    numbers[by_class] = torch.arange(len(targets)) % folds
    return numbers


def stratified(targets: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` sorted places of `targets` (N,) int64, drawn by `seed`, the classes in proportion.

    Shares are rounded by largest remainder, earlier classes first on a tie, so exactly `count` come back.
    """
    sizes = torch.bincount(targets)
    exact = sizes.double() * count / len(targets)
    take = exact.floor().long()
    for c in (take - exact).argsort(stable=True)[: count - int(take.sum())]:
        take[c] += 1
    order = random_bits(seed, Purpose.SPLIT, torch.arange(len(targets))).argsort(stable=True)
    chosen = [order[targets[order] == c][: int(take[c])] for c in range(len(sizes))]
    return torch.cat(chosen).sort().values
