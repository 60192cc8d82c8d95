"""Live bytes while operations run, by kind, and their peak."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS, WEIGHT_COPIES, GRADIENTS = "activations", "weight_copies", "gradients"


class AllocationTracker(TorchDispatchMode):
    """Tracks the storages of tensors, real or fake, that operations allocate within the context, until they are freed.

    A dtype conversion of a known weight counts as a copy of weights, every other result as an activation until
    ``reassign`` changes its kind.

    Args:
        weights: tensors that exist already; their storages are not counted.

    Attributes:
        live: live bytes by kind.
        peak: ``live`` at the moment when its sum was largest.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {_key(tensor): tensor for tensor in weights}  # kept alive, so that no key is reused
        self._kinds: dict[int, str] = {}
        self._storages: dict[int, weakref.ref] = {}
        self.live = dict.fromkeys((ACTIVATIONS, WEIGHT_COPIES, GRADIENTS), 0)
        self.peak: Mapping[str, int] = dict(self.live)

    def reset_peak(self) -> None:
        self.peak = dict(self.live)

    def reassign(self, tensor: Tensor, kind: str) -> None:
        """Change the kind of a tracked tensor."""
        key = _key(tensor)
        num_bytes = tensor.untyped_storage().nbytes()
        self.live[self._kinds[key]] -= num_bytes
        self.live[kind] += num_bytes
        self._kinds[key] = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and _key(args[0]) in self._weights
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._track(tensor, WEIGHT_COPIES if is_copy else ACTIVATIONS)
        return result

    def _track(self, tensor: Tensor, kind: str) -> None:
        key = _key(tensor)
        if key in self._kinds or key in self._weights:
            return
        storage = tensor.untyped_storage()
        num_bytes = storage.nbytes()
        self._kinds[key] = kind
        # Autograd keeps storages that Python has released; torch keeps their Python object, hence the reference, alive.
        self._storages[key] = weakref.ref(storage, lambda _: self._release(key, num_bytes))
        self.live[kind] += num_bytes
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)

    def _release(self, key: int, num_bytes: int) -> None:
        del self._storages[key]
        self.live[self._kinds.pop(key)] -= num_bytes


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
