"""Tiny trainings in real processes: ``python tiny_processes.py JOBS.json`` under torchrun runs one job after another.

A job starts or resumes a training and writes to its folder what tests compare: ``metrics.jsonl``, checkpoints, and
``outcome.safetensors`` with full gradients of its first step and full weights after its last one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_coupled import coupled_method
from tiny_methods import tiny_method
from tiny_runs import StopAfter, checkpointer_of, tiny_trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from ssl_zoo.engine.checkpoint.state import list_checkpoints, read_checkpoint
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.hooks import Visualizations
from ssl_zoo.engine.optim import AdamWConfig, MuonConfig
from ssl_zoo.engine.settings import Device, Parallel, Precision
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.interop.start import start_from


@dataclass(frozen=True)
class Job:
    """One training; ``stop`` ends it early, and checkpoints in its folder are resumed.

    Attributes:
        method: of the registry, or "coupled" for ``tiny_coupled.Coupled``.
        options: keys of the method.
        settings: keys of the trainer.
        init_from: weights to start from; the outcome then has the first features of the encoder.
    """

    method: str
    folder: str
    parallel: str = "ddp"
    stop: int | None = None
    muon: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None

    def run(self, ranks: Processes) -> None:
        folder, parallel = Path(self.folder), Parallel(self.parallel)
        method = coupled_method() if self.method == "coupled" else tiny_method(self.method, **self.options)
        if self.init_from is not None:
            start_from(method, self.init_from)
        trainer = tiny_trainer(
            folder,
            method=method,
            masks=method.default_masks,
            ranks=ranks,
            hooks=[Visualizations(folder / "figures", 2), *([StopAfter(self.stop)] if self.stop else [])],
            optim=(MuonConfig if self.muon else AdamWConfig)(warmup_epochs=0.2, clip_grad_norm=1.0),
            precision=Precision.fp32,
            parallel=parallel,
            **self.settings,
        )
        if found := list_checkpoints(folder):
            checkpointer_of(trainer).resume(trainer, read_checkpoint(found[-1]))
        features = _features(trainer) if self.init_from is not None else {}
        with _first_gradients(trainer) as gradients:
            trainer.train()
        weights = {f"weight.{name}": full(value) for name, value in trainer.method.state_dict().items()}
        outcome = features | gradients | weights
        if ranks.is_main:
            save_file({name: value.clone() for name, value in outcome.items()}, folder / "outcome.safetensors")


def run_jobs(jobs: Sequence[Job], ranks: int, folder: Path) -> None:
    """Run jobs under torchrun with ``ranks`` gloo processes; raises AssertionError with their output on failure."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"jobs_of_{ranks}.json"
    path.write_text(json.dumps([asdict(job) for job in jobs]))
    launch(ranks, __file__, str(path))


def launch(ranks: int, *command: str) -> None:
    """Run a Python file under torchrun; raises AssertionError with the output on failure."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _features(trainer: Trainer) -> dict[str, Tensor]:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoders = {"encoder": trainer.method.encoder, "evaluated": trainer.method.eval_encoder()}
    return {f"features.{name}": encoder(images).clone() for name, encoder in encoders.items()}


@contextmanager
def _first_gradients(trainer: Trainer) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the first step fills with its clipped gradients as ``gradient.NAME``."""
    gradients: dict[str, Tensor] = {}
    names = {parameter: name for name, parameter in trainer.method.named_parameters()}

    def remember(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not gradients:
            for group in optimizer.param_groups:
                gradients.update({f"gradient.{names[p]}": full(p.grad).clone() for p in group["params"]})

    handle = trainer.optimization.optimizer.register_step_pre_hook(remember)
    yield gradients
    handle.remove()


if __name__ == "__main__":
    todo = [Job(**job) for job in json.loads(Path(sys.argv[1]).read_text())]
    torch.set_num_threads(1)
    with processes(Device.cpu, Parallel.fsdp2) as ranks:
        for job in todo:
            job.run(ranks)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # More could abort the process while Python exits. Torch's caches of sharded tensors hold the default group's two.
    assert threads.count("pt_gloo_runloop") <= 2, threads
