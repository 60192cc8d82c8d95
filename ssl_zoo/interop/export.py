"""Export of weights to the formats of other libraries, each verified by its features before the folder appears."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from ssl_zoo.engine.trained import TrainedMethod, choose_network
from ssl_zoo.interop import huggingface_folder, huggingface_reading, programs, timm_folder
from ssl_zoo.interop.manifest import Manifest, Preprocessing
from ssl_zoo.interop.model_card import model_card
from ssl_zoo.interop.weights import write_networks
from ssl_zoo.io import publish_directory
from ssl_zoo.nn import BACKBONES, NarrowViT, ViT

# Largest difference of a feature over the largest one. Weights are compared in float64, where equal networks agree to
# 1e-13. In float32 the order of sums alone changed pixels predicted by a ViT-B with random weights by 3e-5. Programs
# are float32.
TOLERANCE = 1e-5
FLOAT32_TOLERANCE = 1e-4
_NUM_IMAGES = (1, 3)  # batches of the verification; programs have a dynamic batch


class Format(Enum):
    """What an exported folder is for."""

    safetensors = "safetensors"  # this library, and everything that reads timm's parameter names
    timm = "timm"
    huggingface = "huggingface"
    onnx = "onnx"
    torch_export = "torch-export"


@dataclass(frozen=True)
class _Export:
    """One export while it is written."""

    encoder: ViT
    trained: TrainedMethod
    manifest: Manifest
    folder: Path


@dataclass(frozen=True)
class _Writer:
    """How a format is written and read back.

    Attributes:
        write: writes the files and returns entries for ``Manifest.details``.
        features: reads the folder back and returns patch tokens.
        needs: distribution that reads it; without it the export is written and reported as not verified.
        refusals: reasons why the format can't hold an encoder, one per option.
        dtype: of the comparison.
    """

    write: Callable[[_Export], Mapping[str, Any]]
    features: Callable[[_Export, Float[Tensor, "B C H W"]], Float[Tensor, "B N D"]]
    needs: str
    refusals: Callable[[ViT], Sequence[str]] = lambda encoder: ()
    dtype: torch.dtype = torch.float64


def export(
    trained: TrainedMethod,
    out: Path,
    manifest: Manifest,
    *,
    format: Format = Format.safetensors,
    network: str = "evaluated",
    card: Callable[[Manifest], str] = model_card,
) -> Manifest:
    """Write a folder of weights with ``manifest.json`` and a model card, atomically.

    Args:
        out: a folder that does not exist.
        manifest: of the run, without files.
        network: ``evaluated``, ``encoder`` or ``target_encoder``; safetensors get all networks and read this one by
            default.
        card: makes the model card from the manifest as written.

    Returns:
        The manifest as written; ``details["verified"]`` has the library, the largest difference and the tolerance, or
        says why the export could not be verified.

    Raises:
        ValueError: ``out`` exists, the format can't hold the backbone, or the exported features differ.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists; name a folder that does not")
    encoder = choose_network(trained.method, network).eval()
    if reasons := _WRITERS[format].refusals(encoder):
        listing = "\n  ".join(reasons)
        raise ValueError(
            f"--format {format.value} can't hold this encoder:\n  {listing}\n"
            "Formats that hold every backbone: safetensors, onnx, torch-export"
        )
    temporary = out.with_name(f".{out.name}.unfinished")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        draft = _Export(encoder, trained, manifest, temporary)
        details = {"format": format.value, **_WRITERS[format].write(draft)}
        details["verified"] = _verified(format, draft)
        manifest = replace(manifest, details={**manifest.details, **details})
        manifest = manifest.write(temporary)
        (temporary / "README.md").write_text(card(manifest))
        publish_directory(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _verified(format: Format, draft: _Export) -> Mapping[str, Any]:
    """Compare features of random images; raises where they differ."""
    writer, config, differences = _WRITERS[format], draft.encoder.config, []
    if importlib.util.find_spec(writer.needs) is None:
        return {"by": None, "reason": f"{writer.needs} is not installed"}
    reference = deepcopy(draft.encoder).to(writer.dtype)
    for number in _NUM_IMAGES:
        shape = (number, config.in_channels, *config.image_shape)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(writer.dtype)
        with torch.no_grad():
            expected = _features(draft, reference(images))
            found = writer.features(draft, images)
        if not expected.isfinite().all():
            raise ValueError("features are not finite: the encoder's weights have diverged; take another --checkpoint")
        if found.shape != expected.shape:
            raise ValueError(
                f"--format {format.value}: features of shape {list(found.shape)}, not {list(expected.shape)}"
            )
        differences.append((found - expected).abs().max() / expected.abs().max())
    worst = torch.stack(differences).max().item()  # NaN if any is
    tolerance = TOLERANCE if writer.dtype is torch.float64 else FLOAT32_TOLERANCE
    if not worst <= tolerance:
        raise ValueError(
            f"--format {format.value}: {writer.needs} {version(writer.needs)} computes features that differ by "
            f"{worst:.1e} of the largest one, more than {tolerance:g}; nothing is written. Use --format safetensors"
        )
    marks = {"largest_difference": worst, "tolerance": tolerance, "dtype": str(writer.dtype).removeprefix("torch.")}
    return {"by": f"{writer.needs} {version(writer.needs)}", **marks}


def _features(draft: _Export, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B F D"]:
    """Return what ``embedding`` and ``patches`` of a program are, in this order."""
    patches = draft.encoder.patches(tokens)
    feature = programs.pooled(tokens, patches, draft.manifest.pooling)
    return torch.cat([feature[:, None], patches], dim=1)


# --- formats ----------------------------------------------------------------------------------------------------------


def _write_safetensors(draft: _Export) -> Mapping[str, Any]:
    write_networks(draft.trained.method, draft.folder)
    return {"load": 'ssl_zoo.load("FOLDER")'}


def _read_safetensors(draft: _Export, images: Tensor) -> Tensor:
    encoder = BACKBONES.build(draft.manifest.backbone_config()).eval()
    encoder.load_state_dict(load_file(draft.folder / f"{draft.manifest.evaluated}.safetensors"))
    return _features(draft, encoder.to(images.dtype)(images))


def _write_timm(draft: _Export) -> Mapping[str, Any]:
    manifest = draft.manifest
    architecture = timm_folder.write(draft.folder, draft.encoder, _transform(manifest), pooling=manifest.pooling)
    return {"load": timm_folder.call("FOLDER"), "create_model": architecture}


def _read_timm(draft: _Export, images: Tensor) -> Tensor:
    return _features(draft, timm_folder.load(draft.folder).to(images.dtype).forward_features(images))


def _transform(manifest: Manifest) -> Preprocessing:
    """Return the one rule that other libraries apply to all images: a crop, or none where the run's images fit."""
    trained_on, transform = manifest.details.get("training_image_size"), manifest.transform
    fits = trained_on is not None and all(side <= own for side, own in zip(trained_on, transform.size, strict=True))
    return replace(transform, crop_fraction=1.0) if fits else transform


def _write_huggingface(draft: _Export) -> Mapping[str, Any]:
    manifest, decoder = draft.manifest, _decoder(draft)
    choice = huggingface_folder.choose(draft.encoder.config, manifest.method, decoder)
    run = manifest.config or {}
    masks, targets = run.get("masks") or {}, run.get("targets") or {}
    huggingface_folder.write(
        draft.folder,
        draft.encoder,
        _transform(manifest),
        choice,
        decoder,
        mask_ratio=masks.get("mask_ratio", 0.75),
        normalize_targets=targets.get("normalize", False),
    )
    options = "" if choice in (huggingface_folder.DINOV2, huggingface_folder.MAE) else ", add_pooling_layer=False"
    return {"load": f'transformers.{choice.architecture}.from_pretrained("FOLDER"{options})'}


def _read_huggingface(draft: _Export, images: Tensor) -> Tensor:
    choice = huggingface_folder.choose(draft.encoder.config, draft.manifest.method, _decoder(draft))
    model = huggingface_reading.load(draft.folder, choice).to(images.dtype)
    if choice is not huggingface_folder.MAE:
        return _features(draft, model(images).last_hidden_state)
    networks = [deepcopy(network).to(images.dtype) for network in (draft.encoder, _decoder(draft))]
    huggingface_reading.check_reconstruction(model, *networks, images, TOLERANCE)
    return _features(draft, huggingface_reading.mae_tokens(model, images))


def _decoder(draft: _Export) -> NarrowViT | None:
    return huggingface_folder.fitting_decoder(draft.trained.method, draft.manifest.method, draft.encoder.config)


def _write_onnx(draft: _Export) -> Mapping[str, Any]:
    programs.write_onnx(draft.folder, draft.encoder, draft.manifest.pooling)
    return {"load": f'onnxruntime.InferenceSession("FOLDER/{programs.ONNX_FILE}")', "outputs": list(programs.OUTPUTS)}


def _write_program(draft: _Export) -> Mapping[str, Any]:
    programs.write_program(draft.folder, draft.encoder, draft.manifest.pooling)
    return {"load": f'torch.export.load("FOLDER/{programs.PROGRAM_FILE}").module()', "outputs": list(programs.OUTPUTS)}


def _read_onnx(draft: _Export, images: Tensor) -> Tensor:
    return _of_outputs(draft, programs.run_onnx(draft.folder, images))


def _read_program(draft: _Export, images: Tensor) -> Tensor:
    return _of_outputs(draft, programs.run_program(draft.folder, images))


def _of_outputs(draft: _Export, outputs: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([outputs["embedding"][:, None], outputs["patches"]], dim=1)


_WRITERS = {
    Format.safetensors: _Writer(_write_safetensors, _read_safetensors, "safetensors"),
    Format.timm: _Writer(_write_timm, _read_timm, "timm", timm_folder.refusals),
    Format.huggingface: _Writer(_write_huggingface, _read_huggingface, "transformers", huggingface_folder.refusals),
    Format.onnx: _Writer(_write_onnx, _read_onnx, "onnxruntime", dtype=torch.float32),
    Format.torch_export: _Writer(_write_program, _read_program, "torch", dtype=torch.float32),
}
