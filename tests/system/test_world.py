"""The collectives of ``Step.world``: values and gradients on several processes are those of one process.

``python test_world.py`` under torchrun checks the collectives themselves.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_commands import records
from tiny_coupled import coupled_method
from tiny_processes import Job, launch, run_jobs
from tiny_runs import ALONE, tiny_trainer
from torch import Tensor

from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.settings import Device, Parallel
from ssl_zoo.plugins import discover
from ssl_zoo.regularizers import REGULARIZERS
from ssl_zoo.world import World

discover()


def test_on_one_process_the_collectives_are_the_identity() -> None:
    world, rows = ALONE.world, torch.randn(3, 2)
    assert type(world) is World and world.size == 1
    assert world.mean(rows) is rows and world.gather(rows) is rows


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives_and_their_gradients(ranks: int) -> None:
    launch(ranks, __file__)


def test_a_loss_that_couples_images_refuses_gradient_accumulation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.gradient_accumulation_steps=2: the loss of Coupled couples"):
        tiny_trainer(tmp_path, method=coupled_method(), masks="random", gradient_accumulation_steps=2)
    tiny_trainer(tmp_path, method=coupled_method(), masks="random")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_loss_of_global_statistics_trains_as_on_one_process(tmp_path: Path, ranks: int) -> None:
    settings = {"num_steps": 3, "checkpoint_every": 3}
    alone = Job("coupled", str(tmp_path / "alone"), settings=settings)
    alone.run(ALONE)
    jobs = [Job("coupled", str(tmp_path / kind), kind, settings=settings) for kind in ("ddp", "fsdp2")]
    run_jobs(jobs, ranks, tmp_path)
    expected, expected_gradients = losses(alone), gradients(alone)
    largest = max(gradient.norm() for gradient in expected_gradients.values())
    for job in jobs:
        assert losses(job)[0] == pytest.approx(expected[0], rel=1e-6), job
        assert losses(job) == pytest.approx(expected, rel=1e-5), job  # Adam amplifies rounding errors of gradients
        got = gradients(job)
        assert got.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert (got[name] - gradient).norm() <= 1e-6 * largest, (job, name)


@pytest.mark.slow
def test_regularizers_and_targets_of_the_online_encoder_train_as_on_one_process(tmp_path: Path) -> None:
    online = {"name": "online", "stop_gradient": False}
    options = {name: {"regularizer": name, "target_overrides": online} for name in REGULARIZERS.names()}
    options["noise"] = {"position_noise_std": 0.25, "context_loss_weight": 0.5}
    settings = {"num_steps": 3, "checkpoint_every": 3}
    alone = {
        name: Job("ijepa", str(tmp_path / "alone" / name), options=chosen, settings=settings)
        for name, chosen in options.items()
    }
    for job in alone.values():
        job.run(ALONE)
    for ranks, kind in ((2, "ddp"), (4, "fsdp2")):
        jobs = {name: replace(job, folder=str(tmp_path / kind / name), parallel=kind) for name, job in alone.items()}
        run_jobs(list(jobs.values()), ranks, tmp_path)
        for name, job in jobs.items():
            assert losses(job) == pytest.approx(losses(alone[name]), rel=1e-5), job
            got, expected = gradients(job), gradients(alone[name])
            largest = max(gradient.norm() for gradient in expected.values())
            assert all((got[key] - value).norm() <= 1e-5 * largest for key, value in expected.items()), job


def losses(job: Job) -> list[float]:
    return [line["loss"] for line in records(Path(job.folder))]


def gradients(job: Job) -> dict[str, Tensor]:
    tensors = load_file(Path(job.folder) / "outcome.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("gradient.")}


def check_collectives(ranks: Processes) -> None:
    world, size, rank = ranks.world, ranks.world_size, ranks.rank
    assert (world.size, world.rank) == (size, rank)
    values = [torch.randn(3, 2, generator=torch.Generator().manual_seed(other)) for other in range(size)]
    # The gradient that each rank's loss has with respect to the gathered rows.
    wanted = [torch.randn(3 * size, 2, generator=torch.Generator().manual_seed(9 + other)) for other in range(size)]

    rows = values[rank].clone().requires_grad_()
    gathered = world.gather(rows)
    assert torch.equal(gathered, torch.cat(values)), "not in the order of ranks"
    assert torch.equal(gathered[3 * world.rank :][:3], rows), "not at the place of the rank"
    gathered.backward(wanted[rank])
    expected = torch.stack(wanted).sum(0).chunk(size)[rank]
    torch.testing.assert_close(rows.grad, expected)

    rows = values[rank].clone().requires_grad_()
    mean = world.mean(rows)
    torch.testing.assert_close(mean, torch.stack(values).mean(0))
    assert torch.equal(rows, values[rank]), "changed in place"
    mean.backward(wanted[rank][:3])
    torch.testing.assert_close(rows.grad, torch.stack([gradient[:3] for gradient in wanted]).mean(0))

    first, second = (values[rank].clone().requires_grad_() for _ in range(2))
    # Autograd hands the same tensor to both terms of a sum.
    (world.gather(first) + world.gather(second)).backward(wanted[rank])
    torch.testing.assert_close(first.grad, expected)
    torch.testing.assert_close(second.grad, expected)


if __name__ == "__main__":
    with processes(Device.cpu, Parallel.ddp) as these:
        check_collectives(these)
