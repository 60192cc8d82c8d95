"""Checkpoints of trainings inside evaluators, in the engine's format; they are removed when everything is scored."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of
from ssl_zoo.engine.checkpoint.saver import Saver
from ssl_zoo.engine.checkpoint.state import read_checkpoint, restore
from ssl_zoo.engine.distributed import Processes

log = logging.getLogger(__name__)


class ProbeCheckpoints:
    """Keeps the newest state of each training until ``remove``; as ``ssl_zoo.eval.streaming.Checkpoints``.

    Args:
        folder: one for all ranks.
    """

    def __init__(self, folder: Path, ranks: Processes) -> None:
        self.folder, self.ranks = folder, ranks

    def restore(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint of a training and return its step; 0 if there is none.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        found = list_checkpoints(self.folder / name)
        # Rank 0 decides: on a network file system another rank may see a new folder later.
        step = self.ranks.first(step_of(found[-1]) if found else 0)
        if step == 0:
            return 0
        checkpoint = read_checkpoint(next(path for path in found if step_of(path) == step))
        restore(checkpoint, module, optimizer)
        if self.ranks.is_main:
            log.info("resumed the training of a probe at step %d from %s", step, checkpoint.path)
        return step

    def save(self, name: str, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save the state after ``step`` steps and remove older ones."""
        Saver(self.folder / name, self.ranks).save(step, module, optimizer, {}, {})

    def remove(self) -> None:
        """Remove all checkpoints; every rank calls this when no training will be resumed any more."""
        if self.ranks.is_main and self.folder.exists():
            shutil.rmtree(self.folder)
            with suppress(OSError):  # not empty: checkpoints of another evaluation
                self.folder.parent.rmdir()
