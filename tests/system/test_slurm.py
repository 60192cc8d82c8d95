"""Jobs of a real Slurm with two nodes on this machine: every way to end, compared with undisturbed runs."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, SlurmCluster, why_not
from slurm_jobs import NUM_STEPS, Job, Submissions
from tiny_commands import records

from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of

TWO_NODES, TWO_TASKS = ("--nodes", "2"), ("--option", "tasks_per_node=2")
EVERY = "trainer.checkpoint_every=4"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=f"no Slurm: {why_not()}")]


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
