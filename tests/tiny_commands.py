"""Tiny trainings for tests of the tools: their settings and their records."""

import json
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "configs" / "ijepa" / "demo.yaml"
TIMING = {"images_per_second", "data_wait", "memory_bytes"}
TINY = [
    "backbone.embed_dim=48",
    "backbone.depth=2",
    "backbone.num_heads=4",
    "backbone.image_size=32",
    "backbone.patch_size=4",
    "data.image_size=32",
    "data.num_train=160",
    "data.num_test=48",
    "method.predictor_dim=32",
    "method.predictor_depth=1",
    "method.predictor_heads=4",
    "masks.min_patches=4",
    "trainer.batch_size=16",
    "trainer.num_steps=20",
    "trainer.checkpoint_every=4",
    "trainer.precision=fp32",
    "optim.warmup_epochs=0.5",
    "monitor.log_every=1",
    "monitor.loggers=[jsonl]",
    "probe.every_steps=8",
    "probe.train_samples=96",
    "probe.knn.k=[5]",
]


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        if any(f'"step": {step},' in line for line in lines):
            return
        time.sleep(0.02)


def children_of(process: int) -> list[int]:
    """List the child processes of a process, oldest first."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
