"""Tiny trainings with the training tool, observed from outside."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ssl_zoo.testing.faults.leftovers import metrics
from ssl_zoo.testing.faults.processes import Command, NotSurvived

_POLL_SECONDS = 0.001
_START_SECONDS = 240.0  # limit of a wait, since imports are slow on a loaded machine
_RECIPE = "ijepa/demo.yaml"
NUM_STEPS = 16
NUM_SAMPLES = 44  # five and a half steps
TINY = (
    *("backbone.embed_dim=48", "backbone.depth=1", "backbone.num_heads=4"),
    *("backbone.image_size=32", "backbone.patch_size=4", "masks.min_patches=4"),
    *("method=fragile", "method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4"),
    *("trainer.batch_size=8", f"trainer.num_steps={NUM_STEPS}", "trainer.precision=fp32"),
    *("trainer.checkpoint_every=1", "trainer.keep_checkpoints=3", "optim.warmup_epochs=0.5"),
    *("monitor.log_every=1", "monitor.loggers=[jsonl]", "monitor.images_every=0", "probe.evaluators=[]"),
)
SCENES = ("data=scenes", "data.image_size=32", f"data.num_train={NUM_SAMPLES}", "data.num_test=8")


class Training(Command):
    """One start of the training tool.

    Args:
        run: output directory.
        settings: additional ``key=value`` pairs and options of the tool.
        data: settings of the data.
        fault: fault for ``ssl_zoo.testing.faults.fragile``.
        more_bytes: see Command.
    """

    def __init__(
        self,
        run: Path,
        settings: Sequence[str] = (),
        *,
        data: Sequence[str] = SCENES,
        ranks: int = 1,
        fault: str = "",
        more_bytes: int | None = None,
    ) -> None:
        self.run = run
        notes = _beside(run, "notes")
        notes.mkdir(exist_ok=True)
        for stale in notes.glob("*.pid"):
            stale.unlink()
        recipe = Path(importlib.util.find_spec("ssl_zoo.configs").origin).parent / _RECIPE
        arguments = ["--plugin", "ssl_zoo.testing.faults.fragile", "--config", str(recipe), *data, *TINY, *settings]
        environment = {"SSL_ZOO_FAULT": fault, "SSL_ZOO_NOTES": str(notes)}
        arguments, log = [*arguments, f"output_dir={run}"], _beside(run, "log")
        super().__init__("ssl_zoo.tools.train_net", arguments, log, environment, ranks=ranks, more_bytes=more_bytes)

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        """Wait until ``happened()``.

        Raises:
            NotSurvived: the training ended before, or the wait timed out.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not happened():
            if not self.is_alive and not happened():
                raise NotSurvived(f"the training ended before {what}: {self.last_error()}")
            if time.monotonic() > deadline:
                raise NotSurvived(f"no {what} within {_START_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def wait_for_step(self, step: int) -> None:
        """Wait until ``step`` is logged."""
        self.wait_for(lambda: any(record["step"] == step for record in metrics(self.run)), f"step {step}")

    def rank(self, rank: int) -> int:
        """Return the process id of a rank."""
        return int((_beside(self.run, "notes") / f"rank_{rank}.pid").read_text())


def samples(run: Path, rank: int) -> dict[int, list[int]]:
    """Read the ids of a rank's samples in each step, at the last time that the step ran."""
    lines = (_beside(run, "notes") / f"rank_{rank}.samples").read_text().splitlines()
    return {step: ids for step, *ids in ([int(word) for word in line.split()] for line in lines)}


def _beside(run: Path, kind: str) -> Path:
    return run.with_name(f"{run.name}.{kind}")
