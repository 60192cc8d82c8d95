"""The shards and the traffic of FSDP2, simulated in a group of fake ranks, against arithmetic."""

import math
from pathlib import Path

import pytest
import torch.distributed as dist

from ssl_zoo.config import compose
from ssl_zoo.method import Method, build_method
from ssl_zoo.planning.fake_ranks import simulate_sharding
from ssl_zoo.plugins import discover

discover()

DEMO = Path(__file__).resolve().parents[2] / "configs" / "ijepa" / "demo.yaml"


def shard_of_rank_0(method: Method, world_size: int, requires_grad: bool) -> int:
    """Bytes of the first of ``world_size`` shards along dimension 0; the last ranks may have less or nothing."""
    shapes = [p.shape for p in method.parameters() if p.requires_grad is requires_grad]
    return 4 * sum(math.ceil(shape[0] / world_size) * shape[1:].numel() for shape in shapes)


def padded(parameters: list, world_size: int) -> int:
    """Bytes of an all-gather's output, whose dimension 0 is padded to a multiple of the ranks."""
    return 4 * sum(math.ceil(p.shape[0] / world_size) * world_size * p.shape[1:].numel() for p in parameters)


@pytest.mark.parametrize("world_size", [2, 16])
def test_shards_and_traffic_equal_the_closed_form(world_size: int) -> None:
    config = compose(DEMO, []).config
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    found = simulate_sharding(config, world_size)
    assert found.trained == shard_of_rank_0(method, world_size, requires_grad=True)
    assert found.fixed == shard_of_rank_0(method, world_size, requires_grad=False)
    assert found.scattered == padded([p for p in method.parameters() if p.requires_grad], world_size)
    # Everything before its forward pass, trained networks before their backward pass as well. After the encoder FSDP2
    # prefetches the module that ran before it, the target encoder around its blocks, which has no backward pass.
    trained = [*method.encoder.parameters(), *method.predictor.parameters()]
    around = [p for name, p in method.target.encoder.named_parameters() if not name.startswith("module.blocks.")]
    assert found.gathered == sum(padded(part, world_size) for part in (list(method.parameters()), trained, around))
    assert not dist.is_initialized()


@pytest.mark.slow
def test_the_gathered_parameters_at_the_peak_do_not_grow_with_the_depth() -> None:
    shallow, deep = (
        simulate_sharding(compose(DEMO, [f"backbone.depth={depth}"]).config, 4).working for depth in (6, 18)
    )
    assert deep == pytest.approx(shallow, rel=0.01)
