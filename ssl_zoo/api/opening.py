"""A method with trained weights, from a run or from a folder of weights, and the configuration that belongs to it."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.api.encoder import Origin
from ssl_zoo.api.loading import load, preprocessing_of
from ssl_zoo.config import Composed, Config, compose
from ssl_zoo.config.recipe import ROOT_RECIPE
from ssl_zoo.engine.build import build_run_method
from ssl_zoo.engine.trained import TrainedMethod, choose_network, encoders, open_run
from ssl_zoo.eval.features import Pooling
from ssl_zoo.interop.import_folder import RECIPE
from ssl_zoo.interop.manifest import Preprocessing
from ssl_zoo.interop.start import start_from
from ssl_zoo.nn import ViT


@dataclass(frozen=True)
class Opened:
    """An encoder with its method.

    Attributes:
        encoder: the chosen network; one of ``trained``, or in evaluation mode beside it.
        fresh: networks of the method that have no trained weights, such as a predictor that an export does not hold.
        pooling: how the encoder's features are pooled where the configuration does not decide it.
    """

    trained: TrainedMethod
    config: Config
    encoder: ViT
    preprocessing: Preprocessing
    origin: Origin
    fresh: Sequence[str] = ()
    pooling: Pooling | None = None

    def initial_encoder(self) -> ViT:
        """Build the same network with its initial weights, those of the run's seed."""
        method = build_run_method(self.config)
        name = self.origin.network
        return encoders(method).get(name, method.eval_encoder()).eval()


def open_trained_run(run: Path, words: Sequence[str], checkpoint: str, network: str) -> Opened:
    """Open a checkpoint of a run under its configuration with overrides.

    Args:
        words: overrides, e.g. of the size of the images.
        checkpoint, network: as for ``ssl_zoo.load``.

    Raises:
        ValueError: no such run, checkpoint or network.
    """
    composed = compose(run / "config.yaml", words)
    trained = open_run(run, composed.config, checkpoint)
    encoder = choose_network(trained.method, network).eval()
    name = next((name for name, own in encoders(trained.method).items() if own is encoder), network)
    origin = Origin(trained.checkpoint, composed.choices["method"], name, trained.step, run)
    return Opened(trained, composed.config, encoder, preprocessing_of(composed.config), origin)


def open_weights_folder(path: Path, words: Sequence[str], network: str) -> Opened:
    """Open a folder of exported or imported weights, or an encoder's file in it, with the method that it belongs to.

    Args:
        words, network: as for ``open_trained_run``.

    Raises:
        ValueError: nothing that can be loaded, or overrides that do not fit the weights.
    """
    encoder = load(path, network=network, device="cpu")
    folder = path if path.is_dir() else path.parent
    if encoder.origin.config is not None:
        composed = compose_recorded(encoder.origin.config, words)
    else:
        composed = compose(folder / RECIPE, words)
    size = composed.config.backbone.image_shape
    if size != encoder.transform.size:
        encoder = load(path, network=network, device="cpu", image_size=size)
    method = build_run_method(composed.config)
    record = start_from(method, folder)
    trained = TrainedMethod(method, encoder.origin.path, encoder.origin.step)
    return Opened(
        trained,
        composed.config,
        encoder.network,
        encoder.transform.preprocessing,
        encoder.origin,
        record["fresh"],
        encoder.pooling,
    )


def compose_recorded(config: Mapping[str, Any], words: Sequence[str]) -> Composed:
    """Compose a configuration that a manifest records as plain values, with overrides."""
    values = {key: value for key, value in config.items() if key != "choices"}
    choices = [{group: option} for group, option in config["choices"].items()]
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "config.yaml"
        recipe.write_text(yaml.safe_dump({"defaults": [ROOT_RECIPE, *choices, "_self_"], **values}, sort_keys=False))
        return compose(recipe, words)
