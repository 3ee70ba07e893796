"""What a run's folder says of its states, step by step."""

from contextlib import suppress
from pathlib import Path
from typing import cast

from cifar_dist.record import checkpoint
from cifar_dist.record.folder import TRAINING_FILE, RunFolder
from cifar_dist.record.lines import Digests, ValLine
from cifar_dist.training.state import digests_of


def recorded_digests(folder: Path) -> dict[int, Digests]:
    """Return the digests of each validation that has some, by step."""
    found: dict[int, Digests] = {}
    for line in RunFolder(folder).read_metrics():
        digests = cast(ValLine, line)
        if "weights_digest" in digests and "optimizer_digest" in digests:
            weights, optimizer = digests["weights_digest"], digests["optimizer_digest"]
            found[line["step"]] = {"weights_digest": weights, "optimizer_digest": optimizer}
    return found


def kept_digests(folder: Path) -> dict[int, Digests]:
    """Return the digests of each checkpoint that is there and verifies, by step."""
    checkpoints, found = RunFolder(folder).checkpoints, dict[int, Digests]()
    for step in checkpoint.saved_steps(checkpoints):
        with suppress(checkpoint.BrokenCheckpointError):
            saved = checkpoint.load(checkpoint.folder_for(checkpoints, step))
            found[step] = digests_of(saved.files[TRAINING_FILE])
    return found
