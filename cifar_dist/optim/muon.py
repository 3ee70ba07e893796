"""Muon: momentum whose update is orthogonalised, for convolution filters; plain SGD for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, steepest at 0 (Jordan et al. 2024)
ITERATIONS = 3
MOMENTUM = 0.6  # of filters
Tensors = list[Tensor] | tuple[Tensor, ...]


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", as its CIFAR-10 record uses it.

    Groups with `orthogonal` hold filters (C_out, C_in, H, W): each is rescaled to the norm sqrt(C_out), then moved by lr times
    its orthogonalised Nesterov momentum, so that only directions are learned. The others are trained by SGD with Nesterov momentum.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})
        self._step_supports_amp_scaling = True  # or a GradScaler would wait for the device to say if there is a step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step, or none where a GradScaler found gradients that aren't finite; `closure` is not used."""
        moved = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        parameters = [p for _, some in moved for p in some]
        scale, overflows = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)  # a GradScaler's, if any
        if scale is not None:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], scale)
        changing = [] if overflows is None else [*parameters, *self._momenta(parameters)]
        before = [tensor.clone() for tensor in changing]
        for group, some in moved:
            if some:
                (self._move_filters if group["orthogonal"] else self._move)(some, group)
        for tensor, old in zip(changing, before, strict=True):
            tensor.copy_(tensor.where(overflows == 0, old))

    def _move_filters(self, filters: Tensors, group: dict[str, Any]) -> None:
        updates = self._nesterov(filters, [p.grad for p in filters if p.grad is not None], MOMENTUM)
        directions = orthogonalised([update.flatten(1) for update in updates])
        torch._foreach_mul_(directions, group["lr"])  # not alpha=: it may be a tensor
        norms = torch._foreach_norm(filters)
        torch._foreach_div_(norms, [len(p) ** 0.5 for p in filters])
        for p, norm, direction in zip(filters, norms, directions, strict=True):
            p.div_(norm).sub_(direction.view_as(p))

    def _move(self, parameters: Tensors, group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        decayed = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        updates = self._nesterov(parameters, decayed, group["momentum"])
        torch._foreach_mul_(updates, group["lr"])
        torch._foreach_sub_(parameters, updates)

    def _nesterov(self, parameters: Tensors, gradients: Tensors, momentum: float) -> Tensors:
        buffers = self._momenta(parameters)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return torch._foreach_add(gradients, buffers, alpha=momentum)

    def _momenta(self, parameters: Tensors) -> Tensors:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return [self.state[p]["momentum_buffer"] for p in parameters]


def orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """Return each (m, n) with its singular vectors and singular values near 1: Newton-Schulz iterations.

    An iteration multiplies X by a polynomial of its Gram matrix G = X Xᵀ, and makes of G one that follows from G alone. So the
    polynomials are multiplied instead, which are square and commute, for all matrices of as many rows at once, and X is looked
    at twice in all ("Gram Newton-Schulz", Dao-AILab 2026). Products with X are in its precision, or on a GPU in bf16.
    """
    wide = [x if x.shape[0] <= x.shape[1] else x.T for x in matrices]
    wide = [x.bfloat16() if x.is_cuda else x for x in wide]
    results = list(matrices)
    for rows in sorted({len(x) for x in wide}):
        which = [i for i, x in enumerate(wide) if len(x) == rows]
        grams = torch.stack([wide[i] @ wide[i].T for i in which]).to(matrices[0].dtype)
        for i, factor in zip(which, newton_schulz(grams), strict=True):
            result = (factor.to(wide[i].dtype) @ wide[i]).to(matrices[i].dtype)
            results[i] = result if result.shape == matrices[i].shape else result.T
    return results


def newton_schulz(grams: Tensor) -> Tensor:
    """Return the factors (B, m, m) that orthogonalise matrices X with X Xᵀ = `grams` (B, m, m), from the left."""
    a, b, c = COEFFICIENTS
    norms = grams.diagonal(dim1=1, dim2=2).sum(1).sqrt().add_(1e-7).view(-1, 1, 1)
    grams = grams / norms.square()
    product = None
    for i in range(ITERATIONS):
        polynomial = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if i + 1 < ITERATIONS:
            grams = polynomial @ grams @ polynomial
    assert product is not None
    return product / norms
