"""Recipes and the options of config groups; YAML only."""
