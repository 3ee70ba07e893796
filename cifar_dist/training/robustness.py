"""Accuracy on corrupted images: one line a corruption, and what eval.py records of it."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from cifar_dist.config import SIDE
from cifar_dist.console import Console
from cifar_dist.corruptions import SEED, SEVERITIES
from cifar_dist.corruptions.sets import check_files, corrupted_sets, is_folder, sets_in
from cifar_dist.data import Split
from cifar_dist.errors import UserError
from cifar_dist.runtime import collectives
from cifar_dist.training.metrics import EvalResult

NAME = 18  # columns of a corruption's name


def check_can_be_had(words: Sequence[str], classes: Sequence[str], side: int) -> None:
    """Raise `UserError` on every rank where `--corruptions` means a folder that can't be used on any of them.

    `side`: in pixels, of the images that the weights are for.
    """
    if is_folder(words):
        if side != SIDE:
            raise UserError(
                f"the images in {words[0]} are {SIDE}x{SIDE}, and these weights are for {side}x{side}; "
                "name corruptions, which are computed at any size"
            )
        collectives.on_all(lambda: check_files(Path(words[0]), classes))


def measure_corruptions(
    words: Sequence[str],
    split: Split,
    classes: Sequence[str],
    limit: int | None,
    device: torch.device,
    look_at: Callable[[Split], EvalResult],
    clean: float,
    console: Console,
) -> dict[str, Any]:
    """Look at the sets that `--corruptions` names, print a line for each corruption, and return the record.

    `clean` is the accuracy without any; files in a folder are looked at up to `limit` images of each set.
    """
    folder = Path(words[0]) if is_folder(words) else None
    sets = sets_in(folder, classes, limit, device) if folder else corrupted_sets(words, split)
    console.say(f"{'accuracy in %':<{NAME}}" + "".join(f"{s:>8}" for s in SEVERITIES) + f"{'mean':>9}  by severity")
    found: list[dict[str, Any]] = []
    for name, members in groupby(sets, key=lambda member: member.name):
        rows = [_row(name, member.severity, look_at(member.split), classes) for member in members]
        found += rows
        cells = "".join(f"{100 * row['accuracy']:8.2f}" for row in rows if row["severity"])
        console.say(f"{name:<{NAME}}{cells:<{8 * len(SEVERITIES)}}{100 * _mean(rows):9.2f}")
    mean = _mean([row for row in found if row["severity"]] or found)
    console.say(
        f"mean corruption accuracy {100 * mean:.2f} %, {100 * (mean - clean):+.2f} points from {100 * clean:.2f} %"
    )
    where = {"folder": str(folder), "seed": None} if folder else {"folder": None, "seed": SEED}
    return {**where, "mean_accuracy": mean, "sets": found}


def _mean(rows: Sequence[dict[str, Any]]) -> float:
    total: float = sum(row["accuracy"] for row in rows)
    return total / len(rows)


def _row(name: str, severity: int | None, result: EvalResult, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name,
        "severity": severity,
        "num_images": result.num_images,
        "num_correct": result.num_correct,
        "accuracy": result.accuracy,
        "per_class_accuracy": dict(zip(classes, result.per_class_accuracy(), strict=True)),
    }
