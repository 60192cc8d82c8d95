"""The number that an evaluation measures, as evaluators return it and hooks log it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

BASELINE_SUFFIX = "_random_init"  # of the name under which the score of the random-init network is logged
# Label-free measures, which are no accuracies: more is not always better.
LABEL_FREE = ("rankme", "alpha_req", "lidar", "feature_sigreg", "lejepa_loss", "feature_std", "mean_cosine")


@dataclass(frozen=True)
class Score:
    """A score has a value and the protocol that defines it, in plain JSON values.

    Attributes:
        name: the evaluator's name, followed by the setting that varies between its scores, e.g. ``knn20``.
        value: usually the accuracy, a fraction of the test images.
        protocol: everything that defines the number except the weights.
        spread: standard deviation over repetitions; None for a single one.
        details: information for the reader, e.g. the settings chosen on held-out images.
        is_fraction: whether the value is an accuracy in 0..1; otherwise it has a scale of its own.
        baseline: the same score of the random-init network; None where it was not measured.
    """

    name: str
    value: float
    protocol: Mapping[str, object] = field(default_factory=dict)
    spread: float | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    is_fraction: bool = True
    baseline: float | None = None

    @property
    def protocol_hash(self) -> str:
        """Scores with equal hashes are comparable."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:12]
