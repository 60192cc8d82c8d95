"""One, two and four processes, data-parallel or sharded: the same training."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_processes import Job, run_jobs
from tiny_runs import ALONE
from torch import Tensor

from ssl_zoo.method import METHODS
from ssl_zoo.registry import discover

discover()

EXACT = {"step", "epoch", "samples", "lr", "weight_decay", "momentum"}
STEPS = {"num_steps": 3, "checkpoint_every": 3}


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
    for name in gradients:  # of the whole, since some are zero but for rounding, e.g. those of biases on keys
        assert (tensors[name] - others[name]).norm() <= tolerance * max(others[name].norm(), 1e-3 * largest), (
            job,
            name,
        )
    for name in tensors.keys() - set(gradients):
        if name.startswith("weight.target."):
            assert relative_error(tensors[name].float(), others[name].float()) < tolerance, (job, name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_methods_train_alike_however_they_are_divided(tmp_path: Path, ranks: int) -> None:
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
