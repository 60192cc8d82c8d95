"""Baselines of the benchmark: the objective of a recipe, trained with the modules of other libraries."""
