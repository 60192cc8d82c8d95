"""Loggers write the records of a run: lines of JSON or CSV, TensorBoard's event files, Weights & Biases."""

from ssl_zoo.engine.loggers.base import LOGGERS, LoggedRun, Logger, LoggerConfig, Record, build_loggers
from ssl_zoo.engine.loggers.tags import Tags

__all__ = ["LOGGERS", "LoggedRun", "Logger", "LoggerConfig", "Record", "Tags", "build_loggers"]
