"""Evaluation of encoders: what ``tools/eval_net.py`` and ``ssl_zoo.evaluate`` do."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ssl_zoo.api.encoder import Encoder
from ssl_zoo.api.loading import load
from ssl_zoo.api.opening import compose_recorded
from ssl_zoo.api.overrides import Overrides, as_words
from ssl_zoo.api.probe_checkpoints import ProbeCheckpoints
from ssl_zoo.api.training import Run
from ssl_zoo.config import Config, compose, compose_section
from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.loader import LoaderConfig
from ssl_zoo.data.sources import SourceConfig, build_splits
from ssl_zoo.data.summary import summary
from ssl_zoo.engine.build import build_run_method, build_views
from ssl_zoo.engine.data_record import FILE_NAME as DATA_FILE
from ssl_zoo.engine.data_record import compare_with_run, data_record
from ssl_zoo.engine.device import autocast, prepare_method
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.precision import PrecisionChoice, run_precision
from ssl_zoo.engine.run_directory import environment
from ssl_zoo.engine.settings import Device
from ssl_zoo.engine.trained import TrainedMethod, choose_network, open_run
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.offline import Baselines, EvaluatorResult, ExtractionProgress, table
from ssl_zoo.eval.offline import evaluate as evaluate_probe
from ssl_zoo.eval.probe import Probe, ProbeConfig
from ssl_zoo.eval.streaming import training_name
from ssl_zoo.method import Method
from ssl_zoo.nn import BACKBONES, BackboneConfig, ViT
from ssl_zoo.scores import Score

log = logging.getLogger(__name__)

ALL_IMAGES = ("probe.train_samples=0", "probe.test_samples=0")


@dataclass(frozen=True)
class Request:
    """Which scores are asked for.

    Attributes:
        evaluators: registered names.
        labels: label sets of the data; None is its first one.
        network: ``evaluated``, ``encoder`` or ``target_encoder``.
        has_baseline: also score the random-init encoder.
        is_cached: keep features on disk for the next call.
    """

    evaluators: Sequence[str]
    labels: Sequence[str | None] = (None,)
    network: str = "evaluated"
    has_baseline: bool = True
    is_cached: bool = True


@dataclass(frozen=True)
class Task:
    """What an encoder is scored on, and how images are rendered for it."""

    seed: int
    backbone: BackboneConfig
    probe: ProbeConfig
    data: SourceConfig
    view: ViewConfig | ViewSpec  # its mean and std count
    loader: LoaderConfig = field(default_factory=LoaderConfig)  # of images that stream through the encoder


@dataclass(frozen=True)
class Evaluation:
    """Results of one network.

    Attributes:
        results: one per label set and evaluator.
        files: where they were written.
    """

    results: Sequence[EvaluatorResult]
    files: Sequence[Path]

    @property
    def scores(self) -> dict[str, Score]:
        """Scores by name, preceded by the label set where it is not the data's first: ``count/knn20``."""
        return {
            f"{result.label}/{score.name}" if result.label else score.name: score
            for result in self.results
            for score in result.scores
        }


@dataclass
class Session:
    """What the evaluations of one call share."""

    ranks: Processes
    console: Console
    baselines: Baselines = field(default_factory=Baselines)


