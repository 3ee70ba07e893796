"""Accuracy on corrupted images: one line a corruption, and what eval.py records of it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from cifar_dist.console import Console
from cifar_dist.corruptions import SEED, SEVERITIES
from cifar_dist.corruptions.sets import CorruptedSet, check_files, corrupted_sets, is_folder, sets_in
from cifar_dist.data import Split
from cifar_dist.runtime import collectives
from cifar_dist.training.metrics import EvalResult

NAME = 18  # columns of a corruption's name


class Robustness:
    """The corrupted sets that `--corruptions` names, of a split or in a folder; raises `UserError` where they can't be had."""

    def __init__(
        self, words: Sequence[str], split: Split, classes: Sequence[str], limit: int | None, device: torch.device
    ) -> None:
        self.words, self.split, self.classes, self.limit, self.device = words, split, tuple(classes), limit, device
        self.folder = Path(words[0]) if is_folder(words) else None
        if folder := self.folder:
            collectives.on_all(lambda: check_files(folder, classes))

    def sets(self) -> Iterator[CorruptedSet]:
        if self.folder:
            return sets_in(self.folder, self.classes, self.limit, self.device)
        return corrupted_sets(self.words, self.split)

    def measure(self, look_at: Callable[[Split], EvalResult], clean: float, console: Console) -> dict[str, Any]:
        """Look at every set, print a line for each corruption, and return the record; `clean` is the accuracy without any."""
        console.say(f"{'accuracy in %':<{NAME}}" + "".join(f"{s:>8}" for s in SEVERITIES) + f"{'mean':>9}  by severity")
        found = []
        for name, members in groupby(self.sets(), key=lambda member: member.name):
            rows = [self._row(member, look_at(member.split)) for member in members]
            found += rows
            shares = [row["accuracy"] for row in rows]
            cells = "".join(f"{100 * share:8.2f}" for share in shares) if len(rows) > 1 else " " * 8 * len(SEVERITIES)
            console.say(f"{name:<{NAME}}{cells}{100 * sum(shares) / len(shares):9.2f}")
        graded = [row for row in found if row["severity"]] or found
        mean = sum(row["accuracy"] for row in graded) / len(graded)
        console.say(
            f"mean corruption accuracy {100 * mean:.2f} %, {100 * (mean - clean):+.2f} points from {100 * clean:.2f} %"
        )
        source = str(self.folder) if self.folder else None
        return {"folder": source, "seed": None if source else SEED, "mean_accuracy": mean, "sets": found}

    def _row(self, member: CorruptedSet, result: EvalResult) -> dict[str, Any]:
        return {
            "name": member.name,
            "severity": member.severity,
            "num_images": result.num_images,
            "num_correct": result.num_correct,
            "accuracy": result.accuracy,
            "per_class_accuracy": dict(zip(self.classes, result.per_class_accuracy(), strict=True)),
        }
