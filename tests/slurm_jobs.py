"""Trainings on a Slurm of tests/slurm_cluster.py: submitted like a user's, slow until released, and observed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm_cluster import SlurmCluster
from tiny_commands import DEMO, ROOT, TINY, records

from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of

NUM_STEPS = 24
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
HOLD = ROOT / "tests" / "tiny_hold.py"
SETTINGS = [
    *TINY,
    "data=held_scenes",
    f"trainer.num_steps={NUM_STEPS}",
    "trainer.checkpoint_every=1000",
    "probe.evaluators=[]",
    "monitor.images_every=0",
]
# One process submits all jobs, since the imports of the tool take longer than everything else in it.
SUBMIT = """
import contextlib, io, json, sys
from ssl_zoo.tools.submit import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A submitted training, which is slow until ``release``."""

    cluster: SlurmCluster
    number: str
    run: Path

    @property
    def hold(self) -> Path:
        return self.run.with_suffix(".hold")

    @property
    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    @property
    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.run / "slurm").glob(f"{self.number}_*_log.*")))

    def end_soon(self) -> None:
        """Set the time limit to the next full minute."""
        hours, minutes, _ = map(int, self.cluster.job(self.number)["RunTime"].split(":"))
        self.cluster.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={hours * 60 + minutes + 1}")

    def release(self) -> None:
        self.hold.unlink(missing_ok=True)

    def last_step(self) -> int:
        lines = records(self.run) if (self.run / "metrics.jsonl").is_file() else []
        return lines[-1]["step"] if lines else 0

    def wait_for_step(self, step: int) -> None:
        self._wait(lambda: self.last_step() >= step, f"reaches step {step}")

    def wait_for_checkpoint(self) -> None:
        """Wait for a checkpoint and two steps more, which are lost when the job dies."""
        self._wait(lambda: list_checkpoints(self.run), "saves")
        self.wait_for_step(step_of(list_checkpoints(self.run)[-1]) + 2)

    def wait_for_state(self, state: str) -> float:
        """Return the seconds until a state; another end of the job is a failure at once."""

        def is_reached() -> bool:
            found = self.state
            assert found == state or found not in ENDS, f"{self.run.name} is {found}\n{self.logs}"
            return found == state

        return self._wait(is_reached, f"is {state}")

    def wait_for_requeue(self) -> float:
        return self._wait(lambda: self.restarts == 1, "is requeued")

    def wait_for_end_of_processes(self) -> float:
        return self._wait(lambda: not self.cluster.processes(SLURM_JOB_ID=self.number), "has no process left")

    def _wait(self, condition: Callable[[], bool], what: str) -> float:
        try:
            return self.cluster.wait_until(condition, f"{self.run.name} {what}", 240)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.logs}") from None


class Submissions:
    """A process that submits jobs as ``tools/submit.py`` does."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUBMIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**cluster.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, output and error output."""
        words = ["--config", str(DEMO), "--plugin", str(HOLD), *SETTINGS, "--gpus-per-node", "0", *arguments]
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def submit(self, name: str, *arguments: str, held_seconds: float | None = 0.5) -> Job:
        """Submit a training whose batches take a time until it is released; None: at full speed."""
        run = self.folder / name
        if held_seconds is not None:
            run.with_suffix(".hold").write_text(str(held_seconds))
        status, output, errors = self.call(
            f"output_dir={run}", f"data.hold={run.with_suffix('.hold')}", "--time", "10", *arguments
        )
        assert (status, errors) == (0, "")
        return Job(self.cluster, re.match(r"job (\d+): ", output)[1], run)

    def refused(self, *arguments: str) -> str:
        status, output, errors = self.call(f"output_dir={self.folder / 'refused'}", *arguments)
        assert (status, output) == (1, "")
        [sentence] = errors.splitlines()
        return sentence
