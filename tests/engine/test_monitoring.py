"""Monitoring of a run: TensorBoard, visualizations, terminal."""

import io
from pathlib import Path

from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import tiny_trainer

from ssl_zoo.engine.hooks import Visualizations
from ssl_zoo.engine.metrics import TensorBoard
from ssl_zoo.engine.progress import ProgressBar


def test_tensorboard_gets_scalars_images_and_the_config(tmp_path: Path) -> None:
    tensorboard = TensorBoard(tmp_path / "tensorboard", "seed: 0")
    hooks = [Visualizations(tmp_path / "figures", 2, tensorboard)]
    tiny_trainer(tmp_path, num_steps=3, writers=[tensorboard], hooks=hooks).train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    documented = {
        "loss",
        "lr",
        "weight_decay",
        "ema_momentum",
        "grad_norm",
        "images_per_second",
        "data_wait",
        "memory_bytes",
    }
    assert documented | {"visible_patches", "target_patches", "target_std", "prediction_std"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert tags["images"] == ["masks", "features"] and "config/text_summary" in tags["tensors"]


def test_visualizations_are_files_of_their_step(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=3, hooks=[Visualizations(tmp_path / "figures", 2, None, num_images=3)]).train()
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == [f"{name}_step_0000000{step}.png" for name in ("features", "masks") for step in (1, 2, 3)]
    # Columns: image, one context, four targets; rows: three images; 16 pixels enlarged to 96, gaps of two.
    with Image.open(tmp_path / "figures" / names[-1]) as image:
        assert image.size == (6 * 98 + 2, 3 * 98 + 2)


def test_without_a_terminal_progress_is_plain_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = ProgressBar(Console(file=stream, width=200), live=True)
    tiny_trainer(tmp_path, num_steps=2, writers=[progress]).train()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and lines[1].startswith("step 2/2  loss ") and "images/s" in lines[1] and "data" in lines[1]


def test_on_a_terminal_progress_is_a_bar(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = ProgressBar(Console(file=stream, width=200, force_terminal=True), live=True)
    tiny_trainer(tmp_path, num_steps=2, writers=[progress]).train()
    assert "2/2" in stream.getvalue() and "━" in stream.getvalue()
