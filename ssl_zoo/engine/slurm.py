"""Slurm's answers in terms of the options that a user gave: refused jobs, jobs that cannot start, states of jobs."""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_QUERY_SECONDS = 60  # squeue gives up by itself after three times Slurm's MessageTimeout, usually 30 s
_FIRST_SCHEDULING_SECONDS = 5.0  # after a submission Slurm needs a moment to find out why a job does not start


@dataclass(frozen=True)
class OptionNames:
    """How the command line of a tool spells submitit's parameters.

    Attributes:
        tool: what error messages start with, e.g. ``tools/submit.py``.
        named: parameters with an option of their own, e.g. ``{"timeout_min": "--time"}``.
        other: option that takes all other parameters as ``KEY=VALUE``.
    """

    tool: str
    named: Mapping[str, str] = field(default_factory=dict)
    other: str = "--option"

    def spell(self, parameter: str, value: object) -> str:
        option = self.named.get(parameter)
        return f"{self.other} {parameter}={value}" if option is None else f"{option} {value}"


@dataclass(frozen=True)
class _Cause:
    """A kind of answer: its wording in Slurm, the parameters that it is about, and what to do."""

    pattern: str
    parameters: tuple[str, ...]
    remedy: str

    def blamed(self, given: Mapping[str, object], options: OptionNames) -> str:
        """Spell the given parameters of this cause, or its first one as missing if Slurm has a default of its own."""
        spelled = [options.spell(name, given[name]) for name in self.parameters if name in given]
        missing = [name for name in self.parameters[:1] if name.startswith(("slurm_", "mem_"))]
        return ", ".join(spelled or [f"a job without {options.spell(name, '...')}" for name in missing])


_SIZE = ("nodes", "tasks_per_node", "cpus_per_task", "mem_gb")
_WHERE = ("slurm_partition",), "`sinfo` lists the partitions and their states"
_TIMES = "`sinfo -o '%P %l'` lists the time limits of the partitions"
_SIZES = "`sinfo -o '%P %D %c %m'` lists nodes, CPUs and memory (MB) per node of the partitions"
_ACCOUNTS = "`sacctmgr show associations user=$USER` lists your accounts and their partitions"
_POLICY = "`sacctmgr show associations user=$USER` and `sacctmgr show qos` list your limits"
_GPUS = "`sinfo -o '%P %G'` lists the GPUs of the partitions, and 0 trains on the CPU"

# Slurm's texts are those of src/common/slurm_errno.c and src/common/slurm_protocol_defs.c, versions 20.11 to 24.05.
_REFUSALS = (
    _Cause(
        r"violates|usage threshold|\b(QOS|Assoc)(Max|Min|Grp)",
        ("timeout_min", "nodes", "gpus_per_node", "slurm_qos"),
        _POLICY,
    ),
    _Cause(r"generic resource|\bgres\b|Trackable RESource", ("gpus_per_node", "slurm_gres"), _GPUS),
    _Cause(r"partition specified|group not permitted|partition not|not in this partition|Required partition", *_WHERE),
    _Cause(r"\baccount\b", ("slurm_account", "slurm_partition"), _ACCOUNTS),
    _Cause(r"\bqos\b", ("slurm_qos",), "`sacctmgr show associations user=$USER format=account,qos` lists yours"),
    _Cause(r"\bwckey\b", ("slurm_wckey",), "`sacctmgr show wckeys user=$USER` lists yours"),
    _Cause(r"time limit|--time\b", ("timeout_min",), _TIMES),
    _Cause(r"memory", ("mem_gb", "slurm_mem_per_cpu", "slurm_mem_per_gpu"), _SIZES),
    _Cause(r"node count", ("nodes",), _SIZES),
    _Cause(r"processors|CPU count|Task count", ("tasks_per_node", "cpus_per_task"), _SIZES),
    _Cause(r"feature", ("slurm_constraint",), "`sinfo -o '%P %f'` lists the features of the nodes"),
    _Cause(r"node name", ("slurm_nodelist", "slurm_exclude"), "`sinfo -N` lists the nodes"),
    _Cause(r"dependency", ("slurm_dependency",), "`squeue --me` lists your jobs"),
    _Cause(r"node configuration", ("gpus_per_node", *_SIZE), _SIZES),
)
_UNREACHABLE = r"Unable to contact|timed out|Zero Bytes|authentication|munge|standby mode|cannot stat file|resolve"

