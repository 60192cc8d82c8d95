"""Weights & Biases, offline unless the configuration asks for a connection."""

import json
import os
import uuid
from dataclasses import dataclass
from importlib.util import find_spec

from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.engine.loggers.base import LOGGERS, LoggedRun, Logger, LoggerConfig, Record
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.settings import setting


@dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases; without a connection by default."""

    mode: str = setting(
        "offline", "offline: files for `wandb sync`; online: connects to its server", one_of=("offline", "online")
    )
    project: str = setting("ssl_zoo", "project of the runs")
    entity: str | None = setting(None, "user or team; null = your default one")
    group: str | None = setting(None, "group of the run; null = the folder of the run directory")
    tags: list[str] = setting([], "tags of the run")


@LOGGERS.register("wandb", WandbConfig)
class Wandb(Logger):
    """Weights & Biases (extra wandb): offline by default, in the wandb folder of the run directory."""

    config: WandbConfig

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        super().__init__(config, run)
        if find_spec("wandb") is None:
            raise ValueError("monitor.loggers: wandb is not installed: pip install 'ssl-zoo[wandb]'")
        self._state = run.path / "wandb" / "state.json"

    def open(self, trainer: Trainer) -> None:
        import wandb  # a second to import

        is_online = self.config.mode == "online"
        state = json.loads(self._state.read_text()) if trainer.step and self._state.is_file() else {}
        self._id = state.get("id") or uuid.uuid4().hex[:8]
        # A resumed run repeats the steps after its checkpoint with equal values, and W&B takes none back: what an
        # earlier start has logged is not logged again.
        self._logged: dict[str, int] = state.get("logged", {})
        self._before = dict(self._logged)
        self._state.parent.mkdir(parents=True, exist_ok=True)
        if not is_online:
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would connect even offline
        self._wandb = wandb
        self._run = wandb.init(
            id=self._id,
            resume="allow",
            dir=str(self.run.path),
            mode=self.config.mode,
            project=self.config.project,
            entity=self.config.entity,
            name=self.run.path.name,
            group=self.config.group or self.run.path.absolute().parent.name,
            tags=self.config.tags,
            config={**self.run.values, "command": self.run.command},
            settings=wandb.Settings(
                console="off",
                quiet=True,
                silent=True,
                x_disable_stats=not is_online,
                x_disable_machine_info=not is_online,  # asks a cloud's metadata server
                x_save_requirements=False,
                save_code=False,
            ),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        self._log(record["step"], self.run.tags.values(record))
        # Replaced at once, but not flushed to the disk at every log step.
        temporary = self._state.with_suffix(".tmp")
        temporary.write_text(json.dumps({"id": self._id, "logged": self._logged}))
        os.replace(temporary, self._state)

    def image(self, name: str, image: UInt8[Tensor, "3 H W"], step: int) -> None:
        pixels = image.permute(1, 2, 0).numpy()
        self._log(step, {f"images/{name}": self._wandb.Image(pixels)})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, values: dict[str, object]) -> None:
        new = {tag: value for tag, value in values.items() if step > self._before.get(tag, -1)}
        if new:
            self._run.log({**new, "step": step})
            self._logged |= dict.fromkeys(new, step)
