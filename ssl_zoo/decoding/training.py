"""Training of a decoder on a run, and the decoder opened again."""

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_zoo.config import compose_settings
from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.data.sources import Source, Split, build_source
from ssl_zoo.decoding.blocks import VIEW, FrozenPredictor
from ssl_zoo.decoding.decoder import BlockDecoder, DecoderConfig
from ssl_zoo.engine import hooks
from ssl_zoo.engine.alarm import CollapseAlarm
from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.checkpoint.state import CheckpointError, read_checkpoint, restore
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.loggers import LoggedRun, Tags, build_loggers
from ssl_zoo.engine.metrics import Metrics
from ssl_zoo.engine.precision import choose_precision, recorded_precision
from ssl_zoo.engine.progress import ProgressBar
from ssl_zoo.engine.run_directory import RunDirectory, environment, flatten
from ssl_zoo.engine.trained import TrainedMethod, find_checkpoint
from ssl_zoo.engine.trainer import Hook, Trainer
from ssl_zoo.seeding import seed_for

FOLDER = "decoder"  # in the run directory
_SCALE_BATCHES = 8  # whose predictions set the scale of all
_PREDICTOR = "predictor"  # key of the origin among the settings in the manifest: a resume compares it


@dataclass(frozen=True)
class Origin:
    """The weights that a decoder decodes the predictions of.

    Attributes:
        step: of the run's checkpoint; 0 as initialised.
        sha256: of the checkpoint's files of weights; of the tensors as initialised.
    """

    step: int
    sha256: list[str]

    @classmethod
    def of(cls, trained: TrainedMethod, predictor: FrozenPredictor, settings: DecoderConfig) -> "Origin":
        if settings.random_init:
            digest = hashlib.sha256()
            for name, tensor in sorted(predictor.method.state_dict().items()):
                digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
            return cls(0, [digest.hexdigest()])
        files = read_checkpoint(trained.checkpoint, optimizer=False).manifest["files"]
        return cls(trained.step, [files[name]["sha256"] for name in sorted(files) if name.startswith("method")])


def decoded_view(config: RunConfig) -> ViewSpec:
    """Return the run's view ``image``, in which target blocks are predicted, with the augmentations of its training.

    Raises:
        ValueError: the run has no such view.
    """
    for spec in build_views(config.views, config.backbone):
        if spec.name == VIEW:
            return spec
    raise ValueError(f"the run's views have no {VIEW!r}, in which target blocks are predicted")


def decoder_data(
    config: RunConfig, settings: DecoderConfig, source: Source, rank: int = 0, world_size: int = 1
) -> TrainingData:
    """Return batches of the run's images under its masks, in the order of the decoder's seed."""
    view = decoded_view(config)
    return TrainingData(
        source,
        [view],
        build_generators([view], config.masks, config.backbone),
        seed=settings.seed,
        batch_size=settings.trainer.batch_size,
        rank=rank,
        world_size=world_size,
        config=settings.loader,
    )


def frozen_predictor(trained: TrainedMethod, config: RunConfig, settings: DecoderConfig) -> FrozenPredictor:
    """Return the method whose predictions are decoded: the trained one, or as the run initialised it.

    Raises:
        ValueError: the method predicts no target blocks.
    """
    return FrozenPredictor(build_run_method(config) if settings.random_init else trained.method)


def build_decoder(predictor: FrozenPredictor, settings: DecoderConfig, data: TrainingData) -> BlockDecoder:
    """Build an untrained decoder, whose scale of predictions it measures on the first batches.

    Args:
        data: of a single rank, so that the scale is the same on all.
    """
    batches = [data.to_device(data.batch(step), "cpu") for step in range(_SCALE_BATCHES)]
    width = predictor(batches[0].rows(slice(0, 1))).predictions.shape[1]
    decoder = _untrained(predictor, settings, data.views[0].channels, width)
    decoder.fit_scale(batches)
    return decoder


def _untrained(predictor: FrozenPredictor, settings: DecoderConfig, channels: int, width: int) -> BlockDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(settings.seed, "decoder"))
        return BlockDecoder(settings, predictor, channels=channels, prediction_dim=width)


