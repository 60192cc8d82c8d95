"""DDP and FSDP2 on one, two and four processes: equal trainings, and any layout resumes from any other."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_methods import tiny_method
from tiny_processes import Job, run_jobs
from tiny_runs import ALONE
from tiny_weights import exported
from torch import Tensor

from ssl_zoo.config import compose
from ssl_zoo.engine.checkpoint.state import list_checkpoints, step_of
from ssl_zoo.engine.trained import open_run
from ssl_zoo.method import METHODS
from ssl_zoo.plugins import discover

discover()

ROOT = Path(__file__).resolve().parents[2]
EXACT = {"step", "epoch", "samples", "lr", "weight_decay", "ema_momentum"}
STEPS = {"num_steps": 3, "checkpoint_every": 3}
LAYOUTS = [(ranks, parallel) for ranks in (1, 2, 4) for parallel in ("ddp", "fsdp2")]


def records(folder: Path | str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def relative_error(values: Tensor, expected: Tensor) -> float:
    return ((values - expected).norm() / expected.norm().clamp(min=1e-4)).item()


def assert_same_training(job: Job, reference: Job, tolerance: float = 1e-5) -> None:
    lines, expected = records(job.folder), records(reference.folder)
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert {key: line[key] for key in EXACT & line.keys()} == {key: other[key] for key in EXACT & other.keys()}
        assert line["loss"] == pytest.approx(other["loss"], rel=tolerance), (job, line["step"])
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=tolerance), (job, line["step"])
    tensors, others = (load_file(Path(j.folder) / "outcome.safetensors") for j in (job, reference))
    assert tensors.keys() == others.keys()
    gradients = [name for name in tensors if name.startswith("gradient.")]
    assert gradients
    largest = max(others[name].norm() for name in gradients)
    for name in gradients:  # relative to the largest, since some are zero up to rounding, e.g. those of key biases
        if others[name].norm() < 1e-5 * largest:  # a bias in front of batch normalization: a sum of large terms
            assert tensors[name].norm() < 1e-5 * largest, (job, name)
            continue
        assert (tensors[name] - others[name]).norm() <= tolerance * max(others[name].norm(), 1e-3 * largest), (
            job,
            name,
        )
    for name in tensors.keys() - set(gradients):
        if name.startswith("weight.target."):
            assert relative_error(tensors[name].float(), others[name].float()) < tolerance, (job, name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_methods_train_equally_under_ddp_and_fsdp2(tmp_path: Path, ranks: int) -> None:
    alone = [Job(name, str(tmp_path / "alone" / name), settings=STEPS) for name in METHODS.names()]
    for job in alone:
        job.run(ALONE)
    jobs = [
        Job(name, str(tmp_path / parallel / name), parallel, settings=STEPS)
        for name in METHODS.names()
        for parallel in ("ddp", "fsdp2")
    ]
    run_jobs(jobs, ranks, tmp_path)
    references = {job.method: job for job in alone}
    for job in jobs:
        assert_same_training(job, references[job.method])


@pytest.mark.slow
def test_a_run_from_given_weights_begins_equally_on_one_process_and_on_ranks(tmp_path: Path) -> None:
    source = tiny_method("mae", seed=7)
    exported(source, tmp_path / "mae")
    begun = {"ijepa": "mae", "mae": "mae"}  # the method of the run, that of the weights
    once = {"num_steps": 1, "checkpoint_every": 1}
    alone, *ranks = (
        [Job(m, str(tmp_path / kind / m), kind, settings=once, init_from=str(tmp_path / s)) for m, s in begun.items()]
        for kind in ("alone", "ddp", "fsdp2")
    )
    alone = [replace(job, parallel="ddp") for job in alone]
    for job in alone:
        job.run(ALONE)
    run_jobs([job for jobs in ranks for job in jobs], 2, tmp_path)
    for job, reference in ((job, ref) for jobs in ranks for job, ref in zip(jobs, alone, strict=True)):
        assert_same_training(job, reference)
        found, expected = (load_file(Path(j.folder) / "outcome.safetensors") for j in (job, reference))
        for network in ("features.encoder", "features.evaluated"):
            torch.testing.assert_close(found[network], expected[network], rtol=0, atol=1e-6)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = load_file(tmp_path / "fsdp2" / "mae" / "outcome.safetensors")["features.encoder"]
    torch.testing.assert_close(features, source.encoder(images).detach(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_options_that_couple_the_images_of_all_ranks_train_as_on_one_process(tmp_path: Path) -> None:
    dinov2 = {"sinkhorn_iterations": 3, "koleo_weight": 0.1}
    options = {"dino": dinov2, "ibot": dinov2, "msn": {"sinkhorn_iterations": 3, "entropy_weight": 0.5}}
    alone, sharded = (
        [Job(name, str(tmp_path / kind / name), kind, options=keys, settings=STEPS) for name, keys in options.items()]
        for kind in ("ddp", "fsdp2")
    )
    for job in alone:
        job.run(ALONE)
    run_jobs(sharded, 2, tmp_path)
    for job, reference in zip(sharded, alone, strict=True):
        assert_same_training(job, reference)


@pytest.mark.slow
def test_a_run_saved_in_any_layout_resumes_in_any_other(tmp_path: Path) -> None:
    def folder(*parts: object) -> Path:
        return tmp_path / "_".join(str(part) for part in parts)

    def job(*parts: object, parallel: str, stop: int | None = None) -> Job:
        return Job("ijepa", str(folder(*parts)), parallel, stop, settings={"num_steps": 4, "checkpoint_every": 4})

    for ranks in (1, 2, 4):
        full = [job("full", ranks, parallel, parallel=parallel) for parallel in ("ddp", "fsdp2")]
        cut = [job("cut", ranks, parallel, parallel=parallel, stop=2) for parallel in ("ddp", "fsdp2")]
        run_jobs([*full, *cut], ranks, tmp_path)
    for ranks in (1, 2, 4):
        resumed = []
        for parallel in ("ddp", "fsdp2"):
            for origin in LAYOUTS:
                resumed.append(job("from", *origin, "to", ranks, parallel, parallel=parallel))
                shutil.copytree(folder("cut", *origin), resumed[-1].folder)
        run_jobs(resumed, ranks, tmp_path)
    expected = [line["loss"] for line in records(folder("full", 1, "ddp"))]
    for origin in LAYOUTS:
        for layout in LAYOUTS:
            there = folder("from", *origin, "to", *layout)
            assert [line["loss"] for line in records(there)] == pytest.approx(expected, rel=1e-5), (origin, layout)
        resumed, full = (
            load_file(place / "outcome.safetensors")
            for place in (folder("from", *origin, "to", *origin), folder("full", *origin))
        )
        weights = [name for name in full if name.startswith("weight.")]
        assert weights and all(torch.equal(resumed[name], full[name]) for name in weights), origin


@pytest.mark.slow
def test_muon_gathers_full_matrices(tmp_path: Path) -> None:
    alone, sharded = Job("mae", str(tmp_path / "alone"), muon=True), Job("mae", str(tmp_path / "3"), "fsdp2", muon=True)
    alone, sharded = (Job(**{**vars(j), "settings": {**STEPS, "batch_size": 6}}) for j in (alone, sharded))
    alone.run(ALONE)
    run_jobs([sharded], 3, tmp_path)
    tensors, expected = (load_file(Path(j.folder) / "outcome.safetensors") for j in (sharded, alone))
    for name in expected:
        if name.startswith("weight.") and name.endswith("weight") and expected[name].ndim == 2:
            # Orthogonalisation amplifies directions of small singular values, and their rounding errors with them.
            assert relative_error(tensors[name], expected[name]) < 1e-4, name


@pytest.mark.slow
def test_the_tool_trains_sharded_and_a_signal_to_one_rank_saves_and_stops_all(tmp_path: Path) -> None:
    tiny = [
        *("backbone.embed_dim=48", "backbone.depth=2", "backbone.num_heads=4", "backbone.image_size=32"),
        *("backbone.patch_size=4", "data.image_size=32", "data.num_train=64", "data.num_test=32"),
        *("method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4", "masks.min_patches=4"),
        *("trainer.batch_size=8", "trainer.num_steps=5000", "trainer.checkpoint_every=5000"),
        *("monitor.loggers=[jsonl]", "monitor.log_every=1", "monitor.images_every=3", "probe.every_steps=2"),
        *("probe.evaluators=[knn,finetune]", "probe.train_samples=32", "probe.test_samples=16", "probe.knn.k=[5]"),
        *("probe.finetune.epochs=1", "trainer.parallel=fsdp2", f"output_dir={tmp_path}"),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    tool, recipe = ROOT / "tools" / "train_net.py", ROOT / "configs" / "ijepa" / "demo.yaml"
    command = [*launcher, str(tool), "--config", str(recipe), *tiny]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 4,' in metrics.read_text()):
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    [checkpoint] = list_checkpoints(tmp_path)
    assert step_of(checkpoint) == records(tmp_path)[-1]["step"]
    assert any("finetune" in key for line in records(tmp_path) for key in line)
    assert {path.name for path in (tmp_path / "figures").glob("*_step_00000003.png")}
    written = {path.name for path in checkpoint.glob("*.safetensors")}
    assert written == {f"{part}_0000{rank}_of_00002.safetensors" for part in ("method", "optimizer") for rank in (1, 2)}
    method = open_run(tmp_path, compose(tmp_path / "config.yaml").config).method
    assert not torch.equal(method.encoder.norm.bias, torch.zeros(48))
