"""The loop: what a step does, exactly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_methods import TINY_BACKBONE, tiny_method
from tiny_runs import ALONE, Noise, StopAfter, checkpointer_of, tiny_data, tiny_trainer

from ssl_zoo.data.batch import Batch, Corrupt
from ssl_zoo.data.workers import LoaderError
from ssl_zoo.engine.checkpoint.state import list_checkpoints, read_checkpoint
from ssl_zoo.engine.hooks import CorruptSamples, OffendingStep
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.engine.settings import Precision, TrainerConfig
from ssl_zoo.engine.step_file import StepFile
from ssl_zoo.engine.trainer import BatchPlan, Hook, NonFiniteLoss, StepResult, Trainer, run_length
from ssl_zoo.method import METHODS, Output, Step, build_method

TIMING = {"images_per_second", "data_wait", "memory_bytes"}


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, stop: int) -> None:
    full = tiny_trainer(tmp_path / "full")
    full.train()
    tiny_trainer(tmp_path / "cut", hooks=[StopAfter(stop)]).train()
    resumed = tiny_trainer(tmp_path / "cut")
    checkpointer_of(resumed).resume(resumed, read_checkpoint(list_checkpoints(tmp_path / "cut")[-1]))
    assert resumed.step == stop
    resumed.train()
    assert records(tmp_path / "cut") == records(tmp_path / "full")
    expected = full.method.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.method.state_dict().items())


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    # In float32: products in bf16 round differently in batches of another size.
    settings = {"num_steps": 3, "precision": Precision.fp32}
    full, parts = (tiny_trainer(tmp_path / str(n), gradient_accumulation_steps=n, **settings) for n in (1, 4))
    full.train()
    parts.train()
    for a, b in zip(records(tmp_path / "1"), records(tmp_path / "4"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["samples"] == b["samples"]


def test_ema_weights_are_updated_once_a_step_after_the_optimizer(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, num_steps=1)
    (ema,) = trainer.emas
    before = ema.copy.module.norm.weight.clone()
    trainer.train()
    momentum = records(tmp_path)[0]["ema_momentum"]
    assert momentum == 0.996
    expected = momentum * before + (1 - momentum) * ema.online.norm.weight
    torch.testing.assert_close(ema.copy.module.norm.weight, expected, atol=5e-7, rtol=0)
    assert not torch.equal(ema.copy.module.norm.weight, before)


def test_a_clip_norm_bounds_the_update(tmp_path: Path) -> None:
    norms = []

    class GradientNorm(Hook):
        name = "gradient_norm"

        def before_train(self, trainer: Trainer) -> None:
            trainer.optimization.optimizer.register_step_pre_hook(
                lambda optimizer, *_: norms.append(
                    torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm().item()
                )
            )

    tiny_trainer(tmp_path, hooks=[GradientNorm()], num_steps=2, optim=AdamWConfig(clip_grad_norm=1e-3)).train()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)
    assert records(tmp_path)[0]["grad_norm"] > 1e-2  # the logged one is from before clipping


@pytest.mark.parametrize("name", METHODS.names())
def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_reproduced_from_the_file(tmp_path: Path, name: str) -> None:
    class Poison(Hook):
        """Makes the loss of the third step infinite, and keeps the weights before."""

        name = "poison"

        def before_step(self, trainer: Trainer) -> None:
            if trainer.step == 2:
                forward = trainer.method.forward

                def poisoned(batch: Batch, step: Step) -> Output:
                    output = forward(batch, step)
                    self.loss = output.loss.detach().clone()
                    return replace(output, losses={"poisoned": output.loss * float("inf")})

                trainer.method.forward = poisoned

    poison, masks = Poison(), METHODS.get(name).default_masks
    method = build_method(
        tiny_method(name).config,
        replace(TINY_BACKBONE, drop_path=0.3),
        tiny_method(name).target and tiny_method(name).target.config,
        seed=0,
    )
    hooks, settings = [OffendingStep(tmp_path), poison], {"precision": Precision.fp32, "num_steps": 5}
    trainer = tiny_trainer(tmp_path, method=method, masks=masks, hooks=hooks, **settings)
    with pytest.raises(NonFiniteLoss, match="step 3"):
        trainer.train()
    saved = StepFile.read(tmp_path / "non_finite_step_00000003_rank_0.safetensors")
    assert saved.step.progress.step == 2 and saved.batch.masks.keys() == trainer.data.masks(2).keys()
    del trainer.method.forward  # the weights are still those that met the step
    assert torch.equal(saved.loss(trainer.method, trainer.data), poison.loss)
    assert list_checkpoints(tmp_path) == []


def test_hooks_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    class Late(Hook):
        name = "late"
        follows = ("checkpointer",)

    with pytest.raises(ValueError, match="hook 'late' must come after 'checkpointer'"):
        tiny_trainer(tmp_path, hooks=[Late()])
    with pytest.raises(ValueError, match="every hook needs a name of its own"):
        tiny_trainer(tmp_path, hooks=[StopAfter(1), StopAfter(2)])


def test_a_loss_that_couples_images_is_not_accumulated(tmp_path: Path) -> None:
    method = tiny_method("ijepa")
    method.couples_images = True
    with pytest.raises(ValueError, match=r"accumulation_steps=2: the loss of IJEPA couples all images"):
        tiny_trainer(tmp_path, method=method, gradient_accumulation_steps=2)
    tiny_trainer(tmp_path, method=method)


def test_unreadable_samples_are_named_and_stop_the_run_only_past_the_limit(tmp_path: Path) -> None:
    class Broken(Noise):
        pass

    def with_corrupt(trainer: Trainer) -> None:
        batch_of = trainer.data.batch

        def batch(step: int) -> Batch:
            return replace(batch_of(step), corrupt=(Corrupt(f"bad_{step}.jpg", "truncated"),))

        trainer.data.batch = batch

    tolerant = tiny_trainer(tmp_path / "a", hooks=[CorruptSamples(tmp_path / "a.txt", 0.2)], source=Broken())
    with_corrupt(tolerant)
    tolerant.train()
    assert "bad_3.jpg\ttruncated" in (tmp_path / "a.txt").read_text()
    strict = tiny_trainer(tmp_path / "b", hooks=[CorruptSamples(tmp_path / "b.txt", 0.01)], source=Broken())
    with_corrupt(strict)
    with pytest.raises(ValueError, match=r"2 of 16 samples .* loader.max_corrupt_fraction=0.01"):
        strict.train()


@pytest.mark.parametrize(("per_step", "survives"), [(1, True), (30, False)])
def test_by_default_a_hundred_unreadable_samples_in_an_epoch_do_not_end_a_run(
    tmp_path: Path, per_step: int, survives: bool
) -> None:
    hook = CorruptSamples(tmp_path / "report.txt", None)
    trainer = tiny_trainer(tmp_path / "run", hooks=[hook], num_steps=6)
    batch_of = trainer.data.batch
    corrupt = tuple(Corrupt(f"bad\n{number}.jpg", "it can't\tbe read") for number in range(per_step))
    trainer.data.batch = lambda step: replace(batch_of(step), corrupt=corrupt)
    if survives:
        trainer.train()
    else:
        with pytest.raises(ValueError, match=r"120 of 32 samples .* raise loader\.max_corrupt_fraction"):
            trainer.train()
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert len(lines) == per_step and lines[0] == r"step 1	bad\n0.jpg	it can't\tbe read"
    again = CorruptSamples(tmp_path / "report.txt", None)  # as after a resume
    again.note("step 9", corrupt, "")
    assert (tmp_path / "report.txt").read_text().splitlines() == lines


def test_hooks_do_not_change_the_training(tmp_path: Path) -> None:
    class Greedy(Hook):
        name = "greedy"

        def after_step(self, trainer: Trainer, result: StepResult) -> None:
            torch.rand(7)
            with torch.no_grad():
                trainer.method.eval()(result.batch, Step.of(trainer.method, result.progress))

    tiny_trainer(tmp_path / "with", hooks=[Greedy()]).train()
    tiny_trainer(tmp_path / "without").train()
    assert records(tmp_path / "with") == records(tmp_path / "without")


def test_an_error_in_a_run_reaches_every_hook(tmp_path: Path) -> None:
    seen = []

    class Watching(Hook):
        name = "watching"

        def on_exception(self, trainer: Trainer, error: BaseException) -> None:
            seen.append(str(error))

    class Failing(Hook):
        name = "failing"

        def after_step(self, trainer: Trainer, result: StepResult) -> None:
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        tiny_trainer(tmp_path, hooks=[Watching(), Failing()]).train()
    assert seen == ["disk on fire"]


def test_a_dead_worker_is_reported_wherever_the_trainer_is(tmp_path: Path) -> None:
    class Interrupted(Hook):
        name = "interrupted"

        def after_step(self, trainer: Trainer, result: StepResult) -> None:
            # What torch's handler of SIGCHLD raises, in the middle of anything.
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(LoaderError, match=r"a data worker process died .* killed by signal"):
        tiny_trainer(tmp_path, hooks=[Interrupted()]).train()


def test_a_batch_that_does_not_divide_names_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"batch_size=10 is no multiple of 2 ranks .* nearest: 8, 16"):
        BatchPlan(batch_size=10, world_size=2, gradient_accumulation_steps=4)


def test_an_epoch_has_the_whole_steps_of_the_data() -> None:
    # 300 epochs of ImageNet-1k at 2048 images: 187,500 steps in the reference.
    assert run_length(TrainerConfig(batch_size=2048, epochs=300), 1_281_167) == (187_500, 625)
    assert run_length(TrainerConfig(batch_size=64, epochs=2), 40) == (2, 1)
    assert run_length(TrainerConfig(batch_size=10, num_steps=7), 40) == (7, 4)


def test_the_samples_hash_depends_on_what_was_consumed(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a", num_steps=2).train()
    tiny_trainer(tmp_path / "b", num_steps=2, source=Noise(41)).train()
    assert records(tmp_path / "a")[-1]["samples"] != records(tmp_path / "b")[-1]["samples"]


def test_metrics_hold_what_the_design_promises(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=1).train()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    promised = "step epoch loss lr weight_decay ema_momentum grad_norm images_per_second data_wait samples memory_bytes"
    of_method = "visible_patches target_patches target_std target_cosine prediction_std prediction_cosine"
    assert {*promised.split(), *of_method.split()} == set(record)


def test_data_and_trainer_agree_on_the_batch() -> None:
    method = tiny_method("ijepa")
    assert tiny_data(method, ALONE, 8).batch(0).num_images == 8
