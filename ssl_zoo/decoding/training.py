"""Training of a decoder on a run, and the decoder opened again."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

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
from ssl_zoo.engine.metrics import JsonLines, Metrics, TensorBoard
from ssl_zoo.engine.precision import choose_precision, recorded_precision
from ssl_zoo.engine.progress import ProgressBar
from ssl_zoo.engine.run_directory import RunDirectory, environment
from ssl_zoo.engine.trained import TrainedMethod, find_checkpoint
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.seeding import seed_for

log = logging.getLogger(__name__)

FOLDER = "decoder"  # in the run directory
_SCALE_BATCHES = 8  # whose predictions set the scale of all
_PREDICTOR = "predictor"  # key of the origin in the manifest


@dataclass(frozen=True)
class Origin:
    """The frozen predictor of a decoder.

    Attributes:
        run: name of the run directory.
        step: of its checkpoint; 0 as initialised.
        sha256: of the checkpoint's files of weights; None as initialised.
    """

    run: str
    step: int
    sha256: tuple[str, ...] | None

    @classmethod
    def of(cls, run: Path, trained: TrainedMethod, config: DecoderConfig) -> "Origin":
        if config.random_init:
            return cls(run.resolve().name, 0, None)
        files = read_checkpoint(trained.checkpoint, optimizer=False).manifest["files"]
        weights = tuple(entry["sha256"] for name, entry in sorted(files.items()) if name.startswith("method"))
        return cls(run.resolve().name, trained.step, weights)


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
    plain = OmegaConf.to_container(values, enum_to_str=True)
    origin = json.loads(json.dumps(asdict(Origin.of(run, trained, settings))))
    chosen = {"choices": {"method": FOLDER}, **plain, _PREDICTOR: origin}
    directory = RunDirectory(folder or run / FOLDER, chosen, OmegaConf.to_container(_defaults(), enum_to_str=True))
    checkpoint = directory.find_checkpoint(resume)
    source = build_source(config.data, Split.train, config.backbone.in_channels)
    decoder = build_decoder(predictor, settings, decoder_data(config, settings, source))
    predictor.to(ranks.device)
    recorded = None if checkpoint is None else recorded_precision(checkpoint)
    choice = choose_precision(settings.trainer.precision, ranks.device, recorded=recorded)
    text = f"# Every value of a decoder of {origin['run']} at step {origin['step']}.\n{OmegaConf.to_yaml(values)}"
    tensorboard = TensorBoard(directory.tensorboard, text) if settings.monitor.tensorboard else None
    writers = [JsonLines(directory.metrics), ProgressBar(console, live=settings.monitor.progress_bar)]
    writers += [tensorboard] if tensorboard else []
    alarm = CollapseAlarm(settings.monitor.alarm)
    manifest = {"method": FOLDER, "config": chosen, "precision": choice.precision.value}
    checkpointer = hooks.Checkpointer(directory.path, settings.trainer, manifest)
    observers = [
        hooks.StopOnSignal(),
        hooks.OffendingStep(directory.path),
        hooks.CorruptSamples(directory.corrupt_samples, settings.loader.max_corrupt_fraction),
        Metrics(settings.monitor.log_every, writers if ranks.is_main else [], alarm),
        alarm,
        hooks.Visualizations(directory.figures, settings.monitor.images_every, tensorboard),
        checkpointer,
    ]
    data = decoder_data(config, settings, source, ranks.rank, ranks.world_size)
    trainer = Trainer(
        decoder,
        data,
        ranks,
        optim=settings.optim,
        config=settings.trainer,
        seed=settings.seed,
        hooks=observers,
        precision=choice.precision,
    )
    if checkpoint is not None:
        checkpointer.resume(trainer, checkpoint)
    if ranks.is_main:
        if checkpoint is not None:
            directory.set_aside_after(checkpoint)
        directory.write_start(text, {**environment(ranks, choice), "num_steps": trainer.num_steps, _PREDICTOR: origin})
    trainer.train()
    return directory.path


def open_decoder(folder: Path, run: Path, trained: TrainedMethod, config: RunConfig) -> BlockDecoder:
    """Return the trained decoder of a folder, on the CPU.

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
    checkpoint = read_checkpoint(find_checkpoint(folder, "last"), optimizer=False)
    there, here = checkpoint.manifest["config"].get(_PREDICTOR), Origin.of(run, trained, settings)
    if there is None or there["sha256"] != (None if here.sha256 is None else list(here.sha256)):
        raise CheckpointError(
            f"{checkpoint.path} decodes {there and there['run']} at step {there and there['step']}, not the weights of "
            f"{run} at step {here.step}; choose that step by --checkpoint, or train a decoder of this one"
        )
    [width] = next(t.size for name, t in checkpoint.reader.tensors.items() if name.endswith("/prediction_mean"))
    decoder = _untrained(frozen_predictor(trained, config, settings), settings, config.backbone.in_channels, width)
    restore(checkpoint, decoder)
    return decoder.eval()


def _defaults() -> DictConfig:
    return OmegaConf.structured(DecoderConfig)
