"""Benchmarks: training speed of recipes on this machine, measured side by side."""
