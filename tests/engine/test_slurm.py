"""Messages of Slurm's commands, as Slurm 22.05 prints them, in terms of the user's options."""

import pytest

from ssl_zoo.engine.slurm import (
    JobStatus,
    JobWatcher,
    OptionNames,
    job_statuses,
    pending_forever,
    refusal,
    wait_for_reason,
)

NAMES = OptionNames(
    "tools/submit.py", {"nodes": "--nodes", "gpus_per_node": "--gpus-per-node", "timeout_min": "--time"}
)
GIVEN = {"nodes": 2, "gpus_per_node": 8, "timeout_min": 720, "tasks_per_node": 8}
FAILED = "sbatch: error: Batch job submission failed: "
REFUSALS = [
    ("sbatch: error: Invalid generic resource (gres) specification", "--gpus-per-node 8"),
    (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)", "--time 720"),
    (f"sbatch: error: invalid partition specified: x\n{FAILED}Invalid partition name specified", "slurm_partition=x"),
    (f"{FAILED}No partition specified or system default partition", "a job without --option slurm_partition="),
    (f"{FAILED}User's group not permitted to use this partition", "slurm_partition="),
    (f"{FAILED}Invalid account or account/partition combination specified", "a job without --option slurm_account="),
    (f"{FAILED}Invalid qos specification", "a job without --option slurm_qos="),
    (f"{FAILED}Invalid wckey specification", "--option slurm_wckey="),
    (f"{FAILED}Node count specification invalid", "--nodes 2"),
    (f"{FAILED}More processors requested than permitted", "--option tasks_per_node=8"),
    (f"sbatch: error: Memory specification can not be satisfied\n{FAILED}Requested node configuration", "mem_gb="),
    (f"{FAILED}Requested node configuration is not available", "--gpus-per-node 8, --nodes 2"),
    (f"{FAILED}Invalid feature specification", "--option slurm_constraint="),
    (f"{FAILED}Invalid node name specified", "--option slurm_nodelist="),
    (
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{FAILED}Job violates accounting/QOS policy (job submit limit, "
        "user's size and/or time limits)",
        "--time 720, --nodes 2, --gpus-per-node 8",
    ),
]


@pytest.mark.parametrize(("output", "option"), REFUSALS)
def test_a_refusal_names_the_option_quotes_slurm_and_has_a_command_that_shows_what_is_allowed(output, option):
    given = {**GIVEN, "slurm_partition": "x"} if "partition specified: x" in output else GIVEN
    sentence = refusal(output, given, NAMES)
    assert sentence.startswith("tools/submit.py: Slurm refuses ") and option in sentence.partition("; ")[0] + "; "
    assert output.splitlines()[-1].removeprefix(FAILED).removeprefix("sbatch: error: ") in sentence
    assert "sbatch: " not in sentence and "\n" not in sentence and sentence.count("`") in (2, 4)


def test_a_study_has_its_own_names_of_the_options():
    message = "sbatch: error: Invalid generic resource (gres) specification"
    sentence = refusal(message, {"gpus_per_node": 1}, OptionNames("--slurm", other="--slurm-option"))
    assert sentence.startswith("--slurm: Slurm refuses --slurm-option gpus_per_node=1 (Invalid generic resource")


@pytest.mark.parametrize(
    "output",
    [
        f"{FAILED}Unable to contact slurm controller (connect failure)",
        f"{FAILED}Socket timed out on send/recv operation",
        f"sbatch: error: Munge encode failed: Failed to access ...\n{FAILED}Protocol authentication error",
    ],
)
def test_a_controller_that_does_not_answer_is_no_refusal(output):
    sentence = refusal(output, GIVEN, NAMES)
    assert sentence.startswith("tools/submit.py: Slurm does not answer (") and "`scontrol ping`" in sentence


def test_a_cause_without_an_option_of_the_user_names_none():
    message = f"{FAILED}Requested node configuration is not available"
    assert refusal(message, {"timeout_min": 5}, NAMES).startswith("tools/submit.py: Slurm refuses the job (Requested")


def test_an_unknown_message_is_quoted_with_all_options():
    sentence = refusal(f"{FAILED}Lua says no", GIVEN, NAMES)
    assert "(Lua says no)" in sentence and "--nodes 2 --gpus-per-node 8 --time 720" in sentence


@pytest.mark.parametrize(
    ("reason", "option"),
    [
        ("PartitionTimeLimit", "--time 720"),
        ("QOSMaxWallDurationPerJobLimit", "--time 720"),
        ("PartitionNodeLimit", "--nodes 2"),
        ("PartitionConfig", "--gpus-per-node 8, --nodes 2"),
        ("ReqNodeNotAvail, UnavailableNodes:gpu[1-2]", "--nodes 2"),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "--nodes 2"),
        ("Job's account not known, so it can't use this partition (a allows b)", "--option slurm_account="),
        ("InvalidQOS", "--option slurm_qos="),
        ("AssocGrpCPUMinutesLimit", "--option slurm_account="),
        ("QOSMaxGRESPerJob", "--gpus-per-node 8"),
        ("PartitionDown", "--option slurm_partition="),
        ("JobHeldAdmin", "`scontrol release`"),
    ],
)
def test_a_reason_that_no_waiting_ends_names_the_option(reason, option):
    warning = pending_forever("7", reason, GIVEN, NAMES)
    assert warning.startswith(f"job 7 does not start ({reason}): ") and option in warning and "`scancel 7`" in warning


