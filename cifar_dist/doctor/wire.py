"""How the ranks reach one another: the launcher's key-value store, which answers where a collective hangs, and raw collectives."""

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from cifar_dist.runtime.launch import env_int


class AbsentError(RuntimeError):
    """Nobody posted what was waited for."""


class Meeting:
    """The ranks' notice board. It outlives process groups, and every wait on it is bounded."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store = dist.PrefixStore("doctor", store)  # type: ignore[attr-defined]  # it is exported, as dist.HashStore is
        self.rank, self.world_size, self.host = rank, world_size, socket.gethostname()

    @classmethod
    def open(cls, timeout_s: float) -> "Meeting":
        """Reach the board that the launcher's environment names; raises `OSError` where that can't be."""
        if env_int("WORLD_SIZE", 1) == 1:
            return cls(dist.HashStore(), 0, 1)  # type: ignore[attr-defined]
        try:
            store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        except (RuntimeError, ValueError) as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = str(error).splitlines()[0]
            what = "can't reach rank 0" if env_int("RANK", 0) else "waits as rank 0 for the other processes"
            raise OSError(
                f"{socket.gethostname()} {what} at {place}, for {timeout_s:g} s now ({reason}); check that all of them "
                "were started, that every node resolves that name, and that no firewall closes the port"
            ) from None
        return cls(store, rank, world_size)

    def post(self, key: str, value: Any) -> None:
        """Show a JSON-ready value to all ranks."""
        self._store.set(key, json.dumps(value))

    def read(self, key: str, timeout_s: float) -> Any:
        """Return what was posted, by whomever, as soon as it is; raises `AbsentError`."""
        try:
            self._store.wait([key], timedelta(seconds=max(timeout_s, 0.05)))
            return json.loads(self._store.get(key))
        except RuntimeError as error:
            raise AbsentError(f"{key}: {str(error).splitlines()[0]}") from None


def all_reduce(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over all ranks; returns when that is done."""
    dist.all_reduce(tensor)
    finish(tensor.device)


def round_trip(tensor: Tensor, peer: int) -> None:
    """Send `tensor` from rank 0 to `peer` and back. Both call it, the others don't."""
    first, second = (dist.send, dist.recv) if dist.get_rank() == 0 else (dist.recv, dist.send)
    transfer: Callable[[Tensor, int], Any]
    for transfer in (first, second):
        transfer(tensor, peer if dist.get_rank() == 0 else 0)
    finish(tensor.device)


def finish(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def backend() -> str:
    """Return the process group's backend, `none` without a group."""
    return str(dist.get_backend()) if dist.is_initialized() else "none"
