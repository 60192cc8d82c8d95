"""Steps as CUDA graphs: a GPU gets the kernels of a forward and backward pass at once, not one by one from Python."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.settings import Parallel, TrainerConfig
from ssl_zoo.method import Method, Output, Progress

_Compute = Callable[[Batch, Progress], Output]


def check_recordable(config: TrainerConfig, device: torch.device, world_size: int) -> None:
    """Raise ValueError where ``trainer.cuda_graphs`` is asked of a run whose steps can't be recorded."""
    if not config.cuda_graphs:
        return
    reasons = {
        f"steps are recorded on a GPU, and this run is on {device.type}": device.type != "cuda",
        f"several ranks meet within a step, and this run has {world_size}": world_size > 1,
        "trainer.parallel=fsdp2 gathers weights within a step": config.parallel is Parallel.fsdp2,
        "trainer.activation_checkpointing=true asks for random states within a step": config.activation_checkpointing,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"trainer.cuda_graphs=true: {reason}; set it to false")


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # where the graph reads
    output: Output  # where it writes
    gradients: tuple[tuple[nn.Parameter, Tensor], ...]


class StepGraphs:
    """``compute``, a step's forward and backward passes, recorded once for each combination of shapes, then replayed.

    The first batch of some shapes is computed as ever, since rare shapes are not worth a recording; the second one is
    recorded. What Python reads meanwhile stays as it was then, hence a method that reads its progress is refused.

    Args:
        compute: adds gradients to the parameters of ``method``, which have none when it is called.
        phase: opens a named phase of a step.
    """

    def __init__(
        self, compute: _Compute, method: Method, phase: Callable[[str], AbstractContextManager[object]]
    ) -> None:
        self.compute, self.method, self.phase = compute, method, phase
        self._recordings: dict[tuple[torch.Size, ...], _Recording | None] = {}
        # One pool of memory for all, since a replay is over before the next one starts, and one stream, to which the
        # pool's memory is bound.
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, batch: Batch, progress: Progress) -> Output:
        """What ``compute`` returns, and its gradients in the parameters.

        Raises:
            ValueError: the method reads its progress, or waits for the GPU.
        """
        shapes = tuple(tensor.shape for tensor in batch.tensors())
        if shapes not in self._recordings:
            self._recordings[shapes] = None
            return self.compute(batch, progress)
        recording = self._recordings[shapes]
        if recording is None:
            recording = self._recordings[shapes] = self._record(batch)
        with self.phase("forward and backward"):
            return _replay(recording, batch)

    def _record(self, batch: Batch) -> _Recording:
        batch = batch.map(torch.clone)
        progress = _Unreadable(type(self.method).__name__)
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):  # what libraries set up per stream, they can't while it is recorded
                self.compute(batch, progress)
                self.method.zero_grad(set_to_none=True)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Threads that load batches may allocate page-locked memory meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    output = self.compute(batch, progress)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"the forward pass of {type(self.method).__name__} can't be recorded, perhaps since it waits for a "
                    f"value from the GPU; set trainer.cuda_graphs=false. Torch says: {str(error).splitlines()[0]}"
                ) from error
        gradients = tuple((p, p.grad) for p in self.method.parameters() if p.grad is not None)
        self.method.zero_grad(set_to_none=True)
        return _Recording(graph, batch, output, gradients)


def _replay(recording: _Recording, batch: Batch) -> Output:
    for place, value in zip(recording.batch.tensors(), batch.tensors(), strict=True):
        place.copy_(value)
    recording.graph.replay()
    for parameter, gradient in recording.gradients:
        parameter.grad = gradient
    output = recording.output  # copied: the next replay of any recording may write there
    metrics, statistics = (
        {name: value.clone() for name, value in some.items()} for some in (output.metrics, output.statistics)
    )
    return Output(output.loss.clone(), metrics, statistics)


class _Unreadable(Progress):
    """Stands for the progress of whatever step a recording will be replayed in."""

    def __init__(self, method: str) -> None:
        object.__setattr__(self, "_method", method)

    def __getattribute__(self, name: str) -> object:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        raise ValueError(
            f"{self._method} reads progress.{name} in its forward pass, which trainer.cuda_graphs=true would record "
            "once and for all; set it to false"
        )
