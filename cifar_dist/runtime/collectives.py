"""Every collective, and who is who.

Nothing else calls torch.distributed but `doctor/wire.py`, which must work where a collective hangs.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_dist.errors import UserError
from cifar_dist.runtime.launch import env_int, one_machine, under_launcher

T = TypeVar("T")
unlisted: Any = dist  # what torch leaves out of its list of names


def is_speaker() -> bool:
    """Whether this process says what went wrong: rank 0, or before there is a process group the first of each machine."""
    if dist.is_initialized() or one_machine():
        return env_int("RANK", 0) == 0
    return env_int("LOCAL_RANK", 0) == 0


def hears_speaker() -> bool:
    """Whether a launcher started this process beside the one that speaks, which it ends when this one leaves."""
    same = not dist.is_initialized() or env_int("GROUP_RANK", 0) == 0
    return under_launcher() and env_int("WORLD_SIZE", 1) > 1 and same


def without_detail() -> bool:
    """Lower TORCH_DISTRIBUTED_DEBUG from DETAIL to INFO and return whether that was to be done.

    With DETAIL, DDP's constructor ends with a segmentation fault in the group that watches over all collectives, which live
    through it themselves (torch 2.14, gloo). That group is made when the processes join, so that this comes before.
    """
    if unlisted.get_debug_level() != unlisted.DebugLevel.DETAIL:
        return False
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "INFO"
    unlisted.set_debug_level(unlisted.DebugLevel.INFO)
    return True


def meeting_place(timeout: timedelta) -> dict[str, Any]:
    """Return where the processes of a launch that torchrun has started again find each other; nothing for a first start.

    torchrun keeps its store, and with it the addresses of the processes that died, to which new ones would connect (torch
    2.14). So each restart has its own part of it.
    """
    restart = env_int("TORCHELASTIC_RESTART_COUNT", 0)
    if not restart or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    size = env_int("WORLD_SIZE", 1)
    where = os.environ["MASTER_ADDR"], env_int("MASTER_PORT", 0)
    store = unlisted.TCPStore(*where, size, is_master=False, timeout=timeout)
    prefixed = unlisted.PrefixStore(f"restart_{restart}", store)
    return {"store": prefixed, "rank": env_int("RANK", 0), "world_size": size}


def notice_board(timeout: timedelta) -> Any:
    """Return the store of the launch, with a connection of its own: another thread may use it while this one waits."""
    where = os.environ["MASTER_ADDR"], env_int("MASTER_PORT", 0)
    return unlisted.TCPStore(*where, is_master=False, timeout=timeout)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def in_a_group() -> bool:
    """Whether there is a process group, which may be of one process."""
    return dist.is_initialized()


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


def exchange_slices(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return this rank's slice (sum(counts), n) of all ranks' rows, of which each has (counts[rank], world_size * n)."""
    n = rows.shape[1] // world_size()
    outgoing = rows.view(len(rows), world_size(), n).transpose(0, 1).reshape(-1, n)
    received = rows.new_empty(sum(counts), n)
    dist.all_to_all_single(received, outgoing, list(counts), [len(rows)] * world_size())
    return received


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
    for message in gather_objects(problem):
        if message is not None:
            raise UserError(message)
    return result  # type: ignore[return-value]


def gather_objects(value: T) -> list[T]:
    """Return every rank's value, in order of rank."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def check_equal(value: str, what: str) -> None:
    """Raise `UserError` on every rank unless all hold the same `value`."""
    values = gather_objects(value)
    for other, seen in enumerate(values):
        if seen != values[0]:
            raise UserError(
                f"{what} differs between processes: {values[0]} on rank 0, {seen} on rank {other}; give every node the same files"
            )
