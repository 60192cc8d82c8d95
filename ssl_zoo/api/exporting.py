"""Export of a run or of imported weights: what ``tools/export_weights.py`` does."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_zoo.api.loading import manifest_of
from ssl_zoo.config import compose
from ssl_zoo.engine.build import build_run_method
from ssl_zoo.engine.trained import TrainedMethod, choose_network, open_run
from ssl_zoo.interop.export import Format, export
from ssl_zoo.interop.import_folder import RECIPE
from ssl_zoo.interop.manifest import MANIFEST, Manifest, ManifestError
from ssl_zoo.interop.model_card import model_card
from ssl_zoo.interop.start import start_from
from ssl_zoo.study.zoo import ZooEntry


@dataclass(frozen=True)
class Exported:
    """A written folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def verification(self) -> str:
        """Say in one line how the export was verified, and how it is loaded."""
        verified = self.manifest.details["verified"]
        load = self.manifest.details["load"].replace("FOLDER", str(self.folder))
        if verified["by"] is None:
            return f"not verified, since {verified['reason']}; load: {load}"
        return (
            f"verified with {verified['by']}: features differ by at most {verified['largest_difference']:.1e} of the "
            f"largest one (tolerance {verified['tolerance']:g}); load: {load}"
        )


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: Format = Format.safetensors,
    checkpoint: str = "last",
    network: str = "evaluated",
) -> Exported:
    """Export the weights of a run with manifest and model card.

    Args:
        out: a folder that does not exist; by default ``export/<checkpoint>`` of the run, followed by the format where
            that is not safetensors.
        checkpoint, network: as for ``ssl_zoo.load``.

    Raises:
        ValueError: no such run or checkpoint, ``out`` exists, or the format can't hold the encoder.
    """
    run = Path(run)
    composed = compose(run / "config.yaml")
    trained = open_run(run, composed.config, checkpoint)
    manifest = manifest_of(composed, run, trained.method, trained.checkpoint, trained.step, network)
    entry = ZooEntry.read(run, str(trained.step))
    environment = entry.record.environment
    marks = {name: environment[name] for name in ("commit", "dirty") if name in environment}
    manifest = replace(manifest, source={**manifest.source, "recipe": entry.recipe, **marks})
    suffix = "" if format is Format.safetensors else f"_{format.value}"
    folder = Path(out) if out else run / "export" / f"{trained.checkpoint.name}{suffix}"
    is_evaluated = choose_network(trained.method, network) is trained.method.eval_encoder()
    scores = [score.row() for score in entry.scores] if is_evaluated else []

    def card(written: Manifest) -> str:
        facts = {name: text for name, text in entry.facts().items() if name != "weights"}
        return model_card(written, facts, scores)

    return Exported(folder, export(trained, folder, manifest, format=format, network=network, card=card))


def export_import(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: Format,
    network: str = "evaluated",
) -> Exported:
    """Export imported weights to the format of another library.

    Args:
        folder: a folder of ``tools/import_weights.py``.
        out: a folder that does not exist; by default ``<folder>_<format>``.
        network: as for ``ssl_zoo.load``.

    Raises:
        ValueError: no such folder, ``out`` exists, or the format can't hold the encoder.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file() or not (folder / MANIFEST).is_file():
        raise ManifestError(f"{folder} is no folder of tools/import_weights.py; export a run with --run")
    if format is Format.safetensors:
        raise ManifestError(f"{folder} has the weights as safetensors already; choose another --format")
    manifest = Manifest.read(folder)
    method = build_run_method(compose(folder / RECIPE).config)
    start_from(method, folder)
    if "predictor.safetensors" not in manifest.files and hasattr(method, "decoder"):
        del method.decoder  # it is as initialised, and would be exported beside the encoder
    trained = TrainedMethod(method, folder, manifest.step)
    draft = replace(manifest, kind="export", files={}, details={})
    target = Path(out) if out else folder.with_name(f"{folder.name}_{format.value}")
    return Exported(target, export(trained, target, draft, format=format, network=network))
