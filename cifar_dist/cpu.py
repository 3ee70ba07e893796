"""What makes a CPU fast: memory that is kept, no denormal numbers, and as many threads as a step is worth (docs/PERFORMANCE.md)."""

import ctypes
import sys

import torch

from cifar_dist.config import TrainConfig
from cifar_dist.models import forward_macs

MACS_PER_THREAD = 4e6  # multiply-accumulates of a forward pass under which sharing them out costs more than it saves
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def prepare_cpu(config: TrainConfig, world_size: int, cores: int) -> None:
    """Set this process up, one of `world_size`, that has `cores` to itself. Before it uses other threads."""
    keep_memory()
    # Numbers below 1e-38 are computed with some ten times as slowly, and weight decay makes more and more of them. Other
    # threads inherit this when they start.
    torch.set_flush_denormal(True)
    torch.set_num_threads(config.threads or worthwhile_threads(config, world_size, cores))


def keep_memory() -> None:
    """Let the allocator keep what is freed, where it is glibc's.

    It gives large blocks back at once, and every step would have the system clear them page by page again: 1.1 to 1.6 times
    the time of a step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def worthwhile_threads(config: TrainConfig, world_size: int, cores: int) -> int:
    """Return how many of `cores` a step of this configuration keeps busy: a number of the configuration, not of the moment."""
    share = -(-config.batch_size // world_size)
    shards = config.virtual_shards if config.batch_norm == "virtual" else 1
    images = min(config.micro_batch_size or share, max(1, share // max(1, shards // world_size)))
    macs = forward_macs(config.model, config.model_options)
    return max(1, min(cores, int(images * macs / MACS_PER_THREAD)))
