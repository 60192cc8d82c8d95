"""Muon: momentum whose updates of weight matrices are orthogonalised (K. Jordan et al., 2024)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from ssl_zoo.engine.sharding import gathered, local, own_rows
from ssl_zoo.nn.kernels import matmul_dtype

# Quintic Newton-Schulz iteration of github.com/KellerJordan/Muon: singular values end in about 0.7..1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Applies Muon to parameters of two dimensions, fused AdamW to all others.

    torch.optim.Muon (2.14) takes matrices only, has no foreach form, always multiplies in bf16, also where float32 is
    faster, and ignores ``found_inf``; here matrices of one shape form a batch. Updates have the size of AdamW's
    (Moonlight, arXiv 2502.16982, eq. 4), so that learning rate and weight decay mean the same for both. Matmuls have
    the dtype of autocast.

    Args:
        groups: as for AdamW; each is split into its matrices and the rest, which keep its other entries.
        momentum: decay of the momentum, in Nesterov's form.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, momentum: float, **adamw: Any) -> None:
        super().__init__([part for group in groups for part in _split(group)], fused=True, **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group)
        super().step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices = [p for p in group["params"] if p.grad is not None]
        if not matrices:
            return
        gradients = [p.grad for p in matrices]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        updates = _orthogonal_shards(torch._foreach_lerp(gradients, momenta, self.momentum))
        params = [local(p) for p in matrices]
        torch._foreach_mul_(updates, [-group["lr"] * 0.2 * max(p.shape) ** 0.5 for p in matrices])
        torch._foreach_add_(updates, params, alpha=-group["lr"] * group["weight_decay"])
        if getattr(self, "found_inf", None) is not None:  # as torch's fused optimizers: skip without a sync
            torch._foreach_mul_(updates, 1 - self.found_inf)
            for update in updates:
                update.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_add_(params, updates)
        for parameter in matrices:
            parameter.grad = None  # so that AdamW's step skips them


def _orthogonal_shards(matrices: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "_ _"]]:
    """Orthogonalise matrices; of sharded ones every rank gets its rows of the result.

    Matrices of one shape are gathered together, so that only those are full at a time.
    """
    shapes = defaultdict(list)
    for position, matrix in enumerate(matrices):
        shapes[matrix.shape if isinstance(matrix, DTensor) else None].append(position)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for positions in shapes.values():
        same = [matrices[position] for position in positions]
        for position, result in zip(positions, orthogonalize(gathered(same)), strict=True):
            results[position] = own_rows(result, matrices[position])
    return results


def orthogonalize(matrices: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "_ _"]]:
    """Approximate each matrix's nearest semi-orthogonal one: U V^T of U S V^T, with singular values near one."""
    shapes = defaultdict(list)
    for position, matrix in enumerate(matrices):
        shapes[tuple(sorted(matrix.shape))].append(position)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for positions in shapes.values():
        # Wide orientation: the matmuls of the iteration are as small as the short side allows.
        wide = [m if m.shape[0] <= m.shape[1] else m.T for m in (matrices[p] for p in positions)]
        for position, result in zip(positions, _newton_schulz(torch.stack(wide)), strict=True):
            matrix = matrices[position]
            results[position] = (result if matrix.shape[0] <= matrix.shape[1] else result.T).to(matrix.dtype)
    return results


def _newton_schulz(x: Float[Tensor, "S short long"]) -> Float[Tensor, "S short long"]:
    a, b, c = _COEFFICIENTS
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-7)  # the largest singular value is at most one
    x = x.to(matmul_dtype(x))
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _split(group: dict[str, Any]) -> list[dict[str, Any]]:
    parts = []
    for matrices in (False, True):
        params = [p for p in group["params"] if (p.ndim == 2) is matrices]
        if params:
            parts.append({**group, "params": params, "matrices": matrices})
    return parts
