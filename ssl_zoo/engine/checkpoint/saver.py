"""Asynchronous saving: the state is copied at once, and every rank writes its share in a thread."""

import json
import logging
import shutil
import threading
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor

from ssl_zoo.engine.checkpoint.folders import checkpoint_path, list_checkpoints, step_of
from ssl_zoo.engine.checkpoint.state import FORMAT, hashed_manifest
from ssl_zoo.engine.checkpoint.storage import CheckpointError, Fingerprint, SafetensorsWriter, fingerprint, key_of
from ssl_zoo.engine.distributed import Processes, concerns_another_rank
from ssl_zoo.engine.sharding import local, reshard
from ssl_zoo.io import publish_directory

log = logging.getLogger(__name__)
# DCP's own log would repeat every error, with its traceback in a single line.
logging.getLogger("c10d-NullHandler-dcp_logger").propagate = False


class Saver:
    """Writes the checkpoints of a run, one at a time; all ranks call each method at the same step.

    Args:
        keep: number of newest checkpoints that are kept.
        keep_every: checkpoints whose step is a multiple of this are kept as well; 0 = none.
        in_background: write while training continues; ``wait`` waits for the end and raises errors.
    """

    def __init__(
        self, run: Path, ranks: Processes, *, keep: int = 1, keep_every: int = 0, in_background: bool = False
    ) -> None:
        self.run, self.ranks, self.keep, self.keep_every = run, ranks, keep, keep_every
        self.in_background = in_background
        self._copies: dict[str, Tensor] = {}  # reused: the first touch of new memory takes longer than the copy
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self,
        step: int,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        hooks: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ) -> None:
        """Save the state after ``step`` steps; it may change once this returns.

        Raises:
            CheckpointError: this or, in the background, an earlier checkpoint could not be written.
        """
        self.wait()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit")
        state = _own_share(_state(method, optimizer), self.ranks)
        copies = self._copied(state)
        content = {"state.json": json.dumps(hooks), "manifest": {"format": FORMAT, "step": step, **manifest}}
        self._thread = threading.Thread(target=self._write, args=(step, state, copies, content), name=f"save {step}")
        self._thread.start()
        if not self.in_background:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: it could not be written; raised once.
            RuntimeError: another rank was lost during the save, as torch's collectives report it.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _copied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the tensors to host memory, unless training waits for a save that can read them in place."""
        tensors = {key: local(tensor.detach()) for key, tensor in state.items()}
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        if not on_gpu and not self.in_background:
            return {key: tensor.contiguous() for key, tensor in tensors.items()}
        if {k: t.shape for k, t in tensors.items()} != {k: t.shape for k, t in self._copies.items()}:
            self._copies = {
                key: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu) for key, tensor in tensors.items()
            }
        for key, copy in self._copies.items():
            copy.copy_(tensors[key], non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return self._copies

    def _write(
        self, step: int, state: Mapping[str, Tensor], copies: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> None:
        final = checkpoint_path(self.run, step)
        temporary = final.with_name(f".{final.name}")

        def publish(files: Mapping[str, Fingerprint]) -> None:
            _publish(temporary, final, files, content)
            self._remove_old(step)

        ranks = self.ranks
        prepare = partial(clear_leftovers, self.run)
        try:
            dcp.save(
                dict(state),
                storage_writer=SafetensorsWriter(
                    temporary, ranks.rank, ranks.world_size, prepare=prepare, publish=publish
                ),
                planner=_CopiesPlanner(copies),
                process_group=ranks.saving,
                no_dist=ranks.world_size == 1,
            )
        except (Exception, dcp.CheckpointException) as error:
            self._error = self._explained(error, final)
            if ranks.is_main:
                log.error("%s", self._error)
                shutil.rmtree(temporary, ignore_errors=True)  # frees space on a full disk

    def _explained(self, error: BaseException, final: Path) -> Exception:
        """Return the error that ends the run: the original where another rank failed, which ``processes`` explains."""
        failures = error.failures if isinstance(error, dcp.CheckpointException) else {}
        for cause in (error, *(reason[0] for reason in failures.values())):
            if concerns_another_rank(cause):
                return cause
        reasons = [f"rank {rank}: {reason[0]}" for rank, reason in sorted(failures.items())] or [str(error)]
        found = list_checkpoints(self.run)
        newest = f"the newest complete one is {found[-1]}" if found else "there is no other"
        explained = CheckpointError(
            f"the checkpoint {final} could not be written ({'; '.join(reasons[:3])}); {newest}. Make room or choose "
            "another output_dir=..., and run the same command again"
        )
        explained.__cause__ = error
        return explained

    def _remove_old(self, step: int) -> None:
        """Remove checkpoints up to this step; later ones are from before the run was resumed at an earlier step."""
        old = [path for path in list_checkpoints(self.run) if step_of(path) <= step][: -self.keep]
        for path in old:
            if not self.keep_every or step_of(path) % self.keep_every:
                _remove(path)


class _CopiesPlanner(DefaultSavePlanner):
    """Plans by the live state and saves copies of it."""

    def __init__(self, copies: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.copies = copies

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.copies[index.fqn]


def clear_leftovers(run: Path) -> None:
    """Remove the folders of interrupted saves and removals."""
    for leftover in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover)


def _state(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect every tensor of the training state under its key, full or sharded."""
    reshard(method)
    state = {key_of("method", name): tensor for name, tensor in method.state_dict().items()}
    for name, parameter in method.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            state[key_of("optimizer", f"{name}:{moment}")] = value
    return state


def _own_share(state: Mapping[str, Tensor], ranks: Processes) -> dict[str, Tensor]:
    """Select what this rank writes: its shards, and a balanced share of the tensors that all ranks hold."""
    load, own = [0] * ranks.world_size, {}
    replicated = [key for key, tensor in state.items() if not isinstance(tensor, DTensor)]
    # By name where sizes are equal: after a resume moments are in another order.
    for key in sorted(replicated, key=lambda key: (-state[key].nbytes, key)):
        rank = load.index(min(load))
        load[rank] += state[key].nbytes
        if rank == ranks.rank:
            own[key] = state[key]
    sharded = {key: tensor for key, tensor in state.items() if isinstance(tensor, DTensor)}
    return own | {key: tensor for key, tensor in sharded.items() if tensor.to_local().numel()}


def _publish(temporary: Path, final: Path, files: Mapping[str, Fingerprint], content: Mapping[str, Any]) -> None:
    for name, expected in files.items():
        file = temporary / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            raise OSError(f"{file} of another rank is incomplete here: output_dir must be one folder for all ranks")
    state = temporary / "state.json"
    state.write_text(content["state.json"])
    everything = {**files, state.name: fingerprint(state)}
    (temporary / "manifest.json").write_text(hashed_manifest({**content["manifest"], "files": everything}))
    if final.exists():  # from before the run was resumed at an earlier step
        _remove(final)
    publish_directory(temporary, final)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no incomplete folder ever has its name."""
    leaving = path.with_name(f".{path.name}.removed")
    path.rename(leaving)
    shutil.rmtree(leaving)
