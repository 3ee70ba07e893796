"""What a run shows of itself: its page, refreshed at every evaluation, its pictures, and its view in Weights & Biases.

All of it is rank 0's, and derived from the run folder: whatever fails here costs a warning, never the run.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cifar_dist.data import Split
from cifar_dist.inputs.plan import epoch_order
from cifar_dist.record.folder import PAGE_FILE, PLOTS
from cifar_dist.record.predictions import read_predictions
from cifar_dist.record.reader import read_run
from cifar_dist.record.training_images import Labelled, TrainingImages, write_training_images
from cifar_dist.report.provenance import published_accuracy
from cifar_dist.text import reason
from cifar_dist.tracking.link import Mode
from cifar_dist.tracking.process import Tracker
from cifar_dist.training.build import Trainer
from cifar_dist.training.recording import Run

if TYPE_CHECKING:
    from cifar_dist.tracking.tensorboard import TensorBoard

NUM_SHOWN = 40  # training images that are kept and drawn
# A cluster gives an interrupted run little time.
WAIT_FOR_WANDB_S = {"finished": 60.0, "interrupted": 10.0, "failed": 10.0}


class Views:
    """The views of one run, on rank 0."""

    def __init__(self, run: Run, mode: Mode) -> None:
        self.run = run
        self.tracker = Tracker(run.folder.path, mode, run.console)
        self.board: TensorBoard | None = None
        if run.trainer.config.tensorboard:
            self._try("TensorBoard", self._open_board)
        self._pixels: Mapping[str, np.ndarray] = {}

    def refresh(self) -> None:
        """Bring the page up to date."""
        self._try("page", self._write_page)
        self._try("Weights & Biases", self.tracker.tell)
        if self.board:
            self._try("TensorBoard", self.board.refresh)

    def end(self, status: str) -> None:
        """Draw the pictures, bring the page up to date, and let Weights & Biases have the rest."""
        if status != "failed":
            self._try("pictures", self._draw)
        self.refresh()
        self.run.console.say(f"page         {self.run.folder.path / PAGE_FILE}")
        signals, before = self.run.signals, self.run.signals.hurried
        wait_s = WAIT_FOR_WANDB_S[status]
        self._try("Weights & Biases", lambda: self.tracker.finish(wait_s, lambda: signals.hurried > before))
        if self.board:
            self._try("TensorBoard", self.board.close)

    def _open_board(self) -> None:
        from cifar_dist.tracking.tensorboard import TensorBoard  # for the runs that ask for it

        self.board = TensorBoard(self.run.folder.path)

    def _write_page(self) -> None:
        from cifar_dist.report.page import write_report  # slow to import, and not needed to start

        folder = self.run.folder.path
        write_report(folder, self._images(), published_accuracy(read_run(folder)))

    def _draw(self) -> None:
        from cifar_dist.report.plots import draw_map, draw_pictures  # the same

        run, folder = self.run, self.run.folder.path
        record, predictions = read_run(folder), read_predictions(folder)
        kept, published = training_images(run.trainer), published_accuracy(record)
        write_training_images(run.folder, kept)
        draw_pictures(record, predictions, self._images(), kept, folder / PLOTS, record.title, published)
        if units := run.trainer.state.eval_model.prototypes():
            mean, std = run.trainer.normalize.mean, run.trainer.normalize.std
            draw_map(units, mean, std, run.trainer.dataset.classes, folder / PLOTS / "map.png")

    def _images(self) -> np.ndarray | None:
        """Return the images (M, S, S, 3) uint8 that the newest predictions are about."""
        predictions = read_predictions(self.run.folder.path)
        if not predictions:
            return None
        if predictions.split not in self._pixels:
            split: Split = getattr(self.run.trainer.splits, predictions.split)
            self._pixels = {predictions.split: split.pixels()}
        return self._pixels[predictions.split]

    def _try(self, what: str, make: Callable[[], object]) -> None:
        try:
            make()
        except Exception as error:
            self.run.console.warn(f"no {what} in {self.run.folder.path}: {reason(error)}")


def training_images(trainer: Trainer) -> TrainingImages:
    """Return the first training images of the run, which its seed has drawn: as they are, and as its first steps saw them."""
    num_images, classes = trainer.plan.num_images, trainer.dataset.classes
    places = torch.arange(min(NUM_SHOWN, num_images), device=trainer.device)
    with torch.inference_mode():
        order = epoch_order(trainer.config.seed, 0, num_images, trainer.device)
        pixels, targets = trainer.splits.train.gather(order[places])
        images, labels, _ = trainer.batches.load(0, places)
        augmented = trainer.normalize.undo(images).mul_(255).round_().byte()
    names = [classes[target] for target in labels.targets.tolist()]
    if labels.others is not None and labels.share is not None:
        mixed = zip(names, labels.others.tolist(), labels.share.tolist(), strict=True)
        names = [f"{share:.0%} {name}\n{1 - share:.0%} {classes[other]}" for name, other, share in mixed]
    plain = Labelled(_as_seen(pixels), [classes[target] for target in targets.tolist()])
    return TrainingImages(plain, Labelled(_as_seen(augmented), names))


def _as_seen(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).cpu().numpy()
