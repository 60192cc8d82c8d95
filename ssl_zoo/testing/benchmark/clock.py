"""Durations of the phases of a step: by CUDA events, which need no sync, and by the wall clock on a CPU.

There a step is also measured in CPU time, which leaves out what other programs on the machine take.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

CPU_TIME = "CPU time"  # of all threads of the process, during a step
_Mark = float | torch.cuda.Event


class Clock:
    """Measures phases; a phase that occurs several times in a step is summed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._steps: list[dict[str, list[tuple[_Mark, _Mark]]]] = []
        self._open: dict[str, _Mark] = {}
        self.new_step()

    def new_step(self) -> None:
        """Attribute phases from now on to the next step."""
        self._steps.append(defaultdict(list))

    def start(self, name: str) -> None:
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return  # a replay of the captured graph has no phases
        self._open[name] = self._mark()

    def stop(self, name: str) -> None:
        if name not in self._open:
            return
        self._steps[-1][name].append((self._open.pop(name), self._mark()))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step as a whole."""
        self.new_step()
        self.start_step()
        yield
        self.stop_step()

    def start_step(self) -> None:
        self.start("step")
        if self.device.type == "cpu":
            self._cpu_start = time.process_time()

    def stop_step(self) -> None:
        self.stop("step")
        if self.device.type == "cpu":
            self._steps[-1][CPU_TIME].append((self._cpu_start, time.process_time()))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start(name)
        yield
        self.stop(name)

    def watch(self, method: nn.Module) -> None:
        """Time the forward pass of each child module of a method under the module's name."""
        for name, part in method.named_children():
            part.register_forward_pre_hook(lambda module, inputs, name=name: self.start(name))
            part.register_forward_hook(lambda module, inputs, output, name=name: self.stop(name))

    def collect(self) -> Sequence[Mapping[str, float]]:
        """Return the seconds of every phase in each step since the last call; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        finished = [step for step in self._steps if step]
        self._steps = []
        self.new_step()
        return [{name: sum(map(_seconds, pairs)) for name, pairs in step.items()} for step in finished]

    def _mark(self) -> _Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(phase: tuple[_Mark, _Mark]) -> float:
    start, stop = phase
    return stop - start if isinstance(start, float) else start.elapsed_time(stop) / 1e3
