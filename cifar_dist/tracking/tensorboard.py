"""A run's record as TensorBoard's event files, which are made anew at each start: the record is the truth."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cifar_dist.errors import UserError
from cifar_dist.record.folder import METRICS_FILE, TENSORBOARD
from cifar_dist.tracking.follower import Record
from cifar_dist.tracking.rows import row

PLACE = ("global_step", "epoch", "samples", "seconds")  # of a row: where it is, not what it says


def check_tensorboard() -> None:
    """Raise `UserError` without the package."""
    if find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard; pip install tensorboard, or leave it out")


class TensorBoard:
    """Adds the lines of a run's record that are new since the last call."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        self.lines = Record(folder / METRICS_FILE)
        self.writer: Any = SummaryWriter(str(folder / TENSORBOARD))

    def refresh(self) -> None:
        for line in self.lines.new_lines():
            for name, value in row(line).items():
                if name not in PLACE and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        self.refresh()
        self.writer.close()