# Reasons of pending jobs (squeue %r) that no waiting ends: the request or the cluster must change.
_PENDING = (
    _Cause(r"PartitionTimeLimit|(QOS|Assoc)Max\w*Wall\w*PerJob", ("timeout_min",), _TIMES),
    _Cause(r"PartitionNodeLimit|(QOS|Assoc)MaxNodePerJob", ("nodes",), _SIZES),
    _Cause(r"PartitionConfig|BadConstraints|PortsUnavailable", ("gpus_per_node", *_SIZE), _SIZES),
    _Cause(r"Partition(Down|Inactive)", *_WHERE),
    _Cause(r"AccountNotAllowed|InvalidAccount|Job's account", ("slurm_account", "slurm_partition"), _ACCOUNTS),
    _Cause(r"QOSNotAllowed|InvalidQOS|Job's QOS", ("slurm_qos", "slurm_partition"), _POLICY),
    _Cause(r"(QOS|Assoc)Grp\w*Minutes", ("slurm_account",), "`sshare` shows what is left of the accounts' budgets"),
    _Cause(r"(QOS|Assoc)Max\w*Per(Job|Node)\w*|QOSMin\w*|MaxMemPerLimit", (*_SIZE, "gpus_per_node"), _POLICY),
    _Cause(
        r"ReqNodeNotAvail|Nodes required for job are DOWN|NodeDown",
        ("slurm_nodelist", "slurm_exclude", "nodes"),
        "`sinfo -R` lists the nodes that are down and why",
    ),
    _Cause(r"DependencyNeverSatisfied", ("slurm_dependency",), "`squeue --me` lists your jobs"),
    _Cause(
        r"JobHeld\w*", ("nodes",), "`scontrol release` starts a job that you hold; an administrator may hold it, too"
    ),
)


def refusal(output: str, given: Mapping[str, object], options: OptionNames) -> str:
    """Turn the error output of sbatch into one sentence that names the option to change.

    Args:
        output: what sbatch printed.
        given: submitit's parameters of the job.
    """
    lines = [
        re.sub(r"^(sbatch: )?(error: )?(Batch job submission failed: )?", "", line) for line in output.splitlines()
    ]
    message = "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "sbatch gave no reason"
    if re.search(_UNREACHABLE, message, re.IGNORECASE):
        return (
            f"{options.tool}: Slurm does not answer ({message}); try again when `scontrol ping` reports a controller "
            "that is UP"
        )
    for cause in _REFUSALS:
        if re.search(cause.pattern, message, re.IGNORECASE):
            blamed = cause.blamed(given, options) or "the job"
            return f"{options.tool}: Slurm refuses {blamed} ({message}); {cause.remedy}"
    spelled = " ".join(options.spell(name, value) for name, value in given.items())
    return f"{options.tool}: Slurm refuses the job ({message}), which was requested with {spelled}"


def pending_forever(job_id: str, reason: str, given: Mapping[str, object], options: OptionNames) -> str | None:
    """Describe why a pending job does not start before its request or the cluster changes; None if it may start.

    Args:
        reason: squeue's reason, e.g. ``PartitionTimeLimit``; ``Priority`` and ``Resources`` end by waiting.
    """
    cause = next((cause for cause in _PENDING if re.match(cause.pattern, reason)), None)
    if cause is None:
        return None
    blamed = cause.blamed(given, options)
    see = f"see {blamed}; " if blamed else ""
    return f"job {job_id} does not start ({reason}): {see}{cause.remedy}; `scancel {job_id}` removes the job"


@dataclass(frozen=True)
class JobStatus:
    """State and reason of a job, as squeue prints them, e.g. ``PENDING`` and ``Priority``."""

    state: str
    reason: str

    @property
    def has_ended(self) -> bool:
        # A requeued job is PENDING; COMPLETING, STOPPED and the like still have processes or may get them back.
        ended = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
        return self.state in ended


def job_statuses(job_ids: Sequence[str]) -> dict[str, JobStatus] | None:
    """Return the status of each job that Slurm still knows; None if Slurm does not answer.

    Slurm forgets a job some minutes after its end (MinJobAge). squeue needs no accounting database, unlike sacct.
    """
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(job_ids)}", "--format=%i|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    rows = [line.strip().split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    return {number: JobStatus(state, reason) for number, state, reason in rows}


def wait_for_reason(job_id: str) -> str | None:
    """Return the reason why a job that was just submitted is pending; None if it runs or will run by waiting.

    The reason is that of Slurm's first attempts to schedule the job: the one at the submission may be another.
    """
    deadline = time.monotonic() + _FIRST_SCHEDULING_SECONDS
    reason = None
    while time.monotonic() < deadline:
        status = (job_statuses([job_id]) or {}).get(job_id)
        if status is None or status.state != "PENDING" or status.reason in ("Priority", "Resources", "BeginTime"):
            return None
        reason = status.reason
        time.sleep(0.5)
    return reason


class JobWatcher:
    """Watches all jobs of a process with one call of squeue per period.

    Args:
        period_s: seconds between two calls.
    """

    def __init__(self, period_s: float = 10.0) -> None:
        self.period_s = period_s
        self._statuses: dict[str, JobStatus | None] = {}
        self._last_call = float("-inf")

    def add(self, job_id: str) -> None:
        self._statuses[job_id] = JobStatus("PENDING", "None")

    def status(self, job_id: str) -> JobStatus | None:
        """Return the last known status of an added job; None after Slurm has forgotten it."""
        if time.monotonic() - self._last_call > self.period_s:
            watched = [number for number, status in self._statuses.items() if status and not status.has_ended]
            found = job_statuses(watched) if watched else {}
            if found is not None:  # otherwise a controller that restarts would end the jobs
                self._statuses |= {number: found.get(number) for number in watched}
            self._last_call = time.monotonic()
        return self._statuses[job_id]
