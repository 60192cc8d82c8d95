"""Folders of weights of methods that no run has trained."""

from pathlib import Path

from ssl_zoo.engine.trained import TrainedMethod, encoders
from ssl_zoo.interop.export import export
from ssl_zoo.interop.manifest import Manifest, Preprocessing, backbone_values
from ssl_zoo.method import METHODS, Method


def exported(method: Method, folder: Path) -> Path:
    """Export a method as ``tools/export_weights.py`` does, and return the folder."""
    backbone, name = method.encoder.config, METHODS.name_of(method.config)
    evaluated = next(key for key, network in encoders(method).items() if network is method.eval_encoder())
    transform = Preprocessing(list(backbone.image_shape), [0.5] * 3, [0.25] * 3)
    manifest = Manifest("export", name, evaluated, backbone_values(backbone), transform, config={"method": {}})
    export(TrainedMethod(method, folder, 1), folder, manifest)
    return folder
