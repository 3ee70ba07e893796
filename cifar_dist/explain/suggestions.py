"""What might make a step faster, each tried in turns with the step as it is."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from cifar_dist.config import TrainConfig
from cifar_dist.runtime.cpu import computes_in_bf16
from cifar_dist.runtime.launch import uses_gpu

WORTH_SAYING = 1.05  # times as fast, in each of the rounds


class Suggestion(NamedTuple):
    """A change of the command, and what else it changes."""

    option: str
    config: TrainConfig
    note: str = ""


def candidates(config: TrainConfig, threads: int, world_size: int) -> Iterator[Suggestion]:
    """Yield what may be faster than `config`, whose processes have so many threads each."""
    if uses_gpu(config):
        if config.capture == "off" or (config.capture == "auto" and world_size > 1):
            yield Suggestion("--capture on", replace(config, capture="on"))
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for number in (threads * 2, threads // 2):
            if 1 <= number <= max(1, cores // world_size) and not config.exact_shards:
                yield Suggestion(f"--threads {number}", replace(config, threads=number), "sums round differently")
        fast = computes_in_bf16()
    if config.mixed_precision == "no" and fast:
        yield Suggestion("--mixed-precision bf16", replace(config, mixed_precision="bf16"), "less precise")
    if config.micro_batch_size:
        yield Suggestion("--micro-batch-size none", replace(config, micro_batch_size=None), "more memory")
    if config.exact_shards:
        yield Suggestion(
            "--exact-shards none", replace(config, exact_shards=None), "other bits on other numbers of processes"
        )
    if world_size > 1 and config.gradient_compression == "no" and not config.exact_shards:
        yield Suggestion("--gradient-compression bf16", replace(config, gradient_compression="bf16"), "less precise")