@pytest.mark.parametrize("reason", ["None", "Priority", "Resources", "BeginTime", "Dependency", "QOSGrpGRES", ""])
def test_a_reason_that_ends_by_waiting_is_no_warning(reason):
    assert pending_forever("7", reason, GIVEN, NAMES) is None


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Replace squeue by a script; return a function that sets its output and exit status."""

    def answer(output: str, status: int = 0) -> None:
        stream = 1 if status == 0 else 2
        (tmp_path / "squeue").write_text(
            f"#!/bin/sh\necho x >> {tmp_path}/calls\nprintf '{output}' >&{stream}\nexit {status}\n"
        )
        (tmp_path / "squeue").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    answer.num_calls = lambda: len((tmp_path / "calls").read_text().splitlines())
    return answer


def test_states_of_jobs_come_with_their_reason_and_forgotten_jobs_are_missing(squeue):
    squeue("7|PENDING|ReqNodeNotAvail, UnavailableNodes:a\\n8|RUNNING|None\\n")
    assert job_statuses(["7", "8", "9"]) == {
        "7": JobStatus("PENDING", "ReqNodeNotAvail, UnavailableNodes:a"),
        "8": JobStatus("RUNNING", "None"),
    }
    squeue("slurm_load_jobs error: Invalid job id specified\\n", 1)
    assert job_statuses(["9"]) == {}


def test_an_unreachable_controller_does_not_look_like_the_end_of_the_jobs(squeue):
    squeue("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\\n", 1)
    assert job_statuses(["7"]) is None
    watcher = JobWatcher(period_s=0)
    watcher.add("7")
    assert not watcher.status("7").has_ended


def test_a_watcher_asks_once_per_period_for_all_jobs_and_not_for_ended_ones(squeue):
    squeue("7|COMPLETED|None\\n8|RUNNING|None\\n")
    watcher = JobWatcher(period_s=1000)
    for number in ("7", "8", "9"):
        watcher.add(number)
    assert [watcher.status("7").has_ended, watcher.status("8").has_ended, watcher.status("9")] == [True, False, None]
    assert squeue.num_calls() == 1
    watcher.period_s = 0
    squeue("8|FAILED|NonZeroExitCode\\n")
    assert watcher.status("8").has_ended and watcher.status("7").state == "COMPLETED"
    before = squeue.num_calls()
    assert watcher.status("9") is None and squeue.num_calls() == before  # no job is left to ask for


def test_a_requeued_or_completing_job_has_not_ended():
    assert not any(JobStatus(state, "None").has_ended for state in ("PENDING", "COMPLETING", "RUNNING", "SUSPENDED"))


def test_the_reason_of_a_job_that_waits_for_others_is_none(squeue):
    squeue("7|PENDING|Priority\\n")
    assert wait_for_reason("7") is None
