"""Tests that need a GPU, which fake tensors can't replace; skipped where there is none."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_commands import DEMO, ROOT, TINY, records
from tiny_methods import TINY_BACKBONE, TINY_METHOD, tiny_method
from tiny_runs import ALONE, Noise, StopAfter, checkpointer_of, tiny_trainer

from ssl_zoo.config import compose, load_config
from ssl_zoo.data.batch import Batch
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.engine.build import build_data, build_generators, build_run_method, build_views
from ssl_zoo.engine.checkpoint.state import list_checkpoints, read_checkpoint
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.hooks import OffendingStep
from ssl_zoo.engine.optim import AdamWConfig, MuonConfig
from ssl_zoo.engine.settings import Device, Parallel, Precision
from ssl_zoo.engine.trainer import NonFiniteLoss, Trainer
from ssl_zoo.method import METHODS, Output, Progress, Step, build_method
from ssl_zoo.planning.memory_simulation import simulate_memory
from ssl_zoo.planning.scale import replicated
from ssl_zoo.plugins import discover
from ssl_zoo.targets import PixelsConfig
from ssl_zoo.tools.eval_net import main as eval_net
from ssl_zoo.tools.train_net import main as train_net

discover()

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
ON_GPU = Processes(0, 1, torch.device("cuda", 0))
CAPTURED = [{}, {"gradient_accumulation_steps": 2}, {"precision": Precision.bf16, "compile": True}]


def trainer_of(name: str, run: Path, ranks: Processes = ON_GPU, **settings: object) -> Trainer:
    trainer = tiny_trainer(
        run, method=tiny_method(name), masks=METHODS.get(name).default_masks, ranks=ranks, **settings
    )
    # Trainers allow TF32, which rounds nearly as bf16 does; what is compared with a CPU must not.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return trainer


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run)]


def scaled(output: Output, factor: float) -> Output:
    return replace(output, losses={name: loss * factor for name, loss in output.losses.items()})


@contextmanager
def no_sync() -> Iterator[None]:
    """Raise RuntimeError where the host waits for the GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optim", [AdamWConfig, MuonConfig])
@pytest.mark.parametrize("name", METHODS.names())
def test_a_gpu_trains_as_a_cpu_does(tmp_path: Path, name: str, optim: type[AdamWConfig]) -> None:
    for ranks in (ON_GPU, ALONE):
        settings = {"precision": Precision.fp32, "optim": optim(warmup_epochs=0.2, clip_grad_norm=1.0)}
        trainer_of(name, tmp_path / ranks.device.type, ranks, **settings).train()
    on_gpu, on_cpu = (records(tmp_path / kind) for kind in ("cuda", "cpu"))
    assert len(on_gpu) == len(on_cpu) == 6
    # Muon orthogonalises in bf16, where a rounding error of a gradient becomes one of 2^-8.
    tolerance = 1e-4 if optim is AdamWConfig else 5e-3
    for line, expected in zip(on_gpu, on_cpu, strict=True):
        assert line["samples"] == expected["samples"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=tolerance), line["step"]
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=20 * tolerance), line["step"]


@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
@pytest.mark.parametrize("name", METHODS.names())
def test_bf16_and_compiled_blocks_change_the_loss_by_rounding_alone(tmp_path: Path, name: str) -> None:
    settings = {
        "fp32": {"precision": Precision.fp32},
        "bf16": {"precision": Precision.bf16},
        "compiled": {"precision": Precision.bf16, "compile": True},
        "checkpointed": {"precision": Precision.bf16, "activation_checkpointing": True},
    }
    for case, values in settings.items():
        trainer_of(name, tmp_path / case, **values).train()
    for case in ("bf16", "compiled", "checkpointed"):
        assert losses(tmp_path / case) == pytest.approx(losses(tmp_path / "fp32"), rel=3e-2), case


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("optim", [AdamWConfig, MuonConfig])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", METHODS.names())
def test_no_step_waits_for_the_gpu(
    tmp_path: Path, name: str, graphs: bool, optim: type[AdamWConfig], precision: Precision
) -> None:
    settings = {"precision": precision, "optim": optim(warmup_epochs=0.2, clip_grad_norm=1.0), "cuda_graphs": graphs}
    trainer = trainer_of(name, tmp_path, **settings)
    batch = trainer.data.to_device(trainer.data.batch(0), trainer.device)
    for step in range(5):
        # The first steps make tables, the optimizer's state and the capture.
        with no_sync() if step > 2 else nullcontext():
            trainer._run_step(Progress(step, 6, 8 * step), iter([batch]))
    trainer.raise_if_not_finite()


