"""Worker processes that load batches: their number, their batches in order, and errors when they die or hang."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader, Dataset

from ssl_zoo.data.batch import Batch
from ssl_zoo.machine import available_cpus
from ssl_zoo.plugins import PluginFiles

_MAX_AUTO_WORKERS = 8
_GRACE_S = 5.0  # beyond the timeout of torch's loader, which comes first where it can


class LoaderError(RuntimeError):
    """A worker process died or hangs."""


def resolve_workers(num_workers: int | None) -> int:
    """Return the number of worker processes per rank; None chooses it.

    Without a CUDA device training itself uses every core, and workers would compete with it.
    """
    if num_workers is not None:
        return num_workers
    if not torch.cuda.is_available():
        return 0
    cpus = available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets it
    return max(1, min(_MAX_AUTO_WORKERS, cpus - 1))


class Items(Dataset):
    """A dataset of ``function`` applied to each of ``arguments`` in a worker process.

    A ValueError, which a user can cause, is returned as a value: raised in the worker it would reach the user wrapped
    in the worker's traceback. So is a lack of shared memory. Torch would move the tensors there in a thread that only
    prints its error, and the batch would never arrive.
    """

    def __init__(self, function: Callable[[int], Batch], arguments: range) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return _items, (PluginFiles(), self.function, self.arguments)

    def __len__(self) -> int:
        return len(self.arguments)

    def __getitem__(self, position: int) -> Batch | ValueError | LoaderError:
        try:
            batch = self.function(self.arguments[position])
        except ValueError as error:
            return error
        try:
            for tensor in batch.tensors():
                tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            return _not_shared(error)
        return batch


def _items(plugins: PluginFiles, function: Callable[[int], Batch], arguments: range) -> Items:
    return Items(function, arguments)


def in_workers(
    items: Items,
    num_workers: int,
    *,
    prefetch_per_worker: int = 2,
    timeout_s: float = 300.0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the items in order, computed by worker processes.

    Raises:
        ValueError: one of the items raised it.
        LoaderError: a worker died, or returned nothing for ``timeout_s`` seconds; 0 waits forever.
    """
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=range(len(items)),
        num_workers=num_workers,
        prefetch_factor=prefetch_per_worker,
        timeout=timeout_s,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        # The loader samples a base seed for its workers; with its own generator the global state stays untouched.
        generator=torch.Generator(),
    )
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    workers = set(multiprocessing.active_children()) - others
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        for worker in workers:
            worker.kill()  # which interrupts the main process with a signal wherever it waits

    while True:
        # Torch's own timeout does not cover the transfer of tensors that a worker has announced.
        alarm = threading.Timer(timeout_s + _GRACE_S, give_up)
        alarm.daemon = True
        if timeout_s:
            alarm.start()
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            translated = explained(error)
            if is_late.is_set():
                translated = _late(timeout_s)
            elif not isinstance(error, RuntimeError) and "in DataLoader worker process" not in str(error):
                translated = _died(f"{type(error).__name__}: {error}")  # in the middle of a batch
            _end(workers)
            raise translated or error from error
        finally:
            alarm.cancel()
        if isinstance(batch, (ValueError, LoaderError)):
            raise batch
        yield batch


def _start_worker(worker: int) -> None:
    # Signals to the run's process group (Ctrl-C, a scheduler's SIGTERM) are handled by the trainer, which saves and
    # ends; workers end with it.
    os.setpgid(0, 0)


def _end(workers: Iterable[BaseProcess]) -> None:
    """Kill workers. Torch only requests their exit, and one that hangs would keep this process from ending too."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise here
    try:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(_GRACE_S)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def explained(error: BaseException) -> LoaderError | None:
    """Translate an error of torch's loader into a ``LoaderError``; None for any other error.

    Torch raises the error of a dead worker anywhere in the main process, not only where it takes a batch.
    """
    message = str(error)
    if not isinstance(error, RuntimeError) or not message.startswith("DataLoader "):
        return None
    if "timed out" in message:
        return _late(float(re.search(r"after ([\d.]+) seconds", message)[1]))
    if "exited unexpectedly" in message or "killed by signal" in message:
        return _died(message.splitlines()[0])
    return None


def _late(seconds: float) -> LoaderError:
    return LoaderError(
        f"the worker processes returned no batch within loader.timeout_s={seconds:g}. For slow storage raise it; "
        "otherwise find the sample that hangs with loader.num_workers=0. The same command resumes from the last "
        "checkpoint"
    )


def _not_shared(error: Exception) -> LoaderError:
    if "Too many open files" in str(error):
        remedy = "raise the limit of open files (ulimit -n 4096)"
    else:
        remedy = "give the container more shared memory (docker run --shm-size=8g, or --ipc=host)"
    return LoaderError(
        f"a worker process can't pass on its batch ({error}): {remedy}, lower loader.num_workers or "
        "loader.prefetch_per_worker, or set loader.num_workers=0. The same command resumes from the last checkpoint"
    )


def _died(how: str) -> LoaderError:
    return LoaderError(
        f"a data worker process died ({how}), often for lack of memory: lower loader.num_workers or "
        "loader.prefetch_per_worker, or give the container more shared memory; loader.num_workers=0 shows a crash in "
        "this process. The same command resumes from the last checkpoint"
    )
