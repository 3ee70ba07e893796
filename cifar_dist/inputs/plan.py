"""Which images optimizer step t sees, and which of them each rank holds: pure functions of (seed, step)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.randomness import Purpose, random_bits
from cifar_dist.text import count

CPU = torch.device("cpu")


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int, device: torch.device = CPU) -> Tensor:
    """Return the order in which epoch `epoch` visits the images: a permutation of 0 .. num_images - 1, int64."""
    positions = torch.arange(epoch * num_images, (epoch + 1) * num_images, device=device)
    return random_bits(seed, Purpose.ORDER, positions).argsort(stable=True)


def cut(start: int, stop: int, parts: int) -> list[range]:
    """Cut [start, stop) into `parts` contiguous ranges whose lengths differ by at most one; some may be empty."""
    n = stop - start
    return [range(start + n * i // parts, start + n * (i + 1) // parts) for i in range(parts)]


@dataclass(frozen=True)
class BatchPlan:
    """How each global batch is cut over ranks and micro-batches. Derived, never configured."""

    num_images: int
    batch_size: int
    world_size: int
    micro_batch_size: int | None
    shards: int | None  # of a whole global batch, fixed; None where each rank's share is cut instead
    synchronised: bool
    total_steps: int
    steps_per_epoch: int
    schedule_start: int = 0

    @classmethod
    def from_config(cls, config: TrainConfig, num_images: int, world_size: int) -> "BatchPlan":
        """Raises `UserError` where the batch can't be cut."""
        check_batch(config, world_size)
        size = config.batch_size
        if size > num_images:
            raise UserError(
                f"--batch-size {size} is larger than the {num_images} training images; use {num_images} or less"
            )
        steps_per_epoch = num_images // size if config.drop_last else -(-num_images // size)
        total_steps = config.steps or steps_per_epoch * (config.epochs or 0)
        return cls(
            num_images,
            size,
            world_size,
            config.most_at_once,
            config.exact_shards,
            config.batch_norm == "sync",
            total_steps,
            steps_per_epoch,
            config.schedule_start,
        )

    @property
    def epochs(self) -> int:
        """How many epochs the run has, a last one that is cut short included."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def early_steps(self) -> int:
        """How many steps the first half of the epochs has, whose images --early-size makes smaller; none once a run is trained further."""
        return 0 if self.schedule_start else self.epochs // 2 * self.steps_per_epoch

    def batch(self, step: int) -> tuple[int, range]:
        """Return (epoch, range of places in that epoch's order) of the global batch of `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        return epoch, range(start, min(start + self.batch_size, self.num_images))

    def num_shards(self, step: int) -> int:
        """Return how many shards `step` has: of a short batch fewer, of about the usual size."""
        assert self.shards, "the run has shards"
        return -(-len(self.batch(step)[1]) * self.shards // self.batch_size)

    def shards_of(self, step: int, rank: int) -> range:
        """Return which of the step's shards a rank holds: consecutive ones, as many as others or one more."""
        return cut(0, self.num_shards(step), self.world_size)[rank]

    def accumulation(self, batch_len: int) -> int:
        """Return how many micro-batches each rank cuts its share of a global batch into; the same on every rank."""
        share = -(-batch_len // self.world_size)
        return -(-share // min(share, self.micro_batch_size or share))

    def micro_batches(self, step: int, rank: int) -> list[range]:
        """Return this rank's micro-batches of `step` as places in the epoch's order; some may be empty."""
        _, places = self.batch(step)
        if self.shards:
            pieces = cut(places.start, places.stop, self.num_shards(step))
            return [pieces[i] for i in self.shards_of(step, rank)]
        share = cut(places.start, places.stop, self.world_size)[rank]
        return cut(share.start, share.stop, self.accumulation(len(places)))

    def is_log_step(self, steps_done: int, every: int) -> bool:
        """Whether `steps_done` steps end an epoch, or a multiple of `every` steps within one."""
        return steps_done % self.steps_per_epoch % every == 0

    def is_epoch_end(self, steps_done: int, every: int | None) -> bool:
        """Whether `steps_done` steps end an epoch whose number `every` divides, or the run."""
        return steps_done % (self.epochs_between(every) * self.steps_per_epoch) == 0 or steps_done == self.total_steps

    def epochs_between(self, every: int | None) -> int:
        """Return the epochs between two validations, `every` if it is given.

        By default runs of 100 epochs or more validate some 50 times: often enough to choose weights, in less than 2 % of the time.
        """
        return every or max(1, self.epochs // 50)

    def statistics_weights(self, step: int, rank: int) -> list[int]:
        """Return how much each micro-batch's batch-norm statistics count within a step: by its images.

        Synchronised statistics are over the images of all ranks.
        """
        ranks = range(self.world_size) if self.synchronised else (rank,)
        return [sum(map(len, pieces)) for pieces in zip(*(self.micro_batches(step, r) for r in ranks), strict=True)]

    def samples_before(self, step: int) -> int:
        """Return the global sample cursor: how many images all steps before `step` saw."""
        epoch, index = divmod(step, self.steps_per_epoch)
        per_epoch = min(self.num_images, self.steps_per_epoch * self.batch_size)
        return epoch * per_epoch + min(index * self.batch_size, self.num_images)

    def arithmetic(self) -> str:
        """Return one line: global = processes x micro-batch x accumulation, or global = shards x images."""
        pieces = [len(piece) for rank in range(self.world_size) for piece in self.micro_batches(0, rank)]
        sizes = f"{min(pieces)}" if min(pieces) == max(pieces) else f"{min(pieces)}-{max(pieces)}"
        processes = count(self.world_size, "process")
        if self.shards:
            return f"{self.batch_size} = {count(self.shards, 'exact shard')} x {sizes} on {processes}"
        return f"{self.batch_size} = {processes} x {sizes} x {self.accumulation(self.batch_size)} accumulated"


def check_batch(config: TrainConfig, world_size: int) -> None:
    """Raise `UserError` where the global batch can't be shared out among `world_size` processes."""
    if config.batch_size < world_size:
        raise UserError(
            f"--batch-size {config.batch_size} is smaller than the {world_size} processes; use {world_size} or more"
        )
    if config.exact_shards and config.exact_shards < world_size:
        raise UserError(
            f"--exact-shards {config.exact_shards} are fewer than the {world_size} processes; use {world_size} or more"
        )
