"""Which images optimizer step t sees, and which of them each rank holds: pure functions of (seed, step)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.randomness import Purpose, random_bits

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
    virtual_shards: int | None
    synchronised: bool
    total_steps: int
    steps_per_epoch: int

    @classmethod
    def from_config(cls, config: TrainConfig, num_images: int, world_size: int) -> "BatchPlan":
        """Raises `UserError` where the batch can't be cut."""
        check_batch(config, world_size)
        size, shards = config.batch_size, config.virtual_shards if config.batch_norm == "virtual" else None
        if size > num_images:
            raise UserError(
                f"--batch-size {size} is larger than the {num_images} training images; use {num_images} or less"
            )
        last = num_images % size
        if shards and 0 < last < shards and not config.drop_last:
            raise UserError(
                f"an epoch's last batch of {last} can't be cut into --virtual-shards {shards}; add --drop-last"
            )
        steps_per_epoch = num_images // size if config.drop_last else -(-num_images // size)
        total_steps = config.steps or steps_per_epoch * (config.epochs or 0)
        return cls(
            num_images,
            size,
            world_size,
            config.micro_batch_size,
            shards,
            config.batch_norm == "sync",
            total_steps,
            steps_per_epoch,
        )

    @property
    def epochs(self) -> int:
        """How many epochs the run has, a last one that is cut short included."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def early_steps(self) -> int:
        """How many steps the first half of the epochs has, whose images --early-size makes smaller."""
        return self.epochs // 2 * self.steps_per_epoch

    def batch(self, step: int) -> tuple[int, range]:
        """Return (epoch, range of places in that epoch's order) of the global batch of `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        return epoch, range(start, min(start + self.batch_size, self.num_images))

    def accumulation(self, batch_len: int) -> int:
        """Return how many micro-batches each rank cuts its share of a global batch into; the same on every rank."""
        if self.virtual_shards:
            return self.virtual_shards // self.world_size
        share = -(-batch_len // self.world_size)
        return -(-share // min(share, self.micro_batch_size or share))

    def micro_batches(self, step: int, rank: int) -> list[range]:
        """Return this rank's micro-batches of `step` as places in the epoch's order; some may be empty."""
        _, places = self.batch(step)
        count = self.accumulation(len(places))
        if self.virtual_shards:
            return cut(places.start, places.stop, self.virtual_shards)[rank * count : (rank + 1) * count]
        share = cut(places.start, places.stop, self.world_size)[rank]
        return cut(share.start, share.stop, count)

    def is_log_step(self, steps_done: int, every: int) -> bool:
        """Whether `steps_done` steps end an epoch, or a multiple of `every` steps within one."""
        return steps_done % self.steps_per_epoch % every == 0

    def is_epoch_end(self, steps_done: int, every: int | None) -> bool:
        """Whether `steps_done` steps end an epoch whose number `every` divides, or the run.

        By default runs of 100 epochs or more validate some 50 times: often enough to choose weights, in less than 2 % of the time.
        """
        every = every or max(1, self.epochs // 50)
        return steps_done % (every * self.steps_per_epoch) == 0 or steps_done == self.total_steps

    def statistics_weights(self, step: int, rank: int) -> list[int]:
        """Return how much each micro-batch's batch-norm statistics count within a step: by its images.

        Virtual shards count alike; synchronised statistics are over the images of all ranks.
        """
        if self.virtual_shards:
            return [1] * self.accumulation(self.batch_size)
        ranks = range(self.world_size) if self.synchronised else (rank,)
        return [sum(map(len, pieces)) for pieces in zip(*(self.micro_batches(step, r) for r in ranks), strict=True)]

    def samples_before(self, step: int) -> int:
        """Return the global sample cursor: how many images all steps before `step` saw."""
        epoch, index = divmod(step, self.steps_per_epoch)
        per_epoch = min(self.num_images, self.steps_per_epoch * self.batch_size)
        return epoch * per_epoch + min(index * self.batch_size, self.num_images)

    def arithmetic(self) -> str:
        """Return one line: global = processes x micro-batch x accumulation."""
        count = self.accumulation(self.batch_size)
        pieces = [len(piece) for rank in range(self.world_size) for piece in self.micro_batches(0, rank)]
        sizes = f"{min(pieces)}" if min(pieces) == max(pieces) else f"{min(pieces)}-{max(pieces)}"
        return f"{self.batch_size} = {self.world_size} process{'es' * (self.world_size > 1)} x {sizes} x {count} accumulated"


def check_batch(config: TrainConfig, world_size: int) -> None:
    """Raise `UserError` where the global batch can't be shared out among `world_size` processes."""
    if config.batch_size < world_size:
        raise UserError(
            f"--batch-size {config.batch_size} is smaller than the {world_size} processes; use {world_size} or more"
        )
    shards = config.virtual_shards
    if config.batch_norm == "virtual" and shards % world_size:
        below, above = shards // world_size * world_size, (shards // world_size + 1) * world_size
        choice = f"{below} or {above}" if below else str(above)
        raise UserError(f"--virtual-shards {shards} is not a multiple of the {world_size} processes; use {choice}")
