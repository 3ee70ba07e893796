"""The process group and the Accelerator, on the right device or not at all."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from signal import Signals

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
from accelerate.utils import DDPCommunicationHookType

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.runtime.collectives import is_speaker, meeting_place, sum_across_ranks, without_detail, world_size
from cifar_dist.runtime.cpu import computes_in_bf16, prepare_cpu, use_onednn, worth_onednn
from cifar_dist.runtime.launch import check_launch, check_precision, default_threads, env_int, launch_request, uses_gpu
from cifar_dist.text import count

PATIENCE_S = 10.0  # in which processes usually have found each other
TIMEOUT = timedelta(minutes=30)  # of a collective; NCCL's own 10 minutes are less than a slow node may decode for


def choose_precision(config: TrainConfig) -> TrainConfig:
    """Return the configuration with bf16 for auto where the processors of all processes compute in it, else no. Collective."""
    if config.mixed_precision != "auto":
        return config
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if uses_gpu(config) else computes_in_bf16()
    slow = sum_across_ranks(torch.tensor(not fast, dtype=torch.int64, device=PartialState().device))
    return replace(config, mixed_precision="no" if slow else "bf16")


def join(config: TrainConfig) -> None:
    """Join the process group, on GPUs or CPUs as the configuration asks. Raises `UserError` on every rank alike."""
    check_launch(config, launch_request())
    torch.set_flush_denormal(True)  # see `prepare_cpu`; what happens before that may start threads too
    os.environ["OMP_NUM_THREADS"] = str(default_threads())  # Accelerate warns and chooses for itself where it is unset
    launched = env_int("WORLD_SIZE", 1)
    if launched > 1 and without_detail() and is_speaker():
        print(
            "TORCH_DISTRIBUTED_DEBUG=DETAIL ends DDP with a segmentation fault; this run has INFO",
            file=sys.stderr,
            flush=True,
        )
    with waiting_for(launched - 1):
        state = PartialState(cpu=not uses_gpu(config), timeout=TIMEOUT, **meeting_place(TIMEOUT))
    if state.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but Accelerate sees {state.num_processes}; see launch/README.md"
        )
    if state.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(f"distributed type {state.distributed_type.value} is not supported; use one of launch/*.yaml")


@contextmanager
def waiting_for(processes: int) -> Iterator[None]:
    """Say what is waited for where that takes long, and from then on end on any signal: there is nothing to save yet.

    torch waits in C++, where Python's own handlers don't run.
    """
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    done, (reading, writing) = threading.Event(), os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        with os.fdopen(reading, "rb", buffering=0) as received:
            if done.wait(PATIENCE_S):
                return
            if is_speaker():
                others = count(processes, "other process")
                print(f"still waiting for {others} of this run at {where}", file=sys.stderr, flush=True)
            if number := received.read(1):  # nothing once all are there
                if is_speaker():
                    print(f"ended by {Signals(number[0]).name} while waiting", file=sys.stderr, flush=True)
                os._exit(128 + number[0])  # as a shell has it

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False) if in_main else -1
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if in_main:
            signal.set_wakeup_fd(before)
        os.close(writing)


def accelerate(config: TrainConfig) -> Accelerator:
    """Return the Accelerator of a joined group, set up as the configuration asks. Raises `UserError`."""
    check_precision(config)  # of a run that goes on, known only now
    prepare_cpu(config, world_size(), default_threads())
    use_onednn(uses_gpu(config) or worth_onednn(config, world_size()))
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    # torch 2.14 wants another name for it, which torch 2.11 and Accelerate don't know.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return Accelerator(
        cpu=not uses_gpu(config),
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                # Batch-norm buffers are reduced by us, exactly; DDP would overwrite them with rank 0's at every forward.
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                comm_hook=DDPCommunicationHookType(config.gradient_compression),  # of torch; one process has no DDP
            )
        ],
    )
