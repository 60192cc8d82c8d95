"""Differences between machines: CPUs that a process may use, devices without float64, systems that are supported.

torch is imported where it is needed: tools that only read files start without its seconds.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WITHOUT_FLOAT64 = frozenset({"mps"})  # types of devices
_CGROUP = Path("/sys/fs/cgroup")  # where the hierarchies are mounted, by convention of systemd and containers
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Return the CPUs that this process may use, at least 1.

    Affinity (taskset, Slurm, ``docker --cpuset-cpus``) and the quota of a cgroup (``docker --cpus``, Kubernetes,
    ``systemd-run -p CPUQuota=``) count where the system has them; ``os.cpu_count`` knows neither.
    """
    # macOS has no affinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(_CGROUP, _OWN_CGROUP)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _cgroup_quota(mount: Path, own: Path) -> float | None:
    """Return the CPUs per second that the process may use, None without a limit.

    The limit of a group holds for all groups in it, so the smallest one on the way up to the mount point counts. Within
    a container the process is in the root group, or its path is that of the host, which is missing there.
    """
    quotas = [_quota(folder) for folder in _own_groups(mount, own)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _own_groups(mount: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups and of those around them, in both versions of cgroups."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []  # not Linux, or /proc is not mounted
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    paths = {"": "/", "cpu": "/"}  # by controller; version 2 has one hierarchy without a name
    paths |= {name: path for _, names, path in entries for name in names.split(",") if name in paths}
    for root, path in ((mount, paths[""]), (mount / "cpu", paths["cpu"])):
        group = root.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """Return the limit of one group: ``cpu.max`` of version 2, or two files of version 1."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    if limit.strip() == "max" or int(limit) <= 0:
        return None
    return int(limit) / int(period)


def limit_threads() -> None:
    """Let torch use no more threads than there are CPUs for this process, unless OMP_NUM_THREADS is set.

    Under a CPU quota of a container torch starts a thread per CPU of the host, and steps take many times as long.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())


def float64_device(device: "torch.device | str | None") -> "torch.device | str | None":
    """Return the device itself, or the CPU in place of one without float64 (MPS)."""
    import torch

    kind = None if device is None else torch.device(device).type
    return torch.device("cpu") if kind in _WITHOUT_FLOAT64 else device


def refuse_windows() -> None:
    """End the process with one sentence on Windows, where locks, signals and worker processes differ."""
    if sys.platform == "win32":
        raise SystemExit(
            "error: ssl_zoo runs on Linux and macOS; on Windows, install WSL (wsl --install) and run this command in it"
        )
