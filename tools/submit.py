"""Submit a training to a Slurm cluster: ``python tools/submit.py --config RECIPE --nodes 2 --gpus-per-node 8 ...``."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout: its packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.config import compose
from ssl_zoo.engine.cluster import TIMEOUT_MINUTES, TrainingJob, job_submitter, parameters_of
from ssl_zoo.engine.slurm import OptionNames, pending_forever, wait_for_reason
from ssl_zoo.engine.trainer import BatchPlan
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover, plugin_words

OPTIONS = OptionNames(
    "tools/submit.py",
    {
        "nodes": "--nodes",
        "gpus_per_node": "--gpus-per-node",
        "timeout_min": "--time",
        "slurm_partition": "--partition",
        "cpus_per_task": "--cpus-per-task",
    },
)


def minutes(text: str) -> int:
    """Parse Slurm's ``90``, ``12:00:00`` or ``3-12:00:00`` into minutes."""
    match = re.fullmatch(r"(\d+)|(?:(\d+)-)?(\d+):(\d\d)(?::\d\d)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: needs minutes, HH:MM:SS or D-HH:MM:SS")
    if match[1]:
        return int(match[1])
    return (int(match[2] or 0) * 24 + int(match[3])) * 60 + int(match[4])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="RECIPE", help="recipe file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings and group options to change")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        default=1,
        metavar="G",
        help="ranks per machine (default: 1); 0: one rank on the CPU",
    )
    parser.add_argument(
        "--time",
        type=minutes,
        default=TIMEOUT_MINUTES,
        metavar="T",
        help="time limit after which the job is requeued (default: 12:00:00)",
    )
    parser.add_argument("--partition", metavar="NAME", help="partition of the cluster")
    parser.add_argument("--cpus-per-task", type=int, metavar="C", help="CPUs per rank, for loader.num_workers")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of submitit, e.g. slurm_qos=high; repeatable",
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="scripts and logs (default: OUTPUT_DIR/slurm)")
    parser.add_argument(
        "--local", action="store_true", help="run the job on this machine, without Slurm, and wait for it"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.nodes < 1 or arguments.gpus_per_node < 0 or arguments.time < 1:
        parser.error("--nodes and --time need at least 1, --gpus-per-node 0 or more")
    return arguments


def job_parameters(arguments: argparse.Namespace, run: Path) -> dict[str, str | int]:
    """Return submitit's parameters; those of ``--option`` come last."""
    parameters = {
        "name": f"ssl-zoo-{run.name}",
        "nodes": arguments.nodes,
        "tasks_per_node": max(1, arguments.gpus_per_node),
        "gpus_per_node": arguments.gpus_per_node,
        "timeout_min": arguments.time,
        "slurm_partition": arguments.partition,
        "cpus_per_task": arguments.cpus_per_task,
    }
    given = {key: value for key, value in parameters.items() if value is not None}
    return {**given, **parameters_of(arguments.option, OPTIONS.other)}


def submit(arguments: argparse.Namespace) -> int:
    """Check what can be checked before the job runs, then submit the training; return the exit status."""
    config = compose(arguments.config, arguments.overrides).config
    run = Path(config.output_dir).absolute()
    parameters = job_parameters(arguments, run)
    ranks = int(parameters["nodes"]) * int(parameters["tasks_per_node"])
    BatchPlan(config.trainer.batch_size, ranks, config.trainer.gradient_accumulation_steps)
    folder = (arguments.folder or run / "slurm").absolute()
    cluster = "local" if arguments.local else "slurm"
    submitter = job_submitter(folder, parameters, cluster=cluster, options=OPTIONS)
    recipe = str(Path(arguments.config).absolute())
    settings = [*arguments.overrides, f"output_dir={run}"]
    command = [
        sys.executable,
        "-m",
        "ssl_zoo.tools.train_net",
        "--config",
        recipe,
        *plugin_words(arguments.plugin),
        *settings,
    ]
    job = submitter.submit(TrainingJob(command, run=run))
    print(f"job {job.job_id}: {ranks} ranks, run directory {run}")
    print(f"logs: {job.paths.stdout} (rank 0), {job.paths.stderr}", flush=True)
    if not arguments.local:
        reason = wait_for_reason(job.job_id)
        if reason and (warning := pending_forever(job.job_id, reason, parameters, OPTIONS)):
            print(f"warning: {warning}", file=sys.stderr)
        return 0
    job.wait()
    return 0 if job.exception() is None else 1


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    try:
        discover(arguments.plugin)
        return submit(arguments)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
