"""The schema lists the sections of a configuration, and which of them are chosen as a whole."""

import dataclasses
from dataclasses import dataclass
from typing import Optional, get_args, get_type_hints

from omegaconf import MISSING

from ssl_zoo.data.loader import LoaderConfig
from ssl_zoo.data.sources import SourceConfig
from ssl_zoo.engine.optim import OptimConfig
from ssl_zoo.engine.settings import MonitorConfig, TrainerConfig
from ssl_zoo.eval.probe import ProbeConfig
from ssl_zoo.masks import MasksConfig
from ssl_zoo.method import MethodConfig
from ssl_zoo.nn import BackboneConfig
from ssl_zoo.regularizers import RegularizerConfig
from ssl_zoo.settings import Settings, setting
from ssl_zoo.targets import TargetConfig
from ssl_zoo.views import ViewSetConfig

SCHEMA = "schema"  # the name under which a defaults list refers to Config


@dataclass
class Config(Settings):
    """The configuration of a run; each section's keys are documented in its dataclass."""

    seed: int = setting(0, "seed of all randomness: data order, crops, masks and initial weights")
    output_dir: str = setting("", "run directory; by default runs/<folder of the recipe>/<name of the recipe>")
    method: MethodConfig = setting(MISSING, "the self-supervised objective")
    backbone: BackboneConfig = setting(MISSING, "the encoder")
    views: ViewSetConfig = setting(MISSING, "which views of an image a batch holds, and their augmentations")
    masks: Optional[MasksConfig] = setting(None, "which patches are visible and which are predicted")  # noqa: UP045
    targets: Optional[TargetConfig] = setting(None, "what is predicted")  # noqa: UP045
    regularizer: Optional[RegularizerConfig] = setting(None, "a loss term on features, beside the method's")  # noqa: UP045
    data: SourceConfig = setting(MISSING, "where images come from")
    loader: LoaderConfig = setting(LoaderConfig(), "how images are decoded and batched")
    optim: OptimConfig = setting(MISSING, "optimizer, learning rate, weight decay, clipping")
    trainer: TrainerConfig = setting(TrainerConfig(), "budget, batch and machine")
    monitor: MonitorConfig = setting(MonitorConfig(), "what is logged during the run")
    probe: ProbeConfig = setting(ProbeConfig(), "evaluation of frozen features during and after the run")


def sections() -> dict[str, type]:
    """Return the dataclass of every section of ``Config``; a base class where the section is chosen as a whole."""
    hints = get_type_hints(Config)
    inner = {name: next((arg for arg in get_args(hint) if arg is not type(None)), hint) for name, hint in hints.items()}
    return {name: hint for name, hint in inner.items() if dataclasses.is_dataclass(hint)}
