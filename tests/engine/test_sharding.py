"""Sharded methods, as far as one process tells: more are in tests/system/test_parallel.py."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_methods import TINY_BACKBONE, tiny_batch, tiny_method
from tiny_runs import tiny_trainer
from torch.distributed.tensor import DTensor

from ssl_zoo.engine.checkpoint.state import list_checkpoints
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.hooks import Visualizations
from ssl_zoo.engine.settings import Device, Parallel, Precision, TrainerConfig
from ssl_zoo.engine.sharding import all_ranks, full_copy, is_sharded, shard
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer
from ssl_zoo.method import METHODS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def group() -> Iterator[Processes]:
    with processes(Device.cpu, Parallel.fsdp2) as ranks:
        yield ranks


@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True, "reshard_after_forward": False}])
@pytest.mark.parametrize("name", METHODS.names())
def test_alone_a_sharded_training_equals_a_plain_one(group: Processes, tmp_path: Path, name: str, settings) -> None:
    for parallel in Parallel:
        method, masks, more = tiny_method(name), METHODS.get(name).default_masks, settings
        if parallel is Parallel.ddp:
            more = {}
        hooks = [Visualizations(tmp_path / parallel.value, 1)]
        micro_batches = 1 if method.couples_images else 2
        common = {"gradient_accumulation_steps": micro_batches, "precision": Precision.fp32}
        common |= {"num_steps": 2, "checkpoint_every": 1}
        tiny_trainer(
            tmp_path / parallel.value,
            method=method,
            masks=masks,
            ranks=group,
            hooks=hooks,
            parallel=parallel,
            **common,
            **more,
        ).train()
    plain, sharded = (list_checkpoints(tmp_path / parallel.value)[-1] for parallel in Parallel)
    for part in ("method", "optimizer"):
        expected, tensors = (load_file(path / f"{part}.safetensors") for path in (plain, sharded))
        assert tensors.keys() == expected.keys() and tensors
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-7, msg=key)


def test_every_parameter_is_sharded_and_ema_weights_follow(group: Processes) -> None:
    method = tiny_method("data2vec")
    shard(method, TrainerConfig(), all_ranks(CPU))
    assert all(isinstance(parameter, DTensor) for parameter in method.parameters())
    assert all(
        is_sharded(part) for part in (method, method.encoder, method.target.encoder.module, *method.encoder.blocks)
    )


def test_a_full_copy_is_a_plain_encoder_that_can_be_copied_and_trained(group: Processes) -> None:
    method, plain = tiny_method("ijepa"), tiny_method("ijepa")
    images = tiny_batch(plain, "ijepa").views["image"]
    shard(method, TrainerConfig(), all_ranks(CPU))
    encoder = full_copy(method.eval_encoder(), TrainerConfig())
    assert type(encoder) is type(plain.encoder) and not is_sharded(encoder)
    copy.deepcopy(encoder)
    assert encoder.config == TINY_BACKBONE
    assert torch.equal(encoder.eval()(images), plain.eval_encoder().eval()(images))


def test_a_network_may_run_before_the_method_does(group: Processes, tmp_path: Path) -> None:
    class ProbeFirst(Hook):
        name = "probe_first"

        def before_train(self, trainer: Trainer) -> None:
            with torch.no_grad():
                trainer.method.encoder(torch.randn(2, 3, 16, 16))

        def after_step(self, trainer: Trainer, result: StepResult) -> None:
            self.before_train(trainer)

    tiny_trainer(
        tmp_path, ranks=group, hooks=[ProbeFirst()], parallel=Parallel.fsdp2, reshard_after_forward=False, num_steps=2
    ).train()
    moments = load_file(list_checkpoints(tmp_path)[-1] / "optimizer.safetensors")
    assert "encoder.blocks.0.attn.qkv.weight:exp_avg" in moments


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo asks all inputs
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_compiled_blocks_train_alike_when_sharded(
    group: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation_checkpointing: bool
) -> None:
    compile_module = torch.nn.Module.compile  # traced as for inductor, without its minutes of compiling C++
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    settings = {"compile": True, "activation_checkpointing": activation_checkpointing}
    for name, more in (("plain", {}), ("sharded", {"parallel": Parallel.fsdp2, **settings})):
        tiny_trainer(tmp_path / name, ranks=group, num_steps=2, precision=Precision.fp32, **more).train()
    plain, sharded = (
        load_file(list_checkpoints(tmp_path / n)[-1] / "method.safetensors") for n in ("plain", "sharded")
    )
    for key, tensor in sharded.items():
        torch.testing.assert_close(tensor, plain[key], rtol=1e-5, atol=1e-7, msg=key)
