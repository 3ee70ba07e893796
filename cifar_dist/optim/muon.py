"""Muon: momentum whose update is orthogonalised, for convolution filters; plain SGD for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, steepest at 0 (Jordan et al. 2024)
ITERATIONS = 3
MOMENTUM = 0.6  # of filters


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", as its CIFAR-10 record uses it.

    Groups with `orthogonal` hold filters (C_out, C_in, H, W): each is rescaled to the norm sqrt(C_out), then moved by lr times
    its orthogonalised Nesterov momentum, so that only directions are learned. The others are trained by SGD with Nesterov momentum.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step; `closure` is not used."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            move = self._move_filter if group["orthogonal"] else self._move
            for p in parameters:
                move(p, group)

    def _move_filter(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        update = self._nesterov(p, p.grad, MOMENTUM)
        p.mul_(len(p) ** 0.5 / p.norm())
        p.sub_(orthogonalised(update.flatten(1)).view_as(p).mul_(group["lr"]))

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        gradient = p.grad.add(p, alpha=group["weight_decay"])
        p.sub_(self._nesterov(p, gradient, group["momentum"]).mul_(group["lr"]))  # not alpha=: it may be a tensor

    def _nesterov(self, p: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return (m, n) with the singular vectors of `matrix` (m, n) and singular values near 1: Newton-Schulz iterations.

    In float32, or on a GPU in bf16, whose rounding doesn't matter here.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