@pytest.mark.parametrize("name", METHODS.names())
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    trainer_of(name, tmp_path / "uninterrupted").train()
    trainer_of(name, tmp_path / "cut", hooks=[StopAfter(2)]).train()
    resumed = trainer_of(name, tmp_path / "cut")
    checkpointer_of(resumed).resume(resumed, read_checkpoint(list_checkpoints(tmp_path / "cut")[-1]))
    resumed.train()
    for line, expected in zip(records(tmp_path / "cut"), records(tmp_path / "uninterrupted"), strict=True):
        assert line["samples"] == expected["samples"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("optim", [AdamWConfig, MuonConfig])
def test_weights_stay_as_they_were_before_a_loss_that_is_not_finite(tmp_path: Path, optim: type[AdamWConfig]) -> None:
    trainer = trainer_of(
        "mae", tmp_path, hooks=[OffendingStep(tmp_path)], optim=optim(warmup_epochs=0.2), checkpoint_every=6
    )
    trainer.hooks[0].every = 5  # the host looks two steps after the bad one
    trained, before = trainer.method, {}

    def poisoned(batch: Batch, step: Step) -> Output:
        output = trained(batch, step)
        if step.progress.step != 2:
            return output
        before.update({name: value.clone() for name, value in trained.state_dict().items()})
        return scaled(output, float("nan"))

    trainer.wrapped = poisoned
    with pytest.raises(NonFiniteLoss, match="step 3"):
        trainer.train()
    assert trainer.step == 5
    assert before and all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert (tmp_path / "non_finite_step_00000003_rank_0.safetensors").is_file()


@pytest.mark.parametrize("settings", CAPTURED, ids=str)
@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
def test_captured_steps_equal_eager_ones(tmp_path: Path, name: str, settings: dict[str, object]) -> None:
    settings = {"precision": Precision.fp32, "optim": MuonConfig(warmup_epochs=0.2, clip_grad_norm=1.0), **settings}
    for graphs in (False, True):
        trainer = trainer_of(name, tmp_path / str(graphs), cuda_graphs=graphs, num_steps=30, **settings)
        trainer.train()
    assert any(capture is not None for capture in trainer.compute._captures.values())
    captured, eager = (records(tmp_path / str(graphs)) for graphs in (True, False))
    assert len(captured) == len(eager) == 30
    tolerance = 1e-2 if settings["precision"] is Precision.bf16 else 2e-3
    for line, other in zip(captured, eager, strict=True):
        assert line.keys() == other.keys()
        for key in other.keys() - {"grad_norm"}:  # which sums the rounding errors of all gradients
            assert line[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance), (line["step"], key)


@pytest.mark.parametrize("name", [name for name in METHODS.names() if tiny_method(name).schedules()])
def test_captured_steps_see_the_scheduled_values(tmp_path: Path, name: str) -> None:
    trainer = trainer_of(name, tmp_path, cuda_graphs=True)
    batch = trainer.data.to_device(trainer.data.batch(0), trainer.device)
    for progress in (Progress(0, 6, 0), Progress(1, 6, 8), Progress(5, 6, 40)):  # eager, captured, replayed
        step = Step.of(trainer.method, progress, trainer.device)
        trainer.method.zero_grad(set_to_none=True)
        trainer.compute(batch, step)
    [capture] = trainer.compute._captures.values()
    assert capture.values.keys() == step.values.keys()
    for key, value in step.values.items():
        assert torch.equal(capture.values[key], value), key


def test_captured_steps_sample_drop_path_again(tmp_path: Path) -> None:
    backbone = replace(TINY_BACKBONE, drop_path=0.5)
    for graphs in (False, True):
        method = build_method(METHODS.config_of("mae")(**TINY_METHOD["mae"]), backbone, PixelsConfig(), seed=0)
        tiny_trainer(
            tmp_path / str(graphs), method=method, masks="random", ranks=ON_GPU, num_steps=8, cuda_graphs=graphs
        ).train()
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-3)


