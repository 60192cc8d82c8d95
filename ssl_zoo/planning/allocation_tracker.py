"""Which bytes live while operations run, and what they are when they are most."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS, WEIGHT_COPIES, GRADIENTS = "activations", "weight_copies", "gradients"


class Ledger(TorchDispatchMode):
    """Counts the storages of tensors that operations make inside, real ones or fake ones, until they are freed.

    What converts a known weight makes a copy of weights, all else an activation until ``reassign`` says otherwise.

    Args:
        weights: tensors that exist already; their storages are not counted.

    Attributes:
        now: living bytes by kind.
        peak: the same when their sum was largest.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {_key(tensor): tensor for tensor in weights}  # kept alive, so that no key is given away
        self._kinds: dict[int, str] = {}
        self._storages: dict[int, weakref.ref] = {}
        self.now = dict.fromkeys((ACTIVATIONS, WEIGHT_COPIES, GRADIENTS), 0)
        self.peak: Mapping[str, int] = dict(self.now)

    def reset_peak(self) -> None:
        self.peak = dict(self.now)

    def reassign(self, tensor: Tensor, kind: str) -> None:
        """Say what a counted tensor is."""
        key = _key(tensor)
        num_bytes = tensor.untyped_storage().nbytes()
        self.now[self._kinds[key]] -= num_bytes
        self.now[kind] += num_bytes
        self._kinds[key] = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and _key(args[0]) in self._weights
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor, WEIGHT_COPIES if is_copy else ACTIVATIONS)
        return result

    def _enter(self, tensor: Tensor, kind: str) -> None:
        key = _key(tensor)
        if key in self._kinds or key in self._weights:
            return
        storage = tensor.untyped_storage()
        num_bytes = storage.nbytes()
        self._kinds[key] = kind
        # Autograd holds storages that Python has let go; torch keeps their Python object, hence the reference, alive.
        self._storages[key] = weakref.ref(storage, lambda _: self._leave(key, num_bytes))
        self.now[kind] += num_bytes
        if sum(self.now.values()) > sum(self.peak.values()):
            self.peak = dict(self.now)

    def _leave(self, key: int, num_bytes: int) -> None:
        del self._storages[key]
        self.now[self._kinds.pop(key)] -= num_bytes


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
