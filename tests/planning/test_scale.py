"""The plan of a run on another machine: memory of a rank, verdict and hours."""

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ssl_zoo.config import compose
from ssl_zoo.config.schema import Config
from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.engine.optim import OPTIMIZERS
from ssl_zoo.method import build_method
from ssl_zoo.planning.allocation_tracker import ACTIVATIONS, GRADIENTS, AllocationTracker
from ssl_zoo.planning.memory_simulation import SimulatedMemory, simulate_memory
from ssl_zoo.planning.plan import Plan, count_parameters, plan_batch, plan_step
from ssl_zoo.planning.scale import Machine, ScalePlan
from ssl_zoo.plugins import discover

discover()

DEMO = Path(__file__).resolve().parents[2] / "configs" / "ijepa" / "demo.yaml"
FIXED_MASKS = ["masks.target_scale=[0.2,0.2]", "masks.target_aspect=[1.0,1.0]"]


def configured(*overrides: str) -> Config:
    return compose(DEMO, [*FIXED_MASKS, "trainer.batch_size=64", "optim=adamw", *overrides]).config


def simulated(*overrides: str) -> SimulatedMemory:
    return simulate_memory(configured(*overrides), images_per_rank=64)


def printed(machine: Machine, *overrides: str) -> str:
    output = io.StringIO()
    ScalePlan(configured(*overrides), machine).print(Console(file=output, width=200))
    return output.getvalue()


@pytest.mark.parametrize(("name", "bytes_per_element"), [("adamw", 8), ("muon", 4)])
def test_optimizers_report_the_size_of_the_state_that_a_simulated_step_creates(
    name: str, bytes_per_element: int
) -> None:
    config = configured(f"optim={name}")
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    found = simulate_memory(config, images_per_rank=64)
    total, trained = count_parameters(method)
    assert (found.trained, found.fixed) == (4 * trained, 4 * (total - trained))
    params = [p for p in method.parameters() if p.requires_grad]
    matrices = sum(p.numel() for p in params if p.ndim == 2)
    reported = OPTIMIZERS.build(config.optim).state_size(iter(params))
    assert reported.num_bytes == bytes_per_element * matrices + 8 * (trained - matrices)
    assert found.optimizer == pytest.approx(reported.num_bytes, abs=8 * len(params))  # and the step counters
    output = io.StringIO()
    Plan.of(config).print(Console(file=output, width=200))
    assert reported.explanation in output.getvalue()


def test_activations_in_float32_are_those_of_a_real_step() -> None:
    config = configured("trainer.precision=fp32")
    method = build_method(config.method, config.backbone, config.targets, seed=0)
    views = build_views(config.views, config.backbone)
    masks = plan_batch(views, build_generators(views, config.masks, config.backbone), 64, num_images=64)
    batch = masks.map(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    with AllocationTracker([*method.parameters(), *batch.views.values()]) as tracker:
        method(batch, plan_step(method, "cpu")).loss.backward()
    found = simulate_memory(config, images_per_rank=64)
    assert sum(found.backward.values()) == pytest.approx(sum(tracker.peak.values()), rel=0.05)


@pytest.mark.slow
def test_micro_batches_and_checkpointing_lower_the_activations() -> None:
    full, micro_batches, checkpointed = (
        simulated(*overrides)
        for overrides in ([], ["trainer.gradient_accumulation_steps=4"], ["trainer.activation_checkpointing=true"])
    )
    assert micro_batches.backward[ACTIVATIONS] == pytest.approx(full.backward[ACTIVATIONS] / 4, rel=0.1)
    assert checkpointed.backward[ACTIVATIONS] < 0.5 * full.backward[ACTIVATIONS]
    # From the second micro-batch on all gradients are live at the peak of the activations.
    assert micro_batches.backward[GRADIENTS] == micro_batches.trained and full.backward[GRADIENTS] < full.trained


@pytest.mark.slow
def test_what_does_not_fit_fits_with_the_remedy() -> None:
    machine = Machine(world_size=4, device_memory="30MB")
    text = printed(machine)
    remedy = re.search(r"DDP does not fit: .*; (trainer\.\S+(?: trainer\.\S+)*) brings it to ([\d.]+) GiB", text)
    assert remedy is not None, text
    after = printed(machine, *remedy[1].split())
    assert f"DDP fits: {remedy[2]} GiB" in after


@pytest.mark.slow
def test_the_remedy_for_a_model_too_large_for_a_device_is_sharding() -> None:
    text = printed(Machine(world_size=4, device_memory="15MB"))
    assert "DDP does not fit" in text and "trainer.parallel=fsdp2" in text


@pytest.mark.slow
def test_hours_are_flops_over_the_achieved_speed_of_the_devices() -> None:
    def hours(machine: Machine) -> float:
        return float(re.search(r"hours\W+([\d.,]+)", printed(machine, "trainer.num_steps=1000000"))[1].replace(",", ""))

    slow = hours(Machine(world_size=2, device_flops=1e11, utilisation=0.5))
    assert hours(Machine(world_size=4, device_flops=1e11, utilisation=0.25)) == pytest.approx(slow, rel=0.01)
    assert hours(Machine(world_size=4, device_flops=2e11, utilisation=0.5)) == pytest.approx(slow / 4, rel=0.01)


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("79.5 GiB", 79.5 * 2**30), ("512mb", 512 * 10**6)])
def test_memory_is_read_with_its_unit(text: str, size: float) -> None:
    assert Machine(device_memory=text).memory_bytes == size


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"device_memory": "80"}, "--device-memory 80: needs a number and one of MB, GB, MiB, GiB"),
        ({"device_memory": "lots"}, "--device-memory lots"),
        ({"device_memory": "0GB"}, "--device-memory 0GB"),
        ({"world_size": 0}, "--world-size 0"),
        ({"utilisation": 40.0}, "--utilisation 40.0"),
        ({"device_flops": 0.0}, "--device-flops 0.0"),
    ],
)
def test_an_invalid_machine_is_refused_with_its_option(settings: dict, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        Machine(**settings)


def test_a_plan_refuses_what_the_run_would_refuse() -> None:
    with pytest.raises(ValueError, match=r"trainer\.cuda_graphs=true: .* this run has 8"):
        printed(Machine(8, "80GB"), "trainer.cuda_graphs=true")
    assert "fits" in printed(Machine(1, "80GB"), "trainer.cuda_graphs=true")
