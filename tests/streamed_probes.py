"""Streamed trainings of tiny probes with their checkpoints: ``python streamed_probes.py FOLDER [STEP]`` runs all.

After the checkpoint of step STEP of each training the process kills itself.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from tiny_probes import encoder, probe
from torch import Tensor

from ssl_zoo.api.probe_checkpoints import ProbeCheckpoints
from ssl_zoo.engine.checkpoint.folders import list_checkpoints
from ssl_zoo.engine.checkpoint.state import read_checkpoint, read_tensors
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.settings import Device
from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.finetune import FinetuneConfig
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.scores import Score

# Batches of 26 images of 80: neither ranks nor epochs divide evenly. Checkpoints are in the middle of an epoch.
_SHARED = {"batch_size": 26, "epochs": 2, "crop_scale": [0.4, 1.0], "horizontal_flip": 0.5, "checkpoint_every": 4}
STREAMED = {
    "linear": LinearConfig(**_SHARED, lrs=[0.03, 0.3], layer_counts=[1, 2], refit=False),
    "attentive": AttentiveConfig(**_SHARED, lrs=[0.001, 0.01], refit=False),
    "finetune": FinetuneConfig(
        **_SHARED,
        lr=0.01,
        warmup_epochs=1.0,
        layer_decay=0.9,
        drop_path=0.2,
        rand_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.5,
    ),
}


class Interrupted(Exception):
    """Ends a training at a checkpoint."""


class Interrupting(ProbeCheckpoints):
    """Ends each training after a checkpoint; by SIGKILL if asked for."""

    def __init__(self, folder: Path, ranks: Processes, at_step: int, kill: bool = False) -> None:
        super().__init__(folder, ranks)
        self.at_step, self.kill = at_step, kill

    def save(self, name: str, step: int, *state: object) -> None:
        super().save(name, step, *state)
        if step == self.at_step and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.at_step:
            raise Interrupted


def scores(evaluator: str, checkpoints: ProbeCheckpoints) -> list[Score]:
    settings = {evaluator: STREAMED[evaluator]}
    return list(probe(evaluators=[evaluator], checkpoints=checkpoints, **settings)(encoder()))


def trained(folder: Path) -> dict[str, Tensor]:
    """Read all weights and moments of the trainings in a folder of checkpoints, by training and name."""
    tensors = {}
    for training in sorted(path for path in folder.iterdir() if path.is_dir()):
        checkpoint = read_checkpoint(list_checkpoints(training)[-1])
        for part in ("method", "optimizer"):
            of_part = read_tensors(checkpoint, part)
            tensors |= {f"{training.name}/{part}/{name}": tensor for name, tensor in of_part.items()}
    return tensors


if __name__ == "__main__":
    folder, *steps = sys.argv[1:]
    torch.set_num_threads(1)
    with processes(Device.cpu) as ranks:
        for evaluator in STREAMED:
            path = Path(folder) / evaluator
            kept = Interrupting(path, ranks, int(steps[0]), kill=True) if steps else ProbeCheckpoints(path, ranks)
            for score in scores(evaluator, kept):
                if ranks.is_main:
                    (path / "score.txt").write_text(f"{score.value} {score.protocol_hash}")
