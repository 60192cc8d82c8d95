"""Evaluators score an encoder on labelled images, during a training run and afterwards."""

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.probe import Probe, probe_config_class
from ssl_zoo.scores import Score

__all__ = ["EVALUATORS", "EvaluatedModel", "Evaluator", "EvaluatorConfig", "Probe", "Score", "probe_config_class"]
