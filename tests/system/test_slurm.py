"""Jobs of a real Slurm with two nodes on this machine: every way to end, compared with undisturbed runs."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import NODES, SlurmCluster, why_not
from tiny_commands import DEMO, ROOT, TINY, records

from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of

NUM_STEPS, EVERY = 24, "trainer.checkpoint_every=4"
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
HOLD = ROOT / "tests" / "tiny_hold.py"
TWO_NODES, TWO_TASKS = ("--nodes", "2"), ("--option", "tasks_per_node=2")
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

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=f"no Slurm: {why_not()}")]


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    pytest.importorskip("submitit")
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def submissions(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submissions]:
    submissions = Submissions(cluster, tmp_path_factory.mktemp("runs"))
    yield submissions
    with submissions.process:  # closes its pipes, on which it ends, and waits for it
        pass


@pytest.fixture(scope="module")
def jobs(submissions: Submissions) -> dict[str, Job]:
    """Two undisturbed jobs, and one that the first test lets reach its time limit while they run.

    Slurm looks at time limits every 30 seconds. With a delay of 60 it signals a job that has a minute left at once.
    """
    limit = ("--option", "slurm_signal_delay_s=60")
    return {
        "limited": submissions.submit("limited", *limit, held_seconds=3.0),
        "one_rank": submissions.submit("one_rank", held_seconds=None),
        "two_ranks": submissions.submit("two_ranks", *TWO_NODES, held_seconds=None),
    }


@pytest.fixture(scope="module")
def undisturbed(jobs: dict[str, Job]) -> Job:
    """An undisturbed job of two ranks."""
    jobs["two_ranks"].wait_for_state("COMPLETED")
    return jobs["two_ranks"]


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in list_checkpoints(run)[-1].glob("*.safetensors")}


def assert_equal_runs(job: Job, undisturbed: Job) -> None:
    assert step_of(list_checkpoints(job.run)[-1]) == NUM_STEPS
    assert records(job.run) == records(undisturbed.run)
    assert weights(job.run) == weights(undisturbed.run)


def report(record_property, **measured: float | int) -> None:
    """Print what docs/reliability.md lists; shown by ``pytest -s``."""
    print(" ".join(f"{name}={value:.1f}" for name, value in measured.items()))
    for name, value in measured.items():
        record_property(name, value)


def test_a_job_that_reaches_its_time_limit_saves_is_requeued_and_equals_the_undisturbed_one(
    cluster: SlurmCluster, jobs: dict[str, Job], record_property
) -> None:
    job = jobs["limited"]
    job.wait_for_step(3)
    job.end_soon()
    requeued = job.wait_for_requeue()
    [saved], last = list_checkpoints(job.run), job.last_step()
    assert step_of(saved) == last < NUM_STEPS
    job.release()
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    job.wait_for_state("COMPLETED")
    jobs["one_rank"].wait_for_state("COMPLETED")
    assert_equal_runs(job, jobs["one_rank"])
    report(record_property, lost_steps=last - step_of(saved), requeued_s=requeued)


def test_a_requeued_job_on_two_nodes_saves_and_equals_the_undisturbed_one(
    cluster: SlurmCluster, submissions: Submissions, undisturbed: Job, record_property
) -> None:
    job = submissions.submit("requeued", *TWO_NODES)
    job.wait_for_step(3)
    cluster.run("scontrol", "requeue", job.number)
    ended = job.wait_for_state("PENDING")
    [saved], last = list_checkpoints(job.run), job.last_step()
    assert step_of(saved) == last < NUM_STEPS
    job.release()
    restarted = job.wait_for_state("RUNNING")
    job.wait_for_state("COMPLETED")
    assert job.restarts == 1
    assert_equal_runs(job, undisturbed)
    report(record_property, lost_steps=last - step_of(saved), ended_s=ended, restarted_s=restarted)


def test_a_cancelled_job_of_two_tasks_on_a_node_saves_and_the_same_command_resumes(
    submissions: Submissions, cluster: SlurmCluster, undisturbed: Job, record_property
) -> None:
    job = submissions.submit("cancelled", *TWO_TASKS)
    job.wait_for_step(3)
    cluster.run("scancel", job.number)
    ended = job.wait_for_state("CANCELLED") + job.wait_for_end_of_processes()
    [saved], last = list_checkpoints(job.run), job.last_step()
    assert step_of(saved) == last < NUM_STEPS
    job.release()
    submissions.submit("cancelled", *TWO_TASKS, held_seconds=None).wait_for_state("COMPLETED")
    assert_equal_runs(job, undisturbed)
    report(record_property, lost_steps=last - step_of(saved), ended_s=ended)


def test_the_death_of_a_rank_ends_the_job_with_the_reason_and_the_same_command_resumes(
    submissions: Submissions, cluster: SlurmCluster, undisturbed: Job, record_property
) -> None:
    job = submissions.submit("killed", *TWO_NODES, EVERY)
    job.wait_for_checkpoint()
    [rank] = cluster.processes("train_net", SLURM_JOB_ID=job.number, SLURM_PROCID="1")
    os.kill(rank, signal.SIGKILL)
    ended = job.wait_for_state("FAILED") + job.wait_for_end_of_processes()
    assert "the training of rank 1 was killed by SIGKILL" in job.logs
    saved, last = list_checkpoints(job.run)[-1], job.last_step()
    job.release()
    submissions.submit("killed", *TWO_NODES, EVERY, held_seconds=None).wait_for_state("COMPLETED")
    assert_equal_runs(job, undisturbed)
    report(record_property, lost_steps=last - step_of(saved), ended_s=ended)


def test_the_death_of_a_node_requeues_the_job(
    submissions: Submissions, cluster: SlurmCluster, undisturbed: Job, record_property
) -> None:
    job = submissions.submit("node_failure", *TWO_NODES, EVERY)
    job.wait_for_checkpoint()
    cluster.kill_node(NODES[1])
    requeued = job.wait_for_requeue()
    saved, last = list_checkpoints(job.run)[-1], job.last_step()
    job.release()
    cluster.start_node(NODES[1])
    job.wait_for_state("COMPLETED")
    assert_equal_runs(job, undisturbed)
    report(record_property, lost_steps=last - step_of(saved), requeued_s=requeued)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpus-per-node", "2"), "refuses --gpus-per-node 2 (Invalid generic resource"),
        (("--partition", "gpu"), "refuses --partition gpu (invalid partition specified: gpu;"),
        (("--option", "mem_gb=50"), "refuses --option mem_gb=50 (Memory specification can not be satisfied;"),
        (("--option", "slurm_constraint=a100"), "refuses --option slurm_constraint=a100 (Invalid feature"),
        (("--option", "slurm_nodelist=n7"), "refuses --option slurm_nodelist=n7 (Invalid node name"),
    ],
)
def test_what_sbatch_refuses_is_one_sentence_with_the_option(
    submissions: Submissions, arguments: tuple[str, ...], sentence: str
) -> None:
    error = submissions.refused("--time", "10", *arguments)
    assert error.startswith(f"error: tools/submit.py: Slurm {sentence}") and error.count("`") >= 2


def test_limits_of_a_partition_are_refused_at_the_submission_or_shown_as_the_reason_of_waiting(
    submissions: Submissions, cluster: SlurmCluster
) -> None:
    run = f"output_dir={submissions.folder / 'waiting'}"
    for arguments, reason, option in (
        (("--time", "3:00:00"), "PartitionTimeLimit", "--time 180"),
        (("--time", "10", "--nodes", "4"), "PartitionNodeLimit", "--nodes 4"),
        (("--time", "10", "--partition", "closed"), "Job's account not known", "--partition closed"),
    ):
        status, output, errors = submissions.call(run, *arguments)
        number = re.match(r"job (\d+): ", output)[1]
        assert status == 0 and f"job {number} does not start ({reason}" in errors and option in errors
        cluster.run("scancel", number)
    cluster.configure(enforce="ALL")
    cluster.run("scontrol", "reconfigure")
    try:
        cluster.wait_until(lambda: "= ALL" in _line(cluster, "EnforcePartLimits"), "the limits are enforced", 30)
        assert "refuses --time 180 (Requested time limit is invalid" in submissions.refused("--time", "3:00:00")
        assert "refuses --nodes 4 (Node count" in submissions.refused("--time", "10", "--nodes", "4")
        closed = submissions.refused("--time", "10", "--partition", "closed")
        assert "refuses --partition closed (Invalid account" in closed
        many = submissions.refused("--time", "10", "--cpus-per-task", "64")
        assert "--cpus-per-task 64 (More processors" in many
    finally:
        cluster.configure()
        cluster.run("scontrol", "reconfigure")


def _line(cluster: SlurmCluster, key: str) -> str:
    return next(line for line in cluster.run("scontrol", "show", "config").splitlines() if line.startswith(key))
