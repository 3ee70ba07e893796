"""What makes a CPU fast: memory that is kept, no denormal numbers, and nothing that a step is too small for (docs/PERFORMANCE.md)."""

import ctypes
import sys

import torch

from cifar_dist.config import TrainConfig
from cifar_dist.models import forward_macs

WORTHWHILE_MACS = 4e6  # multiply-accumulates of a forward pass that another thread, or oneDNN, is worth its trouble for
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def prepare_cpu(config: TrainConfig, world_size: int, cores: int) -> None:
    """Set this process up, one of `world_size`, that has `cores` to itself. Before it uses other threads."""
    keep_memory()
    # Operations on numbers below 1e-38 take about ten times as long, and weight decay makes more and more of them. Such
    # numbers become 0. Threads inherit this when they start.
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
    if (
        config.exact_shards
    ):  # another number of threads may round differently, and other processes share out the cores otherwise
        return 1
    return max(1, min(cores, int(macs_at_once(config, world_size) / WORTHWHILE_MACS)))


def worth_onednn(config: TrainConfig, world_size: int) -> bool:
    """Whether training steps gain from oneDNN, whose convolutions are fast but slow to begin. Only they compute in bf16."""
    plain = config.mixed_precision == "no" and not config.compile
    return not plain or macs_at_once(config, world_size) >= WORTHWHILE_MACS


def uses_onednn() -> bool:
    return bool(torch.backends.mkldnn.enabled)


def use_onednn(use: bool) -> None:
    torch.backends.mkldnn.enabled = use  # type: ignore[assignment] # a property, typed as what it is made of


def macs_at_once(config: TrainConfig, world_size: int) -> int:
    """Return the multiply-accumulates of the largest forward pass of a step: of a process's share, micro-batch or shard."""
    if config.exact_shards:  # the same on any number of processes, as all that they compute
        images = -(-config.batch_size // config.exact_shards)
    else:
        share = -(-config.batch_size // world_size)
        images = min(config.most_at_once or share, share)
    return images * forward_macs(config.model, config.model_options)


def computes_in_bf16() -> bool:
    """Whether this processor has AVX-512's bf16 instructions; others emulate them, slowly, or haven't been measured (Arm)."""
    return torch.cpu._is_avx512_bf16_supported()
