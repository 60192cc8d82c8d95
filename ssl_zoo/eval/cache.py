"""A cache of features on disk: evaluators in later processes reuse what was extracted for equal weights."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssl_zoo.eval.ranks import is_main_process, rank_and_size
from ssl_zoo.eval.shards import FeatureShard
from ssl_zoo.io import write_atomic

_FORMAT = 2  # of a file; 2 added the sizes of batches


def weights_hash(module: nn.Module) -> str:
    """Hash all parameters and buffers, bit by bit."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """A folder of feature files, each named by a hash of everything that determines the features.

    Labels are not part of a file, so the same features serve every label set.

    Args:
        identity: what determines the features besides weights, pooling and sample ids: data, image size, precision.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.folder, self.identity = folder, dict(identity)

    def path(self, encoder: nn.Module, index: Int[Tensor, "n"], **settings: object) -> Path:
        """Return the path of these samples' features, whether or not the file exists."""
        samples = hashlib.blake2b(index.contiguous().numpy(), digest_size=12).hexdigest()
        parts = {"weights": weights_hash(encoder), "samples": samples, **self.identity, **settings}
        parts["format"] = _FORMAT
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
        return self.folder / f"{digest}.safetensors"

    @staticmethod
    def read(path: Path, labels: Int[Tensor, "N"] | None) -> FeatureShard | None:
        """Read this rank's part of a file and attach labels; None if the file does not exist.

        Args:
            labels: labels of all samples of the source.

        Raises:
            ValueError: the file is damaged.
        """
        if not path.is_file():
            return None
        rank, world_size = rank_and_size()
        try:
            with safe_open(path, "pt") as file:
                index, sizes = file.get_tensor("index"), file.get_tensor("batch_sizes").tolist()
                values, starts = file.get_slice("values"), list(accumulate(sizes, initial=0))
                own = range(rank, len(sizes), world_size)
                parts = [values[starts[number] : starts[number + 1]] for number in own]
                part = torch.cat([values[:0], *parts]) if world_size > 1 else file.get_tensor("values")
        except SafetensorError as error:
            raise ValueError(f"cached features {path} are damaged ({error}); remove the file") from error
        return FeatureShard(part, None if labels is None else labels[index], index, sizes, rank, world_size)

    @staticmethod
    def write(path: Path, features: FeatureShard) -> None:
        """Write the features of all ranks atomically, batch by batch; every rank must call this, and rank 0 writes."""
        shape = [features.num_images, *features.values.shape[1:]]
        sizes = torch.tensor(features.batch_sizes)
        batches = features.in_order(features.values)
        if is_main_process():
            small = {"index": features.index.contiguous(), "batch_sizes": sizes}
            write_atomic(path, _safetensors(small, "values", shape, batches))
        for _ in batches:  # the other ranks take part in the collectives
            pass


def _safetensors(
    tensors: Mapping[str, Tensor], large: str, shape: Sequence[int], parts: Iterable[Tensor]
) -> Iterator[bytes]:
    """Yield a safetensors file whose last tensor, of float32, comes in parts; safetensors needs all of it in memory.

    Format: the length of the header as 8 bytes, a header in JSON, the tensors (huggingface.co/docs/safetensors).
    """
    names = {torch.int64: "I64", torch.float32: "F32"}
    header, end = {}, 0
    for name, dtype, sizes in [
        *((n, t.dtype, list(t.shape)) for n, t in tensors.items()),
        (large, torch.float32, shape),
    ]:
        start, end = end, end + dtype.itemsize * math.prod(sizes)
        header[name] = {"dtype": names[dtype], "shape": sizes, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for tensor in chain(tensors.values(), parts):
        yield tensor.contiguous().numpy().tobytes()
