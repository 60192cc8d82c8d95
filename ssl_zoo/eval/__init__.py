"""Evaluation of frozen encoders; importing this package registers its evaluators."""

from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject
from ssl_zoo.eval.features import Features, Pooling, extract
from ssl_zoo.eval.knn import KNN, KNNConfig
from ssl_zoo.eval.logistic import Logistic, LogisticConfig
from ssl_zoo.eval.online import OnlineProbe, ProbeConfig, ProbeScore

__all__ = [
    "EVALUATORS",
    "KNN",
    "Evaluator",
    "EvaluatorConfig",
    "Features",
    "KNNConfig",
    "Logistic",
    "LogisticConfig",
    "OnlineProbe",
    "Pooling",
    "ProbeConfig",
    "ProbeScore",
    "Score",
    "Subject",
    "extract",
]
