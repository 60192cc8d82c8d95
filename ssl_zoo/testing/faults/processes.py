"""Tools in their own processes, which can be signalled, waited for, and limited.

Python's fork server forks them from a process that has imported the tools already, since importing torch takes ten
times as long as the few steps of a tiny training. Several ranks are forked and monitored by torchrun's agent.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

_PRELOADED = (
    *("ssl_zoo.tools.train_net", "ssl_zoo.tools.make_shards", "ssl_zoo.methods.ijepa"),
    "torch.distributed.launcher.api",
)


class NotSurvived(Exception):
    """A run did not survive a fault; the message has the violated expectation."""


def expect(holds: bool, message: str) -> None:
    """Raise NotSurvived with ``message`` unless the expectation holds."""
    if not holds:
        raise NotSurvived(message)


class Command:
    """A running tool in its own process group.

    Args:
        module: the module whose ``main`` is called with the arguments.
        log: file to which its output is appended.
        environment: additional environment variables.
        ranks: number of processes; more than one run under torchrun's agent.
        more_bytes: limit of the memory that it may map in addition to that at its start.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        ranks: int = 1,
        more_bytes: int | None = None,
    ) -> None:
        self.log = log
        self._log_start = log.stat().st_size if log.is_file() else 0
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_PRELOADED))
        start = (module, list(arguments), log, dict(environment or {}), ranks, more_bytes)
        self._process = context.Process(target=_start, args=start)
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def output(self) -> str:
        """Everything printed since this start."""
        with open(self.log, "rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def last_error(self) -> str:
        """Return the last printed line that starts with ``error:``, or the last line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()] or ["nothing printed"]
        return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])

    def pids(self) -> list[int]:
        """List the process ids of the tool, which is first, and of all its descendants."""
        found, new = [], [self._process.pid]
        while new:
            found += new
            new = [child for parent in new for child in _children(parent)]
        return found

    def kill_all(self) -> None:
        """Kill all processes at once, as a power cut does."""
        pids = self.pids()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none reacts to the death of another
            for pid in pids:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, number)
        self._process.join()

    def end(self, within_s: float) -> int:
        """Wait for the exit status for at most ``within_s`` seconds.

        Raises:
            NotSurvived: it still runs then and is killed, or a descendant outlives it.
        """
        started = self.pids()
        self._process.join(within_s)
        if self.is_alive:
            self.kill_all()
            raise NotSurvived(f"it still ran {within_s:.0f} s later: {self.last_error()}")
        left = [pid for pid in started if _is_running(pid)]
        expect(not left, f"it ended and left {len(left)} processes behind: {self.last_error()}")
        return self._process.exitcode


def _start(
    module: str,
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    ranks: int,
    more_bytes: int | None,
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    os.chdir(log.parent)
    multiprocessing.set_start_method("fork", force=True)  # for data workers of a command, not by the fork server
    if more_bytes is not None:
        import resource  # not on every system

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more_bytes, mapped + more_bytes))
    if ranks == 1:
        _call(module, arguments)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # As in torchrun --standalone.
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(log)}
    config = LaunchConfig(1, 1, ranks, start_method="fork", max_restarts=0, **place)
    elastic_launch(config, _call)(module, arguments)


def _call(module: str, arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    try:
        status = importlib.import_module(module).main(arguments)
    except Exception:
        # torchrun prints no traceback of a function; the interpreter prints that of a command.
        traceback.print_exc()
        status = 1
    if status:
        sys.exit(status)


def _children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"  # dead, but not reaped yet
