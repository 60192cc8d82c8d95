"""Differences between machines: CPUs that a process may use, devices without float64, systems that are supported."""

import math
import os
import sys
from pathlib import Path

import torch

_WITHOUT_FLOAT64 = frozenset({"mps"})  # types of devices
_CGROUP = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """Return the CPUs that this process may use, at least 1.

    Affinity (taskset, Slurm, ``docker --cpuset-cpus``) and the quota of a cgroup (``docker --cpus``, Kubernetes) count
    where the system has them; ``os.cpu_count`` knows neither.
    """
    # macOS has no affinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(_CGROUP)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _cgroup_quota(folder: Path) -> float | None:
    """Return the CPUs per second that a container may use, None without a limit.

    Within a container the files of its own group are at the mount point: ``cpu.max`` of version 2, or two of version 1.
    """
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    if limit.strip() == "max" or int(limit) <= 0:
        return None
    return int(limit) / int(period)


def limit_threads() -> None:
    """Let torch use no more threads than there are CPUs for this process, unless OMP_NUM_THREADS is set.

    Under a CPU quota of a container torch starts a thread per CPU of the host, and steps take many times as long.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())


def float64_device(device: torch.device | str | None) -> torch.device | str | None:
    """Return the device itself, or the CPU in place of one without float64 (MPS)."""
    kind = None if device is None else torch.device(device).type
    return torch.device("cpu") if kind in _WITHOUT_FLOAT64 else device


def refuse_windows() -> None:
    """End the process with one sentence on Windows, where locks, signals and worker processes differ."""
    if sys.platform == "win32":
        raise SystemExit(
            "error: ssl_zoo runs on Linux and macOS; on Windows, install WSL (wsl --install) and run this command in it"
        )
