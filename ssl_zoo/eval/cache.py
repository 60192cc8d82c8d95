"""A cache of features on disk: evaluators in later processes reuse what was extracted for equal weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_zoo.eval.features import Features
from ssl_zoo.io import write_atomic


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
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
        return self.folder / f"{digest}.safetensors"

    @staticmethod
    def read(path: Path, labels: Int[Tensor, "N"] | None) -> Features | None:
        """Read the features of a file and attach their labels; None if the file does not exist.

        Args:
            labels: labels of all samples of the source.

        Raises:
            ValueError: the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            stored = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"cached features {path} are damaged ({error}); remove the file") from error
        index = stored["index"]
        return Features(stored["values"], None if labels is None else labels[index], index)

    @staticmethod
    def write(path: Path, features: Features) -> None:
        """Write features atomically."""
        write_atomic(path, save({"values": features.values.contiguous(), "index": features.index}))
