"""Metrics of a run: one record per log step, for the loggers and the terminal."""

import hashlib
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch

from ssl_zoo.engine.alarm import CollapseAlarm
from ssl_zoo.engine.loggers import Record
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer


class Writer(Protocol):
    """Takes records on the main process: a logger, or what shows progress."""

    def open(self, trainer: Trainer) -> None: ...

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Metrics(Hook):
    """Builds the record of every ``log_every``-th step and of the last, and gives it to the writers.

    The only place where training values are read from the device: one transfer a record.

    Args:
        alarm: gets every record before it is written, and adds ``collapse`` to it.
    """

    name = "metrics"

    def __init__(self, every: int, writers: Sequence[Writer], alarm: CollapseAlarm | None = None) -> None:
        self.every, self.writers, self.alarm = every, writers, alarm
        self._open: list[Writer] = []
        self._samples = ""  # chained over all steps, so that equal values prove equal histories

    def before_train(self, trainer: Trainer) -> None:
        for writer in self.writers:
            writer.open(trainer)
            self._open.append(writer)
        self._restart_clock(trainer)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        self._samples = hashlib.blake2b(self._samples.encode() + result.batch.fingerprint, digest_size=8).hexdigest()
        self._data_seconds += result.data_seconds
        if trainer.step % self.every == 0 or trainer.is_done:
            self.add(self._record(trainer, result))
            self._restart_clock(trainer)

    def add(self, record: Record) -> None:
        """Write a record, also one of another hook; ``step`` is required."""
        for writer in self._open:
            writer.write(record)

    def after_train(self, trainer: Trainer) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, object]:
        return {"samples": self._samples}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._samples = str(state["samples"])

    def _record(self, trainer: Trainer, result: StepResult) -> Record:
        trainer.raise_if_not_finite()
        output = result.output
        # The terms of a loss of several are logged beside their sum.
        terms = {f"{name}_loss": term for name, term in output.losses.items() if len(output.losses) > 1}
        values = {**terms, **output.metrics}
        names = sorted(values)
        local = [output.loss, result.grad_norm, *(values[name] for name in names)]
        loss, grad_norm, *metrics = trainer.processes.mean(torch.stack([v.float() for v in local])).tolist()
        seconds = time.perf_counter() - self._started
        memory = peak_memory(trainer.device)
        images = (trainer.step - self._started_step) * trainer.plan.batch_size
        record = {
            "step": trainer.step,
            "epoch": round(trainer.epoch, 4),
            "loss": loss,
            "lr": result.rates.lr,
            "weight_decay": result.rates.weight_decay,
            "ema_momentum": result.momentum,
            "grad_norm": grad_norm,
            **dict(zip(names, metrics, strict=True)),
            "images_per_second": round(images / seconds, 2),
            "data_wait": round(self._data_seconds / seconds, 4),
            **({} if memory is None else {"memory_bytes": memory}),
            "samples": self._samples,
        }
        return record | self.alarm.examine(record) if self.alarm else record

    def _restart_clock(self, trainer: Trainer) -> None:
        self._started, self._started_step, self._data_seconds = time.perf_counter(), trainer.step, 0.0

    def _close(self) -> None:
        while self._open:
            self._open.pop().close()


def peak_memory(device: torch.device) -> int | None:
    """Return the peak bytes so far: allocated on a GPU, resident in a CPU process; of MPS those allocated now.

    None where the system reports none.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if find_spec("resource") is None:  # a module of Unix
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
