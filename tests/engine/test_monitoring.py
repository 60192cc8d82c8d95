"""Monitoring of a run: TensorBoard, visualizations, terminal."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tiny_runs import StopAfter, checkpointer_of, logger, tiny_trainer

from ssl_zoo.collapse import METRIC_GROUPS
from ssl_zoo.engine.checkpoint.folders import checkpoint_path
from ssl_zoo.engine.checkpoint.state import read_checkpoint
from ssl_zoo.engine.hooks import Visualizations
from ssl_zoo.engine.loggers import Tags
from ssl_zoo.engine.progress import ProgressBar, next_probe
from ssl_zoo.engine.status import ScoreHistory


def events_of(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()


def test_tensorboard_gets_scalars_in_groups_images_and_texts(tmp_path: Path) -> None:
    tensorboard = logger("tensorboard", tmp_path, Tags(METRIC_GROUPS))
    hooks = [Visualizations(tmp_path / "figures", 2, [tensorboard])]
    tiny_trainer(tmp_path, num_steps=3, writers=[tensorboard], hooks=hooks).train()
    events = events_of(tmp_path)
    tags = events.Tags()
    documented = {
        *("train/loss", "train/epoch", "optim/lr", "optim/weight_decay", "optim/grad_norm", "ema/momentum"),
        *("speed/images_per_second", "speed/data_wait", "system/memory_gib", "health/target_std"),
        *("health/target_cosine", "health/prediction_std", "masks/visible_patches", "masks/target_patches"),
    }
    assert documented <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert tags["images"] == ["images/masks", "images/features"] and tags["histograms"] == []
    texts = [tag for tag in tags["tensors"] if tag.startswith("run/")]
    assert texts == ["run/command/text_summary", "run/config/text_summary"]
    assert "hparams" in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name


def test_tensorboard_shows_every_score_with_that_at_random_initialisation(tmp_path: Path) -> None:
    tensorboard = logger("tensorboard", tmp_path)
    tensorboard.open(tiny_trainer(tmp_path))
    tensorboard.write({"step": 0, "epoch": 0.0, "knn20": 0.25, "knn20_random_init": 0.25})
    tensorboard.close()
    [layout] = events_of(tmp_path).Tensors("custom_scalars__config__")
    scores = Layout.FromString(layout.tensor_proto.string_val[0]).category[0]
    assert scores.chart[0].title == "knn20 (flat line: random init)"
    assert list(scores.chart[0].multiline.tag) == ["^probe/knn20$", "^random_init/knn20$"]


def test_a_resumed_run_has_every_point_once_in_tensorboard(tmp_path: Path) -> None:
    """It is stopped at step 5 and resumes from the checkpoint of step 3."""
    tiny_trainer(tmp_path, writers=[logger("tensorboard", tmp_path)], hooks=[StopAfter(5)]).train()
    resumed = tiny_trainer(tmp_path, writers=[logger("tensorboard", tmp_path)])
    checkpointer_of(resumed).resume(resumed, read_checkpoint(checkpoint_path(tmp_path, 3)))
    resumed.train()
    events = events_of(tmp_path)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert len(events.Tensors("run/config/text_summary")) == 1


def test_histograms_of_parameters_are_written_where_asked_for(tmp_path: Path) -> None:
    tensorboard = logger("tensorboard", tmp_path, histograms_every=2)
    tiny_trainer(tmp_path, num_steps=3, writers=[tensorboard]).train()
    [tag, *_] = events_of(tmp_path).Tags()["histograms"]
    assert tag.startswith("parameters/") and [event.step for event in events_of(tmp_path).Histograms(tag)] == [2]


def test_visualizations_are_files_of_their_step(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=3, hooks=[Visualizations(tmp_path / "figures", 2, num_images=3)]).train()
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == [f"{name}_step_0000000{step}.png" for name in ("features", "masks") for step in (1, 2, 3)]
    # Columns: image, one context, four targets; rows: three images; 16 pixels enlarged to 128, texts above.
    with Image.open(tmp_path / "figures" / names[-1]) as image:
        assert 6 * 128 < image.size[0] < 7 * 128 and 3 * 128 < image.size[1] < 6 * 128


def test_without_a_terminal_progress_is_plain_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = ProgressBar(Console(file=stream, width=200), live=True)
    tiny_trainer(tmp_path, num_steps=2, writers=[progress]).train()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and lines[1].startswith("step 2/2  loss ") and "images/s" in lines[1] and "data" in lines[1]


def test_lines_have_the_next_probe_and_the_last_and_best_score(tmp_path: Path) -> None:
    stream, scores = io.StringIO(), ScoreHistory()
    times = SimpleNamespace(every_steps=4, at_start=True, at_end=True)
    progress = ProgressBar(Console(file=stream, width=200), True, scores, times)
    trainer = tiny_trainer(tmp_path, num_steps=9)
    trainer.step = 4
    scores.add({"step": 4, "epoch": 1.0, "knn5": 0.5, "knn5_random_init": 0.25})
    progress.open(trainer)
    training = {"epoch": 1.2, "loss": 1.0, "lr": 0.1, "images_per_second": 80.0, "data_wait": 0.01}
    progress.write({"step": 5, **training})
    scores.add({"step": 8, "epoch": 2.0, "knn5": 0.4})
    progress.write({"step": 8, "epoch": 2.0, "knn5": 0.4})
    progress.write({"step": 9, **training})
    resumed, first, probe, last = stream.getvalue().splitlines()
    assert resumed == "resumes from step 4 of 9, epoch 0.80; knn5 50.0% (best 50.0%)"
    assert first.endswith("next probe 8  knn5 50.0% (best 50.0%)")
    assert probe == "step 8  knn5 40.0% (best 50.0%, random init 25.0%)"
    assert last.endswith("left 00:00:00  knn5 40.0% (best 50.0%)")


@pytest.mark.parametrize(
    ("every", "at_end", "step", "following"),
    [(4, True, 3, 4), (4, True, 4, 8), (4, True, 8, 9), (4, False, 8, None), (0, True, 0, 9), (0, False, 0, None)],
)
def test_the_next_probe(every: int, at_end: bool, step: int, following: int | None) -> None:
    times = SimpleNamespace(every_steps=every, at_start=True, at_end=at_end)
    assert next_probe(times, step, 9) == following and next_probe(None, step, 9) is None


def test_on_a_terminal_progress_is_a_bar(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = ProgressBar(Console(file=stream, width=200, force_terminal=True), live=True)
    tiny_trainer(tmp_path, num_steps=2, writers=[progress]).train()
    assert "2/2" in stream.getvalue() and "━" in stream.getvalue()
