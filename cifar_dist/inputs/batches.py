"""The images that each step trains on, augmented: a pure function of (seed, step), made for several small steps at once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.data import Split
from cifar_dist.inputs.augment import MIXES, Visits, augment, partner_places, shrunk
from cifar_dist.inputs.labels import Labels
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import BatchPlan, epoch_order

IMAGES_AT_ONCE = 512  # for steps of fewer, whose own time an operation's fixed cost would otherwise match


class Batch(NamedTuple):
    """What one micro-batch holds, on the device."""

    images: Tensor  # (B, 3, S, S) float32; S is that of the images, or --early-size
    labels: Labels
    positions: (
        Tensor  # (B,) int64: global sample positions, one for each visit of an image, which decide all randomness
    )


class Batches:
    """One rank's micro-batches. What was made ahead is only a matter of speed: every image is the same for any cut."""

    def __init__(
        self,
        config: TrainConfig,
        split: Split,
        plan: BatchPlan,
        normalize: Normalize,
        rank: int,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.config, self.split, self.plan, self.normalize, self.rank = config, split, plan, normalize, rank
        self.memory_format = memory_format
        self._ready: dict[tuple[int, int], Batch] = {}

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of `step`, counted from 0; some may be empty."""
        for i in range(len(self.plan.micro_batches(step, self.rank))):
            if (step, i) not in self._ready:
                self._ready = self._make(step, i)
            yield self._ready.pop((step, i))

    def load(self, epoch: int, places: Tensor) -> Batch:
        """Return the augmented images at `places` (B,) int64 of an epoch's order."""
        config, num_images = self.config, self.plan.num_images
        order = epoch_order(config.seed, epoch, num_images, places.device)
        first = epoch * num_images

        def gather(places: Tensor) -> tuple[Tensor, Tensor]:
            visits = Visits(places + first, order[places], epoch)
            pixels, targets = self.split.gather(visits.indices)
            return augment(pixels, visits, config.augment, config.seed, self.normalize), targets

        positions = places + first
        images, targets = gather(places)
        labels = Labels(targets)
        for name in config.augment:
            if name in MIXES:
                partners, others = gather(partner_places(positions, config.seed, num_images))
                images, share = MIXES[name](images, partners, positions, config.seed)
                labels = Labels(targets, others, share)
        if size := self.size(epoch):
            images = shrunk(images, size)
        return Batch(images.contiguous(memory_format=self.memory_format), labels, positions)

    def size(self, epoch: int) -> int | None:
        """Return the side, in pixels, that images of `epoch`, counted from 0, are shrunk to; None where they aren't."""
        return self.config.early_size if epoch * self.plan.steps_per_epoch < self.plan.early_steps else None

    def first_steps(self, done: int) -> list[int]:
        """Return the first step of each size of images that is still to come after `done` steps."""
        larger = self.plan.early_steps
        if not self.config.early_size or not larger:
            return [0]
        return [0, larger] if done < larger else [larger]

    def whole_steps(self) -> range:
        """Return consecutive steps of whole batches whose images are as large as any: those of an epoch, or as many as there are."""
        first, plan = self.first_steps(0)[-1], self.plan
        return range(first, first + max(1, min(plan.total_steps - first, plan.num_images // plan.batch_size)))

    def _make(self, step: int, i: int) -> dict[tuple[int, int], Batch]:
        """Make micro-batch `i` of `step`, and with it the next ones of the epoch that are small enough."""
        made: dict[tuple[int, int], range] = {}
        count = 0
        for key, places in self._from(step, i):
            count += max(1, len(places))
            if made and count > IMAGES_AT_ONCE:
                break
            made[key] = places
        device = self.split.index.device
        own = torch.cat([torch.arange(piece.start, piece.stop, device=device) for piece in made.values()])
        whole = self.load(self.plan.batch(step)[0], own)
        sizes = [len(piece) for piece in made.values()]
        fields = (whole.images, whole.positions, *whole.labels)
        pieces = (field.split(sizes) if field is not None else [None] * len(sizes) for field in fields)
        return {
            key: Batch(images, Labels(*labels), positions)
            for key, images, positions, *labels in zip(made, *pieces, strict=True)
        }

    def _from(self, step: int, i: int) -> Iterator[tuple[tuple[int, int], range]]:
        """Yield ((step, micro-batch), its places) from micro-batch `i` of `step` to the end of the epoch."""
        epoch = self.plan.batch(step)[0]
        while step < self.plan.total_steps and self.plan.batch(step)[0] == epoch:
            for j, places in enumerate(self.plan.micro_batches(step, self.rank)):
                if j >= i:
                    yield (step, j), places
            step, i = step + 1, 0
