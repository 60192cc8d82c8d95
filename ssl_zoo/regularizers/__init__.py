"""Regularizers: loss terms on a method's features, chosen by config, that any method can carry."""

from ssl_zoo.regularizers.base import REGULARIZERS, Place, Regularizer, RegularizerConfig

__all__ = ["REGULARIZERS", "Place", "Regularizer", "RegularizerConfig"]
