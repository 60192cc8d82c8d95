"""The fastest matmul of this machine, to which a step's speed is compared."""

import time

import torch

_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
_REPETITIONS = 3


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of the fastest square matmul; a multiply-add is two FLOPs."""
    return max(_speed(side, device, dtype) for side in _SIDES[device.type])


def _speed(side: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = min(_timed(a, b) for _ in range(_REPETITIONS + 1))
    return 2 * side**3 / seconds


def _timed(a: torch.Tensor, b: torch.Tensor) -> float:
    _wait(a.device)
    start = time.perf_counter()
    torch.mm(a, b)
    _wait(a.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
