"""Every question of ranks, process groups and collectives.

Nothing else calls torch.distributed but `doctor/wire.py`, which must work where a collective hangs.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
from accelerate.utils import DDPCommunicationHookType
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.cpu import computes_in_bf16, prepare_cpu, use_onednn, worth_onednn
from cifar_dist.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # of a collective; NCCL's own 10 minutes are less than a slow node may decode for


def env_int(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def one_machine() -> bool:
    """Whether the launcher started all processes on this machine, so that all see the same files and GPUs."""
    return env_int("WORLD_SIZE", 1) == env_int("LOCAL_WORLD_SIZE", env_int("WORLD_SIZE", 1))


def is_speaker() -> bool:
    """Whether this process says what went wrong: rank 0, or before there is a process group the first of each machine."""
    if dist.is_initialized() or one_machine():
        return env_int("RANK", 0) == 0
    return env_int("LOCAL_RANK", 0) == 0


def under_launcher() -> bool:
    """Whether accelerate launch or torchrun started this process. They report any exit status but 0 as a crash."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


@dataclass(frozen=True)
class LaunchRequest:
    """What the parent process, `accelerate launch`, was asked for."""

    num_processes: int | None
    config_file: str | None
    use_cpu: bool


def launch_request() -> LaunchRequest | None:
    """Read the launcher's own command line and config file; None without such a parent.

    The launcher starts one process where it was asked for several CPU processes, and tells nobody.
    """
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    start = next((i for i, word in enumerate(words[:4]) if word.endswith(("launch", "launch.py"))), None)
    if start is None or not any("accelerate" in word for word in words[: start + 1]):
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        args, _ = launch_command_parser().parse_known_args(words[start + 1 :])
        path = args.config_file or (
            default_config_file if Path(default_config_file).is_file() and not args.cpu else None
        )
        file = load_config_from_file(path) if path else None
    except (SystemExit, Exception):  # not ours to judge: the launcher itself accepted them
        return None
    from_file = file.num_processes if file and file.num_processes > 0 else None
    return LaunchRequest(args.num_processes or from_file, args.config_file, args.cpu or bool(file and file.use_cpu))


def check_launch(config: TrainConfig, request: LaunchRequest | None) -> None:
    """Raise `UserError` where the launcher's wish, this machine and the configuration disagree."""
    gpus = torch.cuda.device_count()
    local_world_size = env_int("LOCAL_WORLD_SIZE", 1)
    if config.device == "gpu" and not uses_gpu(config):
        why = "the launch config asks for the CPU" if gpus else "torch sees no GPU on this machine"
        raise UserError(f"--device gpu, but {why}; use --device auto, or another launch config, or check the driver")
    if request and request.config_file and not request.use_cpu and config.device == "auto" and not gpus:
        raise UserError(
            f"{request.config_file} asks for a GPU (use_cpu: false), but torch sees none; "
            "use launch/cpu.yaml or launch/multi_cpu.yaml, or --device cpu"
        )
    if request and request.num_processes and request.num_processes > 1 and env_int("WORLD_SIZE", 1) == 1:
        raise UserError(
            f"the launcher was asked for {request.num_processes} processes and started 1, which it does on CPUs; "
            f"use accelerate launch --config_file launch/multi_cpu.yaml --num_processes {request.num_processes}"
        )
    if uses_gpu(config) and local_world_size > gpus:
        raise UserError(
            f"{local_world_size} processes on a node with {gpus} GPUs; use --num_processes {gpus}, or --device cpu"
        )
    check_precision(config)
    if env_int("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1) != 1:
        raise UserError(
            "accumulation follows from --batch-size and --micro-batch-size; leave --gradient_accumulation_steps out of the launch"
        )


def check_precision(config: TrainConfig) -> None:
    """Raise `UserError` for a precision that this machine would not compute in."""
    if config.mixed_precision == "fp16" and not uses_gpu(config):
        raise UserError("--mixed-precision fp16 needs a GPU (a CPU would silently compute in fp32); use bf16 or no")


def choose_precision(config: TrainConfig) -> TrainConfig:
    """Return the configuration with bf16 for auto where the processors of all processes compute in it, else no. Collective."""
    if config.mixed_precision != "auto":
        return config
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if uses_gpu(config) else computes_in_bf16()
    slow = sum_across_ranks(torch.tensor(not fast, dtype=torch.int64, device=PartialState().device))
    return replace(config, mixed_precision="no" if slow else "bf16")


def uses_gpu(config: TrainConfig) -> bool:
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return torch.cuda.is_available() and config.device != "cpu" and not wants_cpu


def join(config: TrainConfig) -> None:
    """Join the process group, on GPUs or CPUs as the configuration asks. Raises `UserError` on every rank alike."""
    check_launch(config, launch_request())
    torch.set_flush_denormal(True)  # see `prepare_cpu`; what happens before that may start threads too
    os.environ["OMP_NUM_THREADS"] = str(default_threads())  # Accelerate warns and chooses for itself where it is unset
    state = PartialState(cpu=not uses_gpu(config), timeout=TIMEOUT)
    launched = env_int("WORLD_SIZE", 1)
    if state.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but Accelerate sees {state.num_processes}; see launch/README.md"
        )
    if state.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(f"distributed type {state.distributed_type.value} is not supported; use one of launch/*.yaml")


def default_threads() -> int:
    """Return this process's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return max(1, cores // env_int("LOCAL_WORLD_SIZE", 1))


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


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def sum_across_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over all ranks; every rank gets it."""
    return _reduce(tensor, dist.ReduceOp.SUM)


def max_across_ranks(tensor: Tensor) -> Tensor:
    return _reduce(tensor, dist.ReduceOp.MAX)


def _reduce(tensor: Tensor, op: Any) -> Tensor:
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor, op)
    return tensor


def gather_rows(vector: Tensor) -> Tensor:
    """Return (world_size, n): every rank's `vector` (n,), in order of rank."""
    if world_size() == 1:
        return vector.unsqueeze(0).clone()
    rows = [torch.empty_like(vector) for _ in range(world_size())]
    dist.all_gather(rows, vector.contiguous())
    return torch.stack(rows)


class _DifferentiableSum(torch.autograd.Function):
    """y = sum over ranks of x; since every rank's loss depends on y, the gradient is summed over ranks as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_across_ranks(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_across_ranks(grads[0].contiguous())


def differentiable_sum(x: Tensor) -> Tensor:
    """Return the sum over ranks, with its gradient."""
    return _DifferentiableSum.apply(x)


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result on every rank; what it raises, every rank raises."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            if world_size() == 1:
                raise
            outcome[1] = error
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_all(action: Callable[[], T]) -> T:
    """Run `action` on every rank; where it raises `UserError` or `OSError` on any, all raise the first rank's error."""
    result, problem = None, None
    try:
        result = action()
    except (UserError, OSError) as error:
        problem = str(error)
    problems = [problem]
    if world_size() > 1:
        problems = [None] * world_size()
        dist.all_gather_object(problems, problem)
    for message in problems:
        if message is not None:
            raise UserError(message)
    return result  # type: ignore[return-value]


def check_equal(value: str, what: str) -> None:
    """Raise `UserError` on every rank unless all hold the same `value`."""
    values: list[Any] = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    for other, seen in enumerate(values):
        if seen != values[0]:
            raise UserError(
                f"{what} differs between processes: {values[0]} on rank 0, {seen} on rank {other}; give every node the same files"
            )