def evaluate(
    source: Encoder | Run | str | os.PathLike[str],
    evaluators: Sequence[str] = ("knn",),
    *,
    data: str | None = None,
    overrides: Overrides = (),
    labels: Sequence[str] = (),
    checkpoint: str | int = "last",
    network: str = "evaluated",
    baseline: bool = True,
    out: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> dict[str, Score]:
    """Score frozen features, as ``tools/eval_net.py`` does.

    Args:
        source: a run or its directory, a folder of weights, or an encoder of ``ssl_zoo.load``.
        evaluators: names, such as ``knn``, ``linear``, ``logistic``; ``tools/list.py evaluators`` lists them.
        data: name of a data source, by default that of the training; ``overrides`` set its keys.
        overrides: as for ``ssl_zoo.train``: ``["data.path=photos", "probe.knn.k=[5]"]``. All images are used unless
            ``probe.train_samples`` and ``probe.test_samples`` are set.
        labels: label sets of the data, by default its first.
        checkpoint, network: of a run, as for ``ssl_zoo.load``.
        baseline: also score the random-init encoder; ``score.baseline`` has the value.
        out: folder of the JSON files and cached features. By default the folder ``eval`` of a run, and none for other
            sources.
        verbose: show a progress bar and a table.

    Returns:
        Scores by name. ``value``, ``baseline``, ``spread`` and ``protocol_hash`` are attributes of each.

    Raises:
        ValueError: nothing to evaluate, an unknown evaluator, or data that is missing or lacks labels.
    """
    words = [*ALL_IMAGES, *([f"data={data}"] if data else []), *as_words(overrides)]
    request = Request(_names(evaluators), tuple(labels) or (None,), network, baseline)
    console, folder = Console(soft_wrap=True, quiet=not verbose), None if out is None else Path(out)
    path = source.path if isinstance(source, Run) else source
    if not isinstance(path, Encoder) and (Path(path) / "config.yaml").is_file():
        config = compose(Path(path) / "config.yaml", words).config
        with processes(config.trainer.device) as ranks:
            trained = open_run(Path(path), config, str(checkpoint))
            folder = folder or eval_folder(Path(path), trained, network)
            evaluation = evaluate_trained(trained, config, folder, request, Session(ranks, console))
        return _shown(evaluation, str(trained.checkpoint), console)
    encoder = path if isinstance(path, Encoder) else load(path, network=network)
    device = Device.cpu if encoder.device.type == "cpu" else Device.auto
    with processes(device) as ranks:
        evaluation = evaluate_encoder(encoder, words, folder, request, Session(ranks, console))
    return _shown(evaluation, str(encoder.origin.path), console)


def _shown(evaluation: Evaluation, title: str, console: Console) -> dict[str, Score]:
    console.print(table({title: evaluation.results}))
    return evaluation.scores


def eval_folder(run: Path, trained: TrainedMethod, network: str) -> Path:
    """Return the folder of a run's results."""
    part = "" if network == "evaluated" else f"_{network}"
    return run / "eval" / f"{trained.checkpoint.name}{part}"


def evaluate_trained(
    trained: TrainedMethod, config: Config, out: Path, request: Request, session: Session
) -> Evaluation:
    """Evaluate a network of a run, or of a method with loaded weights.

    Args:
        config: of the method; its data, probe and trainer sections say on what, how and where.
        out: folder of the JSON files and the cached features.
    """
    ranks = session.ranks
    choice = run_precision(trained.method, config.trainer, ranks, trained.precision)

    def prepare(method: Method) -> ViT:
        return choose_network(prepare_method(method, config.trainer, ranks.device), request.network)

    encoder = prepare(trained.method)
    initial = prepare(build_run_method(config)) if request.has_baseline else None
    metadata = {"weights": str(trained.checkpoint), "network": request.network, "step": trained.step}
    metadata |= {"trained_grid": trained.grid}
    view = build_views(config.views, config.backbone)[0]
    task = Task(config.seed, config.backbone, config.probe, config.data, view, config.loader)
    return _evaluate(encoder, initial, task, out, request, session, choice, metadata, _own_data(trained, config))


def _own_data(trained: TrainedMethod, config: Config) -> Path | None:
    """Return the directory of the run if it is evaluated on its own data, as its configuration names it."""
    run = trained.checkpoint.parent.parent
    if not (run / DATA_FILE).is_file():
        return None
    return run if compose(run / "config.yaml").config.data == config.data else None


def evaluate_encoder(
    encoder: Encoder, words: Sequence[str], out: Path | None, request: Request, session: Session
) -> Evaluation:
    """Evaluate a loaded encoder; arguments as for ``evaluate_trained``.

    Args:
        words: overrides that choose and set the data and the evaluators.
    """
    data, probe, seed = sections(encoder, words)
    view = ViewConfig(mean=list(encoder.transform.mean), std=list(encoder.transform.std))
    task = Task(seed, encoder.backbone, probe, data, view)
    initial = _random_init(encoder.network.config, seed).to(session.ranks.device) if request.has_baseline else None
    origin = encoder.origin
    metadata = {"weights": str(origin.path), "network": origin.network, "step": origin.step}
    network = encoder.network.to(session.ranks.device)
    choice = PrecisionChoice(encoder.precision, "set by ssl_zoo.load")
    return _evaluate(network, initial, task, out, request, session, choice, metadata)


def sections(encoder: Encoder, words: Sequence[str]) -> tuple[SourceConfig, ProbeConfig, int]:
    """Return data, probe and seed: those of the encoder's run, if it is known, with the overrides."""
    config = encoder.origin.config
    if config is None:
        if not any(word.startswith("data=") for word in words):
            raise ValueError(f"{encoder.origin.path} names no data; pass data='imagefolder' or another source")
        return compose_section("data", words), compose_section("probe", words), 0
    composed = compose_recorded(config, words).config
    return composed.data, composed.probe, composed.seed


def _random_init(config: BackboneConfig, seed: int) -> ViT:
    """Return the backbone with the initial weights of a run with this seed; methods build their encoder first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BACKBONES.build(config).eval()


def _evaluate(
    encoder: ViT,
    initial: ViT | None,
    task: Task,
    out: Path | None,
    request: Request,
    session: Session,
    choice: PrecisionChoice,
    metadata: Mapping[str, Any],
    trained_on: Path | None = None,
) -> Evaluation:
    ranks, view = session.ranks, task.view
    identity = {"data": repr(task.data), "size": task.backbone.image_shape, "precision": choice.precision.value}
    identity |= {"mean": list(view.mean), "std": list(view.std), "seed": task.seed}
    cache = FeatureCache(out / "features", identity) if request.is_cached and out is not None else None
    checkpoints = None if out is None else ProbeCheckpoints(out / "unfinished" / training_name(identity), ranks)
    metadata = {**metadata, "environment": environment(ranks, choice)}
    splits = build_splits(task.data, task.backbone.in_channels)
    metadata["data"] = data_record(splits)
    if ranks.is_main:
        log.info("data: %s", summary(splits))
        if trained_on is not None and (changes := compare_with_run(trained_on, splits)):
            log.warning("%s was trained on other data than this: %s", trained_on, changes)
    results, files = [], []
    with ExtractionProgress(session.console) as progress:
        for label in request.labels:
            settings = replace(task.probe, evaluators=list(request.evaluators), label=label or task.probe.label)
            probe = Probe(
                replace(task, probe=settings),
                splits.train,
                splits.test,
                view,
                without_test=splits.without_test,
                device=ranks.device,
                autocast=autocast(choice.precision, ranks.device),
                cache=cache,
                progress=progress,
                loader=task.loader,
                checkpoints=checkpoints,
            )
            for result in evaluate_probe(probe, encoder, initial, session.baselines, identity):
                results.append(result)
                if ranks.is_main and out is not None:
                    files.append(result.write(out, metadata))
    if checkpoints is not None:
        checkpoints.remove()
    return Evaluation(results, files)


def _names(evaluators: Sequence[str]) -> Sequence[str]:
    if isinstance(evaluators, str):
        return [evaluators]
    return list(evaluators)
