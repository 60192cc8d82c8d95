"""The root of the configuration: which sections there are, and which of them are chosen as a whole."""

import dataclasses
from dataclasses import dataclass
from typing import Optional, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ssl_zoo.data.loader import LoaderConfig
from ssl_zoo.data.sources import SourceConfig
from ssl_zoo.engine.optim import OptimConfig
from ssl_zoo.engine.settings import MonitorConfig, TrainerConfig
from ssl_zoo.eval.probe import ProbeConfig, probe_config_class
from ssl_zoo.masks import MasksConfig
from ssl_zoo.method import MethodConfig
from ssl_zoo.nn import BackboneConfig
from ssl_zoo.regularizers import RegularizerConfig
from ssl_zoo.settings import setting
from ssl_zoo.targets import TargetConfig
from ssl_zoo.views import ViewSetConfig

SCHEMA = "schema"  # the name under which a defaults list refers to Config


@dataclass
class Config:
    """Everything that decides a run; each section's keys are documented where its class is."""

    seed: int = setting(0, "the one source of randomness: order, crops, masks and initial weights follow from it")
    output_dir: str = setting("", "run directory; by default runs/<folder of the recipe>/<name of the recipe>")
    method: MethodConfig = setting(MISSING, "the self-supervised objective")
    backbone: BackboneConfig = setting(MISSING, "the encoder")
    views: ViewSetConfig = setting(MISSING, "which views of an image a batch holds, and their augmentations")
    masks: Optional[MasksConfig] = setting(None, "which patches are seen and which predicted")  # noqa: UP045
    targets: Optional[TargetConfig] = setting(None, "what is predicted")  # noqa: UP045
    regularizer: Optional[RegularizerConfig] = setting(None, "a loss term on features, beside the method's")  # noqa: UP045
    data: SourceConfig = setting(MISSING, "where images come from")
    loader: LoaderConfig = setting(LoaderConfig(), "how images are decoded and batched")
    optim: OptimConfig = setting(MISSING, "optimizer, learning rate, weight decay, clipping")
    trainer: TrainerConfig = setting(TrainerConfig(), "budget, batch and machine")
    monitor: MonitorConfig = setting(MonitorConfig(), "what is reported while the run goes on")
    probe: ProbeConfig = setting(ProbeConfig(), "evaluation of frozen features during and after the run")


def store_schema() -> None:
    """Store ``Config`` for Hydra, with the sections of all evaluators that are registered now."""
    ConfigStore.instance().store(name=SCHEMA, node=Config(probe=probe_config_class()()), provider="ssl_zoo")


def sections() -> dict[str, type]:
    """Name of every section of ``Config`` and the dataclass, possibly a base, that its values belong to."""
    hints = get_type_hints(Config)
    inner = {name: next((arg for arg in get_args(hint) if arg is not type(None)), hint) for name, hint in hints.items()}
    return {name: hint for name, hint in inner.items() if dataclasses.is_dataclass(hint)}
