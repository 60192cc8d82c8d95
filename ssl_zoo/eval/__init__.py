"""Evaluators score an encoder on labelled images, during a training run and afterwards."""

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.features import Features, Pooling, extract
from ssl_zoo.eval.probe import Probe, ProbeConfig, probe_config_class
from ssl_zoo.scores import Score

__all__ = [
    "EVALUATORS",
    "EvaluatedModel",
    "Evaluator",
    "EvaluatorConfig",
    "Features",
    "Pooling",
    "Probe",
    "ProbeConfig",
    "Score",
    "extract",
    "probe_config_class",
]
