"""The summary on the terminal at the end of a run."""

from rich.console import Console
from rich.table import Table

from ssl_zoo.engine.checkpoint.folders import list_checkpoints
from ssl_zoo.engine.hooks import Evaluation
from ssl_zoo.engine.loggers.tensorboard import EVENT_FILES
from ssl_zoo.engine.run_directory import RunDirectory
from ssl_zoo.engine.trainer import Trainer


def report(console: Console, run: RunDirectory, trainer: Trainer, evaluation: Evaluation) -> None:
    """Print scores beside those at random initialisation, the files of the run, and the next command."""
    if trainer.is_done:
        console.print(f"\nTrained {trainer.num_steps} steps, {trainer.epoch:.1f} epochs.")
    else:
        console.print(f"\nStopped at step {trainer.step} of {trainer.num_steps}; the same command resumes it.")
    if evaluation.scores:
        table = Table("evaluation", "random init", "trained", title="Held-out scores", title_justify="left")
        for score in evaluation.scores:
            form = ".1%" if score.is_fraction else ".4g"
            table.add_row(score.name, *("" if v is None else format(v, form) for v in (score.baseline, score.value)))
        console.print(table)
    checkpoints = list_checkpoints(run.path)
    files = [("metrics", run.metrics), ("images", run.figures), ("config", run.path / "config.yaml")]
    files += [("checkpoint", checkpoints[-1])] if checkpoints else []
    for name, path in files:
        if path.exists():
            console.print(f"{name:>10}: {path}", highlight=False)
    if any(run.path.glob(EVENT_FILES)):
        # In the folder above, the run has a name, and those beside it are there to compare.
        console.print(f"{'watch':>10}: tensorboard --logdir {run.path.parent}", highlight=False)
