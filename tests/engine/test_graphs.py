"""CUDA graphs as far as they can be tested without a GPU; tests/system/test_cuda.py captures and replays some."""

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_trainer

from ssl_zoo.engine.graphs import check_capturable
from ssl_zoo.engine.settings import Parallel, TrainerConfig

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("settings", "world_size", "complaint"),
    [
        ({}, 2, "this run has 2"),
        ({"parallel": Parallel.fsdp2}, 1, r"trainer\.parallel=fsdp2"),
        ({"activation_checkpointing": True}, 1, r"trainer\.activation_checkpointing=true"),
    ],
)
def test_what_can_not_be_captured_is_refused_with_the_reason(
    settings: dict[str, object], world_size: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.cuda_graphs=true: .*{complaint}.*; set it to false"):
        check_capturable(TrainerConfig(cuda_graphs=True, **settings), GPU, world_size)
    check_capturable(TrainerConfig(cuda_graphs=True), GPU, 1)


def test_a_run_without_a_gpu_is_refused_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.cuda_graphs=true: CUDA graphs need a GPU, .* on cpu"):
        tiny_trainer(tmp_path, cuda_graphs=True)
