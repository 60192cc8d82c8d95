"""AdamW settings of golden fixtures, and the schedules that the DINO and BEiT codes share."""

import math
import re
from typing import Any

from ssl_zoo.testing.golden.fixture import Fixture, FixtureError

_NUMBER = r"([-+.\de]+)"
_OPTIMIZER = re.compile(rf"AdamW betas \({_NUMBER}, {_NUMBER}\) eps {_NUMBER}")


def adamw_settings(fixture: Fixture) -> dict[str, Any]:
    """Return betas, epsilon and the gradient-norm limit under the field names of ``AdamWConfig``."""
    text = fixture.config.get("optimizer", "AdamW betas (0.9, 0.999) eps 1e-8")
    match = _OPTIMIZER.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise FixtureError(f"{fixture.path}: config.optimizer={text!r} is unknown")
    *betas, eps = (float(number) for number in match.groups())
    limit = None if fixture.config.get("clip") is None else fixture.number("clip")
    return {"betas": betas, "eps": eps, "clip_grad_norm": limit}


def learning_rate_of(fixture: Fixture, step: int) -> float:
    """Return linear warmup that reaches the base rate one step before the cosine decay starts from it."""
    base, per_epoch = fixture.number("lr"), fixture.count("steps_per_epoch")
    warmup, total = int(fixture.number("warmup_epochs") * per_epoch), fixture.count("epochs") * per_epoch
    if step < warmup:
        return base * step / max(1, warmup - 1)
    return cosine(base, fixture.number("min_lr"), (step - warmup) / (total - warmup))


def weight_decay_of(fixture: Fixture, step: int) -> float:
    """Return a cosine schedule over the whole run."""
    total = fixture.count("epochs") * fixture.count("steps_per_epoch")
    return cosine(fixture.number("wd"), fixture.number("wd_end"), step / total)


def cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * fraction))
