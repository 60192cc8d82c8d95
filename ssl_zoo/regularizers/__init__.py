"""Regularizers: loss terms on a method's features, chosen by config, that any method can carry."""

from ssl_zoo.regularizers.base import REGULARIZERS, Regularizer, RegularizerConfig

__all__ = ["REGULARIZERS", "Regularizer", "RegularizerConfig"]
