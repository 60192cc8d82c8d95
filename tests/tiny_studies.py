"""A study whose trainings take seconds: scenes of 16 pixels, a network of width 48."""

import json
from pathlib import Path

from ssl_zoo.study.file import Study, read_study

TEXT = """
title: Features or pixels
question: Which of the two?
source: a paper
published_as: something else
recipe: ijepa/demo
seeds: [0]
columns: [knn5]
overrides:
  - backbone.embed_dim=48
  - backbone.depth=1
  - backbone.image_size=16
  - backbone.patch_size=4
  - data.image_size=16
  - data.num_train=64
  - data.num_test=32
  - method.predictor_dim=32
  - method.predictor_depth=1
  - masks.min_patches=0
  - trainer.batch_size=8
  - trainer.num_steps=3
  - trainer.checkpoint_every=2
  - trainer.precision=fp32
  - optim.warmup_epochs=0
  - monitor.log_every=1
  - monitor.loggers=[jsonl]
  - monitor.images_every=0
  - probe.evaluators=[knn]
  - probe.train_samples=32
  - probe.knn.k=[5]
entries:
  features:
    title: teacher features
    published: {{linear: 66.9}}
  pixels:
    overrides: [targets=pixels]
    published: {{linear: 40.7}}
{more}
"""


def write_study(path: Path, more: str = "") -> Path:
    """Write a study file with the entries ``features`` and ``pixels``, followed by the lines ``more``."""
    path.write_text(TEXT.format(more=more))
    return path


def tiny_study(folder: Path, more: str = "") -> Study:
    return read_study(write_study(folder / "tiny.yaml", more))


def last_score(run: Path, name: str) -> float:
    """Return the last value of a score in a run's ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line][-1]
