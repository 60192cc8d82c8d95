"""Evaluators score an encoder on labelled images, during a training run and afterwards."""

from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject
from ssl_zoo.eval.features import Features, Pooling, extract
from ssl_zoo.eval.knn import KNNConfig
from ssl_zoo.eval.online import OnlineProbe, ProbeConfig, ProbeScore

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "EvaluatorConfig",
    "Features",
    "KNNConfig",
    "OnlineProbe",
    "Pooling",
    "ProbeConfig",
    "ProbeScore",
    "Score",
    "Subject",
    "extract",
]
