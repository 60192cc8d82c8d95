"""Prefetching: batches are on the device one step ahead of their use."""

from collections.abc import Iterator

import torch

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.loader import TrainingData


def on_device(data: TrainingData, batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Move and normalise batches; on CUDA the copy of the next batch overlaps with the current step."""
    if device.type != "cuda":
        for batch in batches:
            yield data.to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)
    ready: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            upcoming = data.to_device(batch, device, non_blocking=True)
        if ready is not None:
            yield _claim(ready, stream)
        ready = upcoming
    if ready is not None:
        yield _claim(ready, stream)


def _claim(batch: Batch, stream: torch.cuda.Stream) -> Batch:
    # The memory was allocated on the side stream: without record_stream it could be reused while this stream reads it.
    current = torch.cuda.current_stream()
    current.wait_stream(stream)
    for tensor in batch.tensors():
        tensor.record_stream(current)
    return batch
