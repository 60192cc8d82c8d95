"""Precision, attention kernel and checkpointing on a device."""

import pytest
import torch
from timm.layers import DropPath
from tiny_methods import PROGRESS, tiny_batch, tiny_method

from ssl_zoo.engine.device import prepare_method
from ssl_zoo.engine.distributed import processes
from ssl_zoo.engine.settings import Device, TrainerConfig
from ssl_zoo.method import Output

CPU = torch.device("cpu")


@pytest.mark.parametrize("setting", [None, True, False])
def test_the_attention_kernel_follows_the_setting(setting: bool | None) -> None:
    method = prepare_method(tiny_method("ijepa"), TrainerConfig(fused_attention=setting), CPU)
    networks = (method.encoder, method.target.encoder.module, method.predictor)
    assert {block.attn.fused_attn for network in networks for block in network.blocks} == {setting}


def test_compilation_without_a_compiler_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"there is no no-such-compiler.*trainer\.compile=false"):
        prepare_method(tiny_method("ijepa"), TrainerConfig(compile=True), CPU)


def test_activation_checkpointing_on_mps_is_refused_only_where_blocks_are_random() -> None:
    config = TrainerConfig(activation_checkpointing=True)
    method = tiny_method("ijepa")
    method.encoder.blocks[1].drop_path1 = DropPath(0.1)
    with pytest.raises(ValueError, match=r"backbone\.drop_path"):
        prepare_method(method, config, torch.device("mps"))
    prepare_method(method, config, CPU)


def test_mps_is_refused_where_it_is_not_there_and_with_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"trainer\.device=mps, but torch finds no MPS device"), processes(Device.mps):
        pass
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with processes(Device.mps) as ranks:
        assert ranks.device == torch.device("mps")
    with processes(Device.auto) as ranks:
        assert ranks.device.type != "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="no collectives for MPS"), processes(Device.mps):
        pass


def bytes_kept(name: str, activation_checkpointing: bool) -> tuple[int, Output, list[torch.Tensor]]:
    """Return the bytes saved for the backward pass, the output, and the gradients."""
    config = TrainerConfig(activation_checkpointing=activation_checkpointing)
    method, kept = prepare_method(tiny_method(name), config, CPU), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = method(tiny_batch(method, name), PROGRESS)
    output.loss.backward()
    return sum(kept.values()), output, [p.grad for p in method.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ["ijepa", "cae"])  # blocks of self-attention, and of cross-attention beside them
def test_activation_checkpointing_saves_memory_and_changes_no_bit(name: str) -> None:
    plain_bytes, plain, plain_gradients = bytes_kept(name, activation_checkpointing=False)
    checkpointed_bytes, output, gradients = bytes_kept(name, activation_checkpointing=True)
    assert checkpointed_bytes < 0.6 * plain_bytes
    assert torch.equal(output.loss, plain.loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain_gradients, strict=True))


def test_a_missing_cuda_device_is_an_error_with_the_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match=r"trainer\.device=auto"), processes(Device.cuda):
        pass


def test_every_collective_of_a_single_process_is_the_identity() -> None:
    with processes(Device.cpu) as ranks:
        assert ranks.is_main and ranks.any(True) and not ranks.any(False)
        assert torch.equal(ranks.mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
