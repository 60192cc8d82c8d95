"""The collapse alarm: induced collapses set it off within a stated number of steps, healthy runs never do."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import METHODS, TINY_BACKBONE, TINY_METHOD, tiny_method
from tiny_runs import Noise, StopAfter, checkpointer_of, tiny_trainer
from torch import Tensor, nn

from ssl_zoo.collapse import DISTRIBUTION_LIMITS, FEATURE_LIMITS, feature_metrics
from ssl_zoo.data.batch import Batch
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.engine.alarm import Collapse, CollapseAlarm
from ssl_zoo.engine.checkpoint.state import list_checkpoints, read_checkpoint
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.engine.settings import AlarmConfig, AlarmPolicy
from ssl_zoo.engine.trainer import Hook, Trainer
from ssl_zoo.masks import Masks
from ssl_zoo.method import EmaConfig, Limit, Method, Output, Step, ViT, build_method
from ssl_zoo.nn import normalized_entropy, take
from ssl_zoo.schedules import ScheduleShape
from ssl_zoo.targets import Target, TargetConfig, TeacherConfig
from ssl_zoo.targets.features import Normalization

IJEPA = METHODS.get("ijepa")
CONFIG = METHODS.config_of("ijepa")(**TINY_METHOD["ijepa"])
STOP = AlarmConfig(policy=AlarmPolicy.stop)


def ijepa(target: TargetConfig) -> Method:
    return build_method(CONFIG, TINY_BACKBONE, target, seed=0)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def alarm_step(run: Path, method: Method, num_steps: int, **settings: object) -> int | None:
    """The step at which the alarm stops a run that is logged every step; None if it never does."""
    settings = {"batch_size": 16, "optim": AdamWConfig(lr=3e-3, warmup_epochs=0.1), **settings}
    trainer = tiny_trainer(run, method=method, alarm=CollapseAlarm(STOP), num_steps=num_steps, **settings)
    try:
        trainer.train()
    except Collapse:
        return trainer.step
    return None


class Constant(Target):
    """The same vector for every image."""

    dim = 48

    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Tensor:
        return torch.linspace(-1, 1, self.dim).expand(*masks.targets.shape, -1)

    def collapse_limits(self) -> Sequence[Limit]:
        return FEATURE_LIMITS


class Leaking(IJEPA):
    """I-JEPA without EMA and stop-gradient: the encoder may move its targets towards its predictions."""

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        targets = take(F.layer_norm(self.encoder(images), (48,)), masks.targets)
        _, predictions, _ = self.predict(images, masks)
        loss = F.smooth_l1_loss(predictions, masks.paired(targets))
        return Output({"prediction": loss}, feature_metrics(predictions, targets.detach(), masks, 16))


class Prototypes(IJEPA):
    """Cross-entropy with a teacher's distribution over 64 prototypes.

    Args:
        temperature: of the teacher.
        bias: added to the logit of the first prototype, as a centre would that went astray.
    """

    def __init__(self, temperature: float, bias: float = 0.0) -> None:
        base = tiny_method("ijepa")
        super().__init__(CONFIG, base.encoder, base.target)
        self.head = nn.Linear(48, 64, bias=False)
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(0))
        self.temperature, self.bias = temperature, bias * F.one_hot(torch.tensor(0), 64)

    def forward(self, batch: Batch, step: Step) -> Output:
        images = batch.views["image"]
        student = self.head(F.normalize(self.encoder(images).mean(dim=1), dim=-1))
        with torch.no_grad():
            logits = self.head(F.normalize(self.target.encoder(images).mean(dim=1), dim=-1)) + self.bias
            teacher = (logits / self.temperature).softmax(dim=-1)
        metrics = {
            "teacher_entropy": normalized_entropy(teacher),
            "prototype_entropy": normalized_entropy(teacher.mean(dim=0)),
        }
        return Output({"prototypes": F.cross_entropy(student / 0.1, teacher) + 0 * self.unused()}, metrics)

    def collapse_limits(self) -> Sequence[Limit]:
        return DISTRIBUTION_LIMITS

    def unused(self) -> Tensor:
        return sum(parameter.sum() for parameter in self.predictor.parameters())


def test_a_gradient_into_the_target_sets_it_off_within_200_steps(tmp_path: Path) -> None:
    base = ijepa(TeacherConfig(ema=EmaConfig(0.0, 0.0)))
    leaking = Leaking(CONFIG, base.encoder, base.target)
    step = alarm_step(tmp_path, leaking, num_steps=200)
    assert step is not None and records(tmp_path)[-1]["loss"] < 0.2 * records(tmp_path)[0]["loss"]


@pytest.mark.parametrize(("regularizer", "collapses"), [(None, True), ("sigreg", False), ("visreg", False)])
def test_online_targets_without_a_stop_gradient_set_it_off_unless_a_regularizer_holds_features_apart(
    tmp_path: Path, regularizer: str | None, collapses: bool
) -> None:
    online = {"name": "online", "stop_gradient": False}
    method = tiny_method("ijepa", regularizer=regularizer, target_overrides=online)
    assert (alarm_step(tmp_path, method, num_steps=40) is not None) is collapses


def test_constant_targets_set_it_off_at_the_patience(tmp_path: Path) -> None:
    method = ijepa(TeacherConfig())
    method.target = Constant()
    assert alarm_step(tmp_path, method, num_steps=9) == 5


@pytest.mark.parametrize("normalization", Normalization)
def test_a_teacher_of_zeros_sets_it_off_at_the_patience(tmp_path: Path, normalization: Normalization) -> None:
    method = ijepa(TeacherConfig(ema=EmaConfig(1.0), normalization=normalization))
    with torch.no_grad():
        for parameter in method.target.encoder.parameters():
            parameter.zero_()
    assert alarm_step(tmp_path, method, num_steps=9) == 5


@pytest.mark.parametrize("normalization", Normalization)
def test_a_teacher_that_sees_positions_but_no_image_sets_it_off(tmp_path: Path, normalization: Normalization) -> None:
    method = ijepa(TeacherConfig(ema=EmaConfig(1.0), normalization=normalization))
    nn.init.zeros_(method.target.encoder.module.patch_embed.proj.weight)
    assert alarm_step(tmp_path, method, num_steps=9) == 5
    assert all(record["target_std"] > 0.01 for record in records(tmp_path))  # above its limit: it tells nothing of it


@pytest.mark.parametrize(
    ("temperature", "bias", "metric"), [(100.0, 0.0, "teacher_entropy"), (1e-4, 9.0, "prototype_entropy")]
)
def test_degenerate_distributions_set_it_off_at_the_patience(
    tmp_path: Path, temperature: float, bias: float, metric: str
) -> None:
    trainer = tiny_trainer(tmp_path, method=Prototypes(temperature, bias), alarm=CollapseAlarm(STOP), num_steps=9)
    with pytest.raises(Collapse, match=rf"at step 5: the teacher.*{metric}="):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"warmup_teacher_temp": 10.0, "teacher_temp": 10.0}, "teacher_entropy"),
        ({"center_momentum": 1.0, "warmup_teacher_temp": 1e-3, "teacher_temp": 1e-3}, "prototype_entropy"),
    ],
)
def test_dino_without_sharpening_or_centering_collapses_in_its_own_way(
    tmp_path: Path, settings: dict[str, float], metric: str
) -> None:
    method = tiny_method("dino", ema=EmaConfig(0.9, schedule=ScheduleShape.cosine), **settings)
    with pytest.raises(Collapse, match=metric):
        tiny_trainer(tmp_path, method=method, masks=None, alarm=CollapseAlarm(STOP), num_steps=200).train()


def test_distributions_between_both_extremes_are_healthy(tmp_path: Path) -> None:
    assert alarm_step(tmp_path, Prototypes(temperature=1.0), num_steps=12) is None
    assert {record["collapse"] for record in records(tmp_path)} == {0.0}


@pytest.mark.slow
# Not DINO and iBOT, which are not healthy at this size: their teachers drift towards uniform distributions.
@pytest.mark.parametrize("name", sorted({*METHODS.names()} - {"dino", "ibot"}))
def test_no_healthy_run_is_suspicious_at_any_step(tmp_path: Path, name: str) -> None:
    scenes = SOURCES.build(SOURCES.config_of("scenes")(image_size=16, num_train=320), Split.train)
    masks = METHODS.get(name).default_masks
    method = tiny_method(name)
    assert alarm_step(tmp_path, method, num_steps=100, source=scenes, masks=masks, checkpoint_every=100) is None
    assert len(records(tmp_path)) == 100
    assert {record.get("collapse", 0.0) for record in records(tmp_path)} == {0.0}


def test_equal_latents_of_cae_set_it_off(tmp_path: Path) -> None:
    method = tiny_method("cae")
    nn.init.zeros_(method.encoder.patch_embed.proj.weight)  # of positions alone
    method.encoder.patch_embed.proj.weight.requires_grad_(False)
    assert alarm_step(tmp_path, method, num_steps=12, masks="blockwise") is not None


def test_flat_images_do_not_set_it_off_where_pixels_are_predicted(tmp_path: Path) -> None:
    class Flat(Noise):
        def image(self, index: int) -> Tensor:
            return torch.full((3, 16, 16), 200, dtype=torch.uint8)

    assert alarm_step(tmp_path, tiny_method("mae"), num_steps=12, masks="random", source=Flat()) is None
    assert records(tmp_path)[-1]["target_cosine"] > 0.999 and "collapse" not in records(tmp_path)[-1]


def always(**settings: object) -> AlarmConfig:
    """Limits that every run is beyond."""
    return AlarmConfig(**{"limits": {"target_cosine": 0.0, "target_std": 9.0}, "patience": 3, **settings})


def test_the_alarm_warns_once_and_the_run_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tiny_trainer(tmp_path, alarm=CollapseAlarm(always())).train()
    (warning,) = [r.getMessage() for r in caplog.records if "collapse" in r.getMessage()]
    assert (
        warning.startswith("collapse at step 3: ") and "above 0 in 3 records in a row; monitor.alarm.limits" in warning
    )
    assert "targets.ema.momentum" in warning and "monitor.alarm.policy=stop" in warning
    assert [r["collapse"] for r in records(tmp_path)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_a_stopped_run_is_saved_at_that_step(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, alarm=CollapseAlarm(always(policy=AlarmPolicy.stop)), checkpoint_every=100)
    with pytest.raises(Collapse, match=r"monitor\.alarm\.policy=warn resumes from it"):
        trainer.train()
    (checkpoint,) = list_checkpoints(tmp_path)
    assert read_checkpoint(checkpoint).step == trainer.step == 3


def test_no_policy_looks_at_nothing(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, alarm=CollapseAlarm(always(policy=AlarmPolicy.none))).train()
    assert "collapse" not in records(tmp_path)[-1]


def test_a_record_within_the_limits_resets_the_count(tmp_path: Path) -> None:
    alarm, trainer = CollapseAlarm(AlarmConfig()), tiny_trainer(tmp_path)
    cosines = [0.995, 0.995, 0.9, 0.995, float("nan"), 0.995]
    alarm.before_train(trainer)
    values = [alarm.examine({"step": 1, "target_cosine": cosine})["collapse"] for cosine in cosines]
    assert values == pytest.approx([0.2, 0.4, 0, 0.2, 0, 0.2])


def test_a_resumed_run_continues_the_count(tmp_path: Path) -> None:
    def trainer(*hooks: Hook) -> Trainer:
        return tiny_trainer(tmp_path, alarm=CollapseAlarm(always(policy=AlarmPolicy.stop, patience=5)), hooks=hooks)

    trainer(StopAfter(3)).train()
    resumed = trainer()
    checkpointer_of(resumed).resume(resumed, read_checkpoint(list_checkpoints(tmp_path)[-1]))
    with pytest.raises(Collapse, match="at step 5"):
        resumed.train()


def test_a_patience_below_one_and_a_limit_of_an_unknown_metric_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor\.alarm\.patience=-1"):
        AlarmConfig(patience=-1)
    trainer = tiny_trainer(tmp_path, alarm=CollapseAlarm(AlarmConfig(limits={"teacher_entropy": 0.5})))
    with pytest.raises(ValueError, match="watches no 'teacher_entropy'; it watches target_cosine, target_std"):
        trainer.train()
