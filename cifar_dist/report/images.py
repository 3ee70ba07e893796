"""The images that predictions are about, loaded again from a run's record."""

from pathlib import Path

import numpy as np
import torch

from cifar_dist.config import TrainConfig
from cifar_dist.data import Split, cache_folder, load_dataset, make_splits
from cifar_dist.errors import UserError
from cifar_dist.progress import Report, unheard
from cifar_dist.record.reader import RunRecord


def load_pixels(record: RunRecord, split: str, decode: bool = False, progress: Report = unheard) -> np.ndarray:
    """Return the images of the run's `split`, val or test: (M, S, S, 3) uint8. Raises `UserError` where its data isn't there.

    Without `decode` it has to be decoded already: a run that somebody else made says where data is kept, and by looking at it
    nobody means to download, or to make folders.
    """
    if not record.config:
        raise UserError(f"{record.path} doesn't say what it was trained on: {record.problem}")
    config = TrainConfig.from_dict(record.config)
    if not decode and not cache_folder(config.data, Path(config.data_dir), config.image_size).is_dir():
        raise UserError(
            f"--data {config.data} is not decoded in {config.data_dir}; --data-dir says where it is, or is to be"
        )
    dataset = load_dataset(config.data, Path(config.data_dir), config.image_size, progress)
    if dataset.fingerprint != record.dataset["fingerprint"]:
        raise UserError(f"--data {config.data} is not what {record.path} was trained on")
    chosen: Split = getattr(make_splits(dataset, config, torch.device("cpu")), split)
    return chosen.pixels()
