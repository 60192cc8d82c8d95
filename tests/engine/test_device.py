"""What the engine chooses for a device."""

import pytest
import torch
from tiny_methods import tiny_method

from ssl_zoo.engine import device as engine_device
from ssl_zoo.engine.device import prepare_method, resolve_precision
from ssl_zoo.engine.distributed import processes
from ssl_zoo.engine.settings import Device, Precision, TrainerConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, Precision.bf16),
        ({"avx512_bf16": True}, Precision.bf16),
        ({"avx2": True}, Precision.fp32),
        ({}, Precision.fp32),
    ],
)
def test_auto_precision_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: Precision
) -> None:
    monkeypatch.setattr(engine_device, "cpu_capabilities", lambda: capabilities)
    assert resolve_precision(Precision.auto, CPU) is expected
    assert resolve_precision(Precision.bf16, CPU) is Precision.bf16


@pytest.mark.parametrize(
    ("setting", "precision", "fused"),
    [(None, Precision.fp32, True), (None, Precision.bf16, False), (True, Precision.bf16, True)],
)
def test_the_attention_kernel_is_chosen_by_precision_unless_set(
    setting: bool | None, precision: Precision, fused: bool
) -> None:
    method = prepare_method(tiny_method("ijepa"), TrainerConfig(fused_attention=setting), CPU, precision)
    assert {block.attn.fused_attn for block in method.encoder.blocks} == {fused}


def test_a_cuda_device_that_is_not_there_is_an_error_with_the_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match=r"trainer\.device=auto"), processes(Device.cuda):
        pass


def test_alone_every_collective_is_the_identity() -> None:
    with processes(Device.cpu) as ranks:
        assert ranks.is_main and ranks.any(True) and not ranks.any(False)
        assert torch.equal(ranks.mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
