"""A real Slurm on this machine: Debian's daemons with two nodes, for tests of jobs.

``python tests/slurm_cluster.py`` starts one to try ``tools/submit.py`` by hand and ends it with Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("127.0.0.1", "127.0.0.2")  # names that resolve on every Linux without DNS, as those of a cluster's nodes do
REQUEUE_DELAY_S = 10  # Slurm's default is 120; it starts a requeued job after the lifetime of a credential
NODE_TIMEOUT_S = 10  # Slurm's default is 300

_CONFIGURATION = """\
ClusterName=ssl-zoo-tests
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_delay}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
OverTimeLimit=1
SlurmctldTimeout=20
SlurmdTimeout={node_timeout}
MessageTimeout=30
EnforcePartLimits={enforce}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=closed Nodes=ALL AllowAccounts=nobody MaxTime=60 State=UP
"""


def why_not() -> str | None:
    """Return why no Slurm can be started here; None if it can."""
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"{', '.join(missing)} not installed: apt-get install {_PACKAGES}"
    if os.geteuid() != 0:
        return "the daemons of Slurm are started as root"
    return None


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class SlurmCluster:
    """A controller and two nodes with two CPUs each, whose files are in one folder.

    Attributes:
        environment: environment variables with which Slurm's commands reach this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        self._ports = [_free_port() for _ in range(1 + len(NODES))]
        self._conf = self.folder / "slurm.conf"
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self._conf)}

    def __enter__(self) -> "SlurmCluster":
        try:
            self.configure()
            self._start_munge()
            self.run("slurmctld", "-c")
            for node in NODES:
                self.start_node(node)
            self.wait_until(lambda: self.num_idle_nodes() == len(NODES), "all nodes are idle", 60)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def configure(self, *, enforce: str = "NO") -> None:
        """Write the configuration; a running controller reads it at the next ``scontrol reconfigure``."""
        nodes = [
            f"NodeName={name} NodeAddr={name} NodeHostname={socket.gethostname()} Port={port} CPUs=2 RealMemory=1000"
            for name, port in zip(NODES, self._ports[1:], strict=True)
        ]
        text = _CONFIGURATION.format(
            hostname=socket.gethostname(),
            controller_port=self._ports[0],
            folder=self.folder,
            requeue_delay=REQUEUE_DELAY_S,
            node_timeout=NODE_TIMEOUT_S,
            enforce=enforce,
            nodes="\n".join(nodes),
        )
        self._conf.write_text(text)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "key", "log", "seed")]
        self.run("munged", "--force", f"--socket={self.folder}/munge.socket", *files)

    def start_node(self, name: str) -> None:
        self.run("slurmd", "-N", name)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm and return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def num_idle_nodes(self) -> int:
        return self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split().count("idle")

    def job(self, number: str) -> dict[str, str]:
        """Return what ``scontrol show job`` prints; empty after Slurm has forgotten the job."""
        words = self.run("scontrol", "show", "--oneliner", "job", number, check=False).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> float:
        """Return the seconds after which a condition holds."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}\n{self.report()}")
            time.sleep(0.1)
        return time.monotonic() - started

    def report(self) -> str:
        """Describe the state of the cluster for the message of a failed test."""
        jobs = self.run("scontrol", "show", "job", check=False) + self.run("sinfo", "--long", "--Node", check=False)
        ends = [(path.name, path.read_text().splitlines()[-15:]) for path in sorted(self.folder.glob("*.log"))]
        return "\n".join([jobs, *("\n".join([f"{name}:", *lines]) for name, lines in ends)])

    def processes(self, program: str = "", **environment: str) -> list[int]:
        """List the processes of jobs on this cluster by the environment that Slurm gives them.

        Args:
            program: part of the command line.
            environment: e.g. ``SLURM_JOB_ID="3", SLURM_PROCID="1"``.
        """
        wanted = {f"{name}={value}" for name, value in environment.items()} | {f"SLURM_CONF={self._conf}"}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                variables = set((path / "environ").read_text(errors="replace").split("\0"))
                is_of_a_job = any(variable.startswith("SLURM_JOB_ID=") for variable in variables)
                if is_of_a_job and wanted <= variables and program in _command_of(int(path.name)):
                    found.append(int(path.name))
        return found

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and all processes of its jobs, as a power failure does."""
        self._kill_daemon(f"slurmd.{name}")
        self._kill_jobs(SLURMD_NODENAME=name)

    def _kill_daemon(self, name: str) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)

    def _kill_jobs(self, **environment: str) -> None:
        tasks = self.processes(**environment)
        parents = {_parent_of(task) for task in tasks}
        for process in [*(parent for parent in parents if "slurmstepd" in _command_of(parent)), *tasks]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """End the daemons by the ids in their files, and the processes of their jobs."""
        for name in ("slurmctld", *(f"slurmd.{node}" for node in NODES)):
            self._kill_daemon(name)
        self._kill_jobs()
        self._kill_daemon("munge")


def _parent_of(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _command_of(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace")
    return ""


def main() -> None:
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}\n{cluster.run('sinfo')}", flush=True)
        stop_signals = [signal.SIGINT, signal.SIGTERM]
        signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # not before, since the daemons would inherit it
        signal.sigwait(stop_signals)


if __name__ == "__main__":
    main()
