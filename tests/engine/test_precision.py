"""The choice between bf16 and float32."""

from pathlib import Path

import pytest
import torch
from tiny_methods import tiny_method
from tiny_runs import ALONE, tiny_trainer

from ssl_zoo.engine import precision as engine_precision
from ssl_zoo.engine.precision import Workload, choose_precision, run_precision
from ssl_zoo.engine.settings import Precision, TrainerConfig

CPU = torch.device("cpu")
TINY = Workload(48, 16, 2)


def machine(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], **gflops: float) -> None:
    """Pretend that the CPU has these instructions and speeds; without speeds a measurement is an error."""

    def measured(workload: Workload) -> dict[str, float]:
        assert gflops, "nothing should be measured"
        return gflops

    monkeypatch.setattr(engine_precision, "cpu_capabilities", lambda: capabilities)
    monkeypatch.setattr(engine_precision, "_measured", measured)


@pytest.mark.parametrize(
    ("capabilities", "expected", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, Precision.bf16, "AMX"),
        ({"avx2": True}, Precision.fp32, "no bf16 instructions"),
        ({}, Precision.fp32, "no bf16 instructions"),
    ],
)
def test_amx_tiles_and_missing_instructions_decide_without_a_measurement(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: Precision, reason: str
) -> None:
    machine(monkeypatch, capabilities)
    choice = choose_precision(Precision.auto, CPU, TINY)
    assert choice.precision is expected and reason in choice.reason and choice.gflops is None


@pytest.mark.parametrize("flag", ["avx512_bf16", "bf16"])
@pytest.mark.parametrize(
    ("bf16", "fp32", "expected"),
    [(150, 260, Precision.fp32), (400, 200, Precision.bf16), (200, 200, Precision.fp32), (204, 200, Precision.fp32)],
)
def test_other_bf16_instructions_are_measured_and_a_tie_is_float32(
    monkeypatch: pytest.MonkeyPatch, flag: str, bf16: float, fp32: float, expected: Precision
) -> None:
    machine(monkeypatch, {flag: True}, bf16=bf16, fp32=fp32)
    choice = choose_precision(Precision.auto, CPU, TINY)
    assert choice.precision is expected
    assert choice.plain() == {
        "precision": expected.value,
        "precision_reason": f"a transformer block reaches {bf16} GFLOP/s in bf16 and {fp32} in fp32 per core",
        "precision_gflops": {"bf16": bf16, "fp32": fp32},
    }


@pytest.mark.parametrize("recorded", [Precision.fp32, Precision.bf16])
def test_a_recorded_choice_is_kept_on_any_machine_and_an_explicit_one_wins(
    monkeypatch: pytest.MonkeyPatch, recorded: Precision
) -> None:
    for capabilities in ({"amx_bf16": True}, {}):
        machine(monkeypatch, capabilities)
        for device in ("cpu", "cuda", "mps"):
            choice = choose_precision(Precision.auto, torch.device(device), TINY, recorded)
            assert choice.precision is recorded and "recorded" in choice.reason
            assert choose_precision(Precision.bf16, torch.device(device), TINY, recorded).precision is Precision.bf16


def test_mps_is_trained_in_float32() -> None:
    assert choose_precision(Precision.auto, torch.device("mps")).precision is Precision.fp32


def test_a_measurement_is_quick_and_leaves_the_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    gflops = engine_precision._measured.__wrapped__(TINY)
    assert torch.get_num_threads() == threads
    assert gflops.keys() == {"bf16", "fp32"} and min(gflops.values()) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_measured_batch_is_that_of_the_run_up_to_a_limit() -> None:
    encoder = tiny_method("ijepa").encoder
    assert [Workload.of(encoder, images) for images in (1, 16)] == [Workload(48, 16, 1), Workload(48, 16, 16)]
    largest = Workload.of(encoder, 100_000)
    assert largest.num_images < 100_000 and 3.9e9 < largest.flops <= 4e9
    wide = Workload(1408, 1, 1)
    assert wide.embed_dim % wide.num_heads == 0 and Workload(50, 1, 1).num_heads == 1


def test_a_trainer_resolves_auto_itself_and_takes_a_resolved_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, {"avx512_bf16": True}, bf16=2, fp32=1)
    assert tiny_trainer(tmp_path).precision is Precision.bf16
    assert run_precision(tiny_method("mae"), TrainerConfig(), ALONE).precision is Precision.bf16
