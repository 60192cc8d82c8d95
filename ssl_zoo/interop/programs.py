"""Export to programs that run without this library: ONNX and ``torch.export``.

A program maps normalised images (B, C, H, W) of the encoder's size, for any B, to ``embedding`` (B, D) and ``patches``
(B, N, D). It holds every backbone, since it records operations and not a class.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.nn import ViT

ONNX_FILE, PROGRAM_FILE = "model.onnx", "model.pt2"
OUTPUTS = ("embedding", "patches")
_MAX_ONNX_BYTES = 1_500_000_000  # a file of protobuf ends at 2 GiB; larger weights lie beside it


class FeatureProgram(nn.Module):
    """The encoder with its default pooling, from images to both kinds of features."""

    def __init__(self, encoder: ViT, pooling: str) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"]]:
        tokens = self.encoder(images)
        patches = self.encoder.patches(tokens)
        return pooled(tokens, patches, self.pooling), patches


def pooled(tokens: Float[Tensor, "B L D"], patches: Float[Tensor, "B N D"], pooling: str) -> Float[Tensor, "B D"]:
    """Return the class token, or the mean over the patch tokens."""
    return tokens[:, 0] if pooling == "class_token" else patches.mean(dim=1)


def write_program(folder: Path, encoder: ViT, pooling: str) -> None:
    """Write ``model.pt2``, which ``torch.export.load(path).module()`` runs."""
    torch.export.save(_exported(encoder, pooling), folder / PROGRAM_FILE)


def run_program(folder: Path, images: Float[Tensor, "B C H W"]) -> Mapping[str, Tensor]:
    """Return the outputs of an exported program by name."""
    outputs = torch.export.load(folder / PROGRAM_FILE).module()(images)
    return dict(zip(OUTPUTS, outputs, strict=True))


def write_onnx(folder: Path, encoder: ViT, pooling: str) -> None:
    """Write ``model.onnx`` with a dynamic batch dimension.

    Raises:
        ValueError: the packages of the extra ``onnx`` are missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: pip install 'ssl-zoo[onnx]'")
    num_bytes = sum(parameter.nbytes for parameter in encoder.parameters())
    with _quiet():
        torch.onnx.export(
            _exported(encoder, pooling),
            f=str(folder / ONNX_FILE),
            dynamo=True,
            input_names=["images"],
            output_names=list(OUTPUTS),
            external_data=num_bytes > _MAX_ONNX_BYTES,
            verbose=False,
        )


def run_onnx(folder: Path, images: Float[Tensor, "B C H W"]) -> Mapping[str, Tensor]:
    """Return the outputs of an ONNX file by name, computed by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
    outputs = session.run(list(OUTPUTS), {"images": images.numpy()})
    return {name: torch.from_numpy(output) for name, output in zip(OUTPUTS, outputs, strict=True)}


def _exported(encoder: ViT, pooling: str) -> torch.export.ExportedProgram:
    program = FeatureProgram(encoder, pooling).eval()
    config = encoder.config
    images = torch.zeros(2, config.in_channels, *config.image_shape)  # torch.export would fix a batch size of one
    with torch.no_grad():
        return torch.export.export(program, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
