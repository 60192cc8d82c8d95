"""TensorBoard's event files are in the run directory itself: ``tensorboard --logdir runs`` shows runs by their path."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.engine.loggers.base import LOGGERS, Logger, LoggerConfig, Record
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.scores import BASELINE_SUFFIX
from ssl_zoo.settings import setting

if TYPE_CHECKING:
    pass

EVENT_FILES = "events.out.tfevents.*"
# Settings of a machine or of the logs, by which nobody filters runs.
_NO_HYPERPARAMETERS = ("output_dir", "loader.", "monitor.", "probe.", "data.root", "data.path", "data.cache")
_CHARTS = {
    "Training": {
        "loss and its terms": ["^train/loss$", "^train/losses/"],
        "learning rate": ["^optim/lr$"],
        "gradient norm": ["^optim/grad_norm$"],
    },
    "Collapse": {
        "cosine similarity between images (near 1: collapsed)": ["^health/.*cosine$"],
        "standard deviation (near 0: collapsed)": ["^health/.*std$"],
        "entropy": ["^health/.*entropy$"],
        "collapse alarm (1: raised)": ["^health/collapse$"],
    },
    "Speed": {
        "images per second": ["^speed/images_per_second$"],
        "share of the time spent waiting for data": ["^speed/data_wait$"],
        "memory in GiB": ["^system/memory_gib$"],
    },
}


@dataclass
class TensorBoardConfig(LoggerConfig):
    """TensorBoard's event files."""

    histograms_every: int = setting(0, "steps between histograms of all parameters; 0 = none", at_least=0)


@LOGGERS.register("tensorboard", TensorBoardConfig)
class TensorBoard(Logger):
    """TensorBoard: curves in groups, images, the config and the command as text, hyperparameters."""

    config: TensorBoardConfig

    def open(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        is_new = trainer.step == 0 or not any(self.run.path.glob(EVENT_FILES))
        # Readers drop what an earlier start has logged from this step on.
        self._writer: SummaryWriter = SummaryWriter(
            str(self.run.path), purge_step=trainer.step + 1 if trainer.step else 0
        )
        self._method = trainer.method
        self._scores: list[str] = []
        if is_new:
            self._writer.add_text("run/command", f"    {self.run.command}", trainer.step)
            self._writer.add_text("run/config", f"```yaml\n{self.run.config_text}\n```", trainer.step)
            self._add_hyperparameters()

    def write(self, record: Record) -> None:
        step = record["step"]
        for tag, value in self.run.tags.values(record).items():
            self._writer.add_scalar(tag, value, step)
        if "loss" not in record:
            self._add_charts(record)
        elif self.config.histograms_every and step % self.config.histograms_every == 0:
            self._add_histograms(step)

    def image(self, name: str, image: UInt8[Tensor, "3 H W"], step: int) -> None:
        self._writer.add_image(f"images/{name}", image, step)

    def close(self) -> None:
        self._writer.close()

    def _add_hyperparameters(self) -> None:
        """Write the configuration for the HParams dashboard, which puts first what differs between runs.

        ``SummaryWriter.add_hparams`` would make a further run of it.
        """
        from torch.utils.tensorboard.summary import hparams

        values = {
            key: value if type(value) in (int, float, str) else str(value)
            for key, value in self.run.values.items()
            if value is not None and not key.startswith(_NO_HYPERPARAMETERS)
        }
        _, start_of_session, _ = hparams(values, {})
        self._writer._get_file_writer().add_summary(start_of_session)

    def _add_charts(self, record: Record) -> None:
        """Write the charts of the Custom Scalars dashboard: each score with that at random initialisation."""
        new = {name for name in record if name not in ("step", "epoch") and not name.endswith(BASELINE_SUFFIX)}
        if new <= set(self._scores):
            return
        self._scores += [name for name in record if name in new - set(self._scores)]
        layout: dict[str, dict[str, list]] = {}
        for name in self._scores:
            tag = self.run.tags.tag(name, is_training=False)
            both = [f"^{re.escape(tag)}$", f"^{re.escape(self.run.tags.baseline(name))}$"]
            charts = layout.setdefault(f"Scores: {tag.partition('/')[0]}", {})
            charts[f"{name} (flat line: random init)"] = ["Multiline", both]
        for category, charts in _CHARTS.items():
            layout[category] = {title: ["Multiline", tags] for title, tags in charts.items()}
        self._writer.add_custom_scalars(layout)

    def _add_histograms(self, step: int) -> None:
        for name, parameter in self._method.named_parameters():
            # A sharded parameter shows the part of the main process.
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            self._writer.add_histogram(f"parameters/{name}", local.detach().float().cpu(), step)
