"""A plug-in with I-JEPA that fails where it is told to, and notes which samples it was given.

The environment says what happens, so that a run and its continuation have the same configuration:
``SSL_ZOO_FAULT="nan 1 5"`` makes the loss of rank 1 not a number in step 5, ``"raise 0 5"`` raises in rank 0. In the
folder ``SSL_ZOO_NOTES``, ``rank_1.pid`` names the process of rank 1, and ``rank_1.samples`` gets a line per step: its
number and the ids of the samples.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_zoo.data.batch import Batch
from ssl_zoo.method import METHODS, Output, Step
from ssl_zoo.methods.ijepa import IJEPA, IJEPAConfig

_RANK = os.environ.get("RANK", "0")
_NOTES = Path(os.environ["SSL_ZOO_NOTES"])
(_NOTES / f"rank_{_RANK}.pid").write_text(str(os.getpid()))


@dataclass
class FragileConfig(IJEPAConfig):
    """I-JEPA that can be made to fail."""


@METHODS.register("fragile", FragileConfig)
class Fragile(IJEPA):
    """I-JEPA that fails when the environment says so; for tests of whole runs."""

    def forward(self, batch: Batch, step: Step) -> Output:
        number = step.progress.step + 1
        with open(_NOTES / f"rank_{_RANK}.samples", "a") as file:
            file.write(" ".join(map(str, [number, *batch.index.tolist()])) + "\n")
        output = super().forward(batch, step)
        match os.environ.get("SSL_ZOO_FAULT", "").split():
            case ["nan", at_rank, at_step] if (at_rank, at_step) == (_RANK, str(number)):
                return replace(output, losses={"nan": output.loss * float("nan")})
            case ["raise", at_rank, at_step] if (at_rank, at_step) == (_RANK, str(number)):
                raise RuntimeError(f"rank {_RANK} raises in step {number}, as the test asks")
        return output