def train_decoder(
    run: Path,
    trained: TrainedMethod,
    config: RunConfig,
    values: DictConfig,
    console: Console,
    ranks: Processes,
    *,
    folder: Path | None = None,
    resume: str = "auto",
) -> Path:
    """Train a decoder of a run's predictions, or resume it; the frozen method is not changed.

    Args:
        run: the run directory of ``trained``.
        config: of the run.
        values: of a ``DecoderConfig``, from ``compose_settings``.
        folder: for the decoder; by default ``decoder`` in the run directory.
        resume: as for ``RunDirectory.find_checkpoint``.

    Returns:
        The folder, itself a run directory: ``config.yaml``, ``metrics.jsonl``, ``figures``, ``checkpoints``.

    Raises:
        ValueError: the method predicts no target blocks.
        CheckpointError: the folder has a decoder with other settings or of other weights.
    """
    settings: DecoderConfig = OmegaConf.to_object(values)
    predictor = frozen_predictor(trained, config, settings)
    origin = asdict(Origin.of(trained, predictor, settings))
    chosen = {"choices": {"method": FOLDER}, **_plain(values), _PREDICTOR: origin}
    directory = RunDirectory(folder or run / FOLDER, chosen, _plain(OmegaConf.structured(DecoderConfig)))
    checkpoint = directory.find_checkpoint(resume)
    source = build_source(config.data, Split.train, config.backbone.in_channels)
    decoder = build_decoder(predictor, settings, decoder_data(config, settings, source))
    predictor.to(ranks.device)
    recorded = None if checkpoint is None else recorded_precision(checkpoint)
    choice = choose_precision(settings.trainer.precision, ranks.device, recorded=recorded)
    name = run.resolve().name
    text = f"# Every value of a decoder of {name} at step {origin['step']}.\n{OmegaConf.to_yaml(values)}"
    manifest = {"method": FOLDER, "config": chosen, "precision": choice.precision.value, "run": name}
    logged = LoggedRun(directory.path, text, flatten(_plain(values)), shlex.join(sys.orig_argv), Tags.of(decoder, {}))
    observers = _observers(directory, settings, logged, manifest, console, ranks)
    data = decoder_data(config, settings, source, ranks.rank, ranks.world_size)
    given = {"optim": settings.optim, "config": settings.trainer, "seed": settings.seed}
    trainer = Trainer(decoder, data, ranks, hooks=observers, precision=choice.precision, **given)
    if checkpoint is not None:
        observers[-1].resume(trainer, checkpoint)
    if ranks.is_main:
        if checkpoint is not None:
            directory.set_aside_after(checkpoint)
        facts = {**environment(ranks, choice), "num_steps": trainer.num_steps, "run": name, _PREDICTOR: origin}
        directory.write_start(text, facts)
    trainer.train()
    return directory.path


def _observers(
    directory: RunDirectory,
    settings: DecoderConfig,
    run: LoggedRun,
    manifest: Mapping[str, Any],
    console: Console,
    ranks: Processes,
) -> Sequence[Hook]:
    """Build the hooks of a decoder's training, the checkpointer last."""
    loggers = build_loggers(settings.monitor, run) if ranks.is_main else []
    writers = [*loggers, ProgressBar(console, settings.monitor.progress_bar)]
    alarm = CollapseAlarm(settings.monitor.alarm)
    return [
        hooks.StopOnSignal(),
        hooks.OffendingStep(directory.path),
        hooks.CorruptSamples(directory.corrupt_samples, settings.loader.max_corrupt_fraction),
        Metrics(settings.monitor.log_every, writers if ranks.is_main else [], alarm),
        alarm,
        hooks.Visualizations(directory.figures, settings.monitor.images_every, loggers),
        hooks.Checkpointer(directory.path, settings.trainer, manifest),
    ]


def open_decoder(folder: Path, run: Path, trained: TrainedMethod, config: RunConfig) -> BlockDecoder:
    """Return the trained decoder of a folder, on the CPU; it samples in the precision of its training.

    Args:
        run: the run directory of ``trained``.

    Raises:
        CheckpointError: no decoder, or one of another checkpoint of the run.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} holds no decoder; train one: python tools/train_decoder.py --run {run}"
            + ("" if folder == run / FOLDER else f" --out {folder}")
        )
    settings: DecoderConfig = OmegaConf.to_object(compose_settings(DecoderConfig, folder / "config.yaml", []))
    predictor = frozen_predictor(trained, config, settings)
    checkpoint = read_checkpoint(find_checkpoint(folder, "last"), optimizer=False)
    there, here = checkpoint.manifest["config"][_PREDICTOR], Origin.of(trained, predictor, settings)
    if there["sha256"] != here.sha256:
        raise CheckpointError(
            f"{checkpoint.path} decodes step {there['step']} of {checkpoint.manifest.get('run')}, not the weights of "
            f"{run} at step {here.step}; choose that step by --checkpoint, or train a decoder of this one"
        )
    [width] = next(t.size for name, t in checkpoint.reader.tensors.items() if name.endswith("/prediction_mean"))
    decoder = _untrained(predictor, settings, config.backbone.in_channels, width)
    restore(checkpoint, decoder)
    decoder.precision = recorded_precision(checkpoint)
    return decoder.eval()


def _plain(values: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(values, enum_to_str=True)
