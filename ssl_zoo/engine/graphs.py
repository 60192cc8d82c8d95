"""Steps as CUDA graphs: a GPU gets the kernels of a forward and backward pass at once, not one by one from Python."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.settings import Parallel, TrainerConfig
from ssl_zoo.method import Method, Output, Progress, Step

_Compute = Callable[[Batch, Step], Output]


def check_capturable(config: TrainerConfig, device: torch.device, world_size: int) -> None:
    """Raise ValueError where ``trainer.cuda_graphs`` is asked of a run whose steps can't be captured."""
    if not config.cuda_graphs:
        return
    reasons = {
        f"CUDA graphs need a GPU, and this run is on {device.type}": device.type != "cuda",
        f"several ranks communicate within a step, and this run has {world_size}": world_size > 1,
        "trainer.parallel=fsdp2 gathers weights within a step": config.parallel is Parallel.fsdp2,
        "trainer.activation_checkpointing=true asks for random states within a step": config.activation_checkpointing,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"trainer.cuda_graphs=true: {reason}; set it to false")


@dataclass(frozen=True)
class _Capture:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # where the graph reads
    values: dict[str, Tensor]  # the same, of ``Step.values``
    output: Output  # where it writes
    gradients: tuple[tuple[nn.Parameter, Tensor], ...]


class StepGraphs:
    """``compute``, a step's forward and backward passes, captured once for each combination of shapes, then replayed.

    The first batch of some shapes runs eagerly, since rare shapes are not worth a capture; the second one is captured.
    What Python reads meanwhile stays as it was then: ``Step.values`` are copied before each replay, and a method that
    reads ``Step.progress`` in its forward pass is refused.

    Args:
        compute: adds gradients to the parameters of ``method``, which have none when it is called.
        phase: opens a named phase of a step.
    """

    def __init__(
        self, compute: _Compute, method: Method, phase: Callable[[str], AbstractContextManager[object]]
    ) -> None:
        self.compute, self.method, self.phase = compute, method, phase
        self._captures: dict[tuple[torch.Size, ...], _Capture | None] = {}
        # One memory pool for all, since a replay is over before the next one starts, and one stream, to which the
        # pool's memory is bound.
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, batch: Batch, step: Step) -> Output:
        """Return what ``compute`` returns, with its gradients in the parameters.

        Raises:
            ValueError: the method reads its progress, or waits for the GPU.
        """
        shapes = tuple(tensor.shape for tensor in batch.tensors())
        if shapes not in self._captures:
            self._captures[shapes] = None
            return self.compute(batch, step)
        capture = self._captures[shapes]
        if capture is None:
            capture = self._captures[shapes] = self._capture(batch, step)
        with self.phase("forward and backward"):
            return _replay(capture, batch, step)

    def _capture(self, batch: Batch, step: Step) -> _Capture:
        batch = batch.map(torch.clone)
        values = {name: value.clone() for name, value in step.values.items()}
        step = Step(unreadable_progress(self.method), values, step.world)
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):  # libraries can't set up their state for a stream during a capture
                self.compute(batch, step)
                self.method.zero_grad(set_to_none=True)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Threads that load batches may allocate page-locked memory meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    output = self.compute(batch, step)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"the forward pass of {type(self.method).__name__} can't be captured as a CUDA graph, perhaps "
                    "since it waits for a value from the GPU; set trainer.cuda_graphs=false. Torch's message: "
                    f"{str(error).splitlines()[0]}"
                ) from error
        gradients = tuple((p, p.grad) for p in self.method.parameters() if p.grad is not None)
        self.method.zero_grad(set_to_none=True)
        return _Capture(graph, batch, values, output, gradients)


def _replay(capture: _Capture, batch: Batch, step: Step) -> Output:
    for place, value in zip(capture.batch.tensors(), batch.tensors(), strict=True):
        place.copy_(value)
    for name, place in capture.values.items():
        place.copy_(step.values[name])
    capture.graph.replay()
    for parameter, gradient in capture.gradients:
        parameter.grad = gradient
    output = capture.output  # copied: the next replay of any capture may write there
    return Output(*({name: value.clone() for name, value in some.items()} for some in vars(output).values()))


def unreadable_progress(method: Method) -> Progress:
    """Return a stand-in for the progress of the steps that a capture will be replayed in; reading it is refused."""
    return _Unreadable(type(method).__name__)


class _Unreadable(Progress):
    def __init__(self, method: str) -> None:
        object.__setattr__(self, "_method", method)

    def __getattribute__(self, name: str) -> object:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        raise ValueError(
            f"{self._method} reads progress.{name} in its forward pass, which trainer.cuda_graphs=true captures once "
            "and replays in every step; declare the value in schedules() and read step.values, or set it to false"
        )
