"""Tags: the groups in which TensorBoard and W&B show the metrics of a run.

``metrics.jsonl`` and ``metrics.csv`` keep the plain names, which studies and alarms read. A tag is ``group/name``. The
engine's metrics have the tags below. Methods and evaluators declare groups of their own as ``metric_groups``; what they
do not declare is in ``train`` or ``probe``. Scores of the random-init network are in ``random_init``.
"""

from collections.abc import Mapping
from typing import Any

from ssl_zoo.collapse import METRIC_GROUPS
from ssl_zoo.method import Method
from ssl_zoo.scores import BASELINE_SUFFIX

_ENGINE = {
    "loss": "train/loss",
    "epoch": "train/epoch",
    "lr": "optim/lr",
    "weight_decay": "optim/weight_decay",
    "grad_norm": "optim/grad_norm",
    "ema_momentum": "ema/momentum",
    "collapse": "health/collapse",
    "images_per_second": "speed/images_per_second",
    "data_wait": "speed/data_wait",
    "memory_bytes": "system/memory_gib",
}
_UNITS = {"memory_bytes": 2**30}
_LOSS = "_loss"  # suffix of the terms of a loss
_OF_TRAINING, _OF_PROBE = "train", "probe"  # groups of undeclared metrics


class Tags:
    """Translates names of metrics into tags.

    Args:
        groups: groups by metric, as methods and evaluators declare them.
    """

    def __init__(self, groups: Mapping[str, str] | None = None) -> None:
        self.groups = groups or {}

    @classmethod
    def of(cls, method: Method, scores: Mapping[str, str]) -> "Tags":
        """Return the tags of a method's metrics and of a probe's scores, whose declared groups are ``scores``."""
        limits = {limit.metric: "health" for limit in method.collapse_limits()}
        return cls({**METRIC_GROUPS, **limits, **method.metric_groups, **scores})

    def values(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of a record by tag, without its step."""
        is_training = "loss" in record
        skipped = {"step"} if is_training else {"step", "epoch"}  # the training's record of the step has the epoch too
        return {
            self.tag(name, is_training=is_training): value / _UNITS.get(name, 1)
            for name, value in record.items()
            if name not in skipped and isinstance(value, (int, float))
        }

    def tag(self, name: str, *, is_training: bool) -> str:
        """Return the tag of a metric of a training step, or of a score."""
        if name in _ENGINE:
            return _ENGINE[name]
        if name.endswith(BASELINE_SUFFIX):
            return self.baseline(name.removesuffix(BASELINE_SUFFIX))
        group = self.groups.get(name)
        if group is None and is_training and name.endswith(_LOSS):
            return f"train/losses/{name.removesuffix(_LOSS)}"
        return f"{group or (_OF_TRAINING if is_training else _OF_PROBE)}/{name}"

    def baseline(self, score: str) -> str:
        """Return the tag of a score of the random-init network."""
        return f"random_init/{score}"