def test_a_method_that_reads_its_progress_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of("mae", tmp_path, cuda_graphs=True)
    trained = trainer.method

    def reading(batch: Batch, step: Step) -> Output:
        return scaled(trained(batch, step), 1.0 + step.progress.step)

    trainer.wrapped = reading
    with pytest.raises(ValueError, match=r"MAE reads progress\.step .* trainer\.cuda_graphs=true"):
        trainer.train()


def test_a_method_that_waits_for_the_gpu_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of("mae", tmp_path, cuda_graphs=True)
    trained = trainer.method

    def waiting(batch: Batch, step: Step) -> Output:
        output = trained(batch, step)
        return scaled(output, 1.0 if output.loss.item() else 2.0)

    trainer.wrapped = waiting
    with pytest.raises(ValueError, match=r"MAE can't be captured as a CUDA graph, .* trainer\.cuda_graphs=false"):
        trainer.train()


def test_sharded_on_one_gpu_trains_as_alone(tmp_path: Path) -> None:
    for precision in (Precision.fp32, Precision.bf16):
        alone, sharded = (tmp_path / precision.value / kind for kind in ("alone", "sharded"))
        trainer_of("ijepa", alone, precision=precision).train()
        with processes(Device.cuda, Parallel.fsdp2) as ranks:
            trainer_of("ijepa", sharded, ranks, precision=precision, parallel=Parallel.fsdp2).train()
        assert losses(sharded) == pytest.approx(losses(alone), rel=1e-4 if precision is Precision.fp32 else 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ijepa/vitb16", "mae/vitb16"])
def test_a_step_takes_the_memory_that_was_planned(recipe: str) -> None:
    settings = ["trainer.batch_size=32", "trainer.num_steps=4", "trainer.precision=bf16"]
    config = compose(ROOT / "configs" / f"{recipe}.yaml", settings).config
    planned = replicated(simulate_memory(config, images_per_rank=32), world_size=1).peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method = build_run_method(config)
    views = build_views(config.views, config.backbone)
    generators = build_generators(views, config.masks, config.backbone)
    data = TrainingData(Noise(), views, generators, seed=0, batch_size=32)
    Trainer(method, data, ON_GPU, optim=config.optim, config=config.trainer, seed=0).train()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(planned, rel=0.05)


@pytest.mark.slow
def test_the_tools_train_and_evaluate_on_the_gpu(tmp_path: Path) -> None:
    protocols = "[knn,logistic,linear,attentive,finetune]"
    tiny = [*TINY, "trainer.device=cuda", f"probe.evaluators={protocols}", "probe.every_steps=0"]
    tiny += ["monitor.images_every=10", "loader.num_workers=2", f"output_dir={tmp_path}"]
    assert train_net(["--config", str(DEMO), *tiny]) == 0
    last = records(tmp_path)[-1]
    assert "finetune" in last
    assert eval_net(["--run", str(tmp_path), "--evaluators", "knn", "logistic"]) == 0


def test_views_rendered_on_the_gpu_are_those_of_the_host_except_for_rounding() -> None:
    jitter = ["views.color_jitter=[0.4,0.4,0.2,0.1]", "views.grayscale=0.2", "views.blur=0.5", "views.solarize=0.2"]
    config = load_config(DEMO, ["trainer.batch_size=64", *jitter, "loader.augment_on=device"])
    data = build_data(config, ON_GPU)
    expected = data.batch(0)
    pixels = data.to_device(data.unrendered(0), ON_GPU.device).pixels("image") * 255
    difference = (pixels.cpu().round() - expected.views["image"].float()).abs()
    assert difference.quantile(0.999) <= 2 and (difference > 0).float().mean() < 0.01
