"""Evaluation of frozen encoders; importing this package registers its evaluators."""

from ssl_zoo.eval import attentive, finetune, health, knn, linear, logistic, low_shot  # noqa: F401
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
