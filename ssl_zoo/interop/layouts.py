"""Layouts of official files: which method wrote one, and which of its tensors are the encoder's, the predictor's, ...

Names are those of the files without wrappers: ``student.module.backbone.norm.bias`` is ``student.backbone.norm.bias``.
A layout is recognised by beginnings of such names, and its routes say what becomes of each tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.interop.foreign_file import ForeignFileError

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # DDP, torch.compile, FSDP
_CONTAINERS = ("model", "state_dict")  # keys that hold the one network of a file
# Beside the weights of a training; never looked into, since moments have the shapes of weights.
_TRAINING_STATE = {"opt", "optim", "optimizer", "optimizers", "optimizer_state_dict", "optimizer_history", "scaler"}
_TRAINING_STATE |= {"lr_scheduler", "scheduler", "fp16_scaler", "amp", "extra_state", "last_optimizer_state"}
_MAX_DEPTH = 4  # of mappings in mappings


@dataclass(frozen=True)
class Route:
    """Where the tensors go whose names have a beginning.

    Attributes:
        beginning: of the names; the first route of a layout that fits a name is taken.
        network: ``encoder``, ``target_encoder`` or ``predictor`` (everything else of the method); None leaves them out.
        prefix: what replaces the beginning.
        reason: why the tensors are left out.
    """

    beginning: str
    network: str | None
    prefix: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Layout:
    """The layout of the files of one method.

    Attributes:
        marks: beginnings of names that a file of this layout has, one of every tuple.
        evaluated: networks to evaluate, the preferred one first.
    """

    method: str
    marks: tuple[tuple[str, ...], ...]
    routes: tuple[Route, ...]
    evaluated: tuple[str, ...] = ("encoder", "target_encoder")

    def fits(self, names: Iterable[str]) -> bool:
        names = tuple(names)
        return all(any(name.startswith(mark) for name in names) for mark in self.marks)


_EMA_FIRST = ("target_encoder", "encoder")
_CLASSIFIER = "a classifier, no part of the encoder"
_POOLED_NORM = "norm of the pooled feature before a classifier"
_PROJECTOR = "a projection head, whose names and norms are not those of the heads here"
_RUNNING = "running statistics of batch normalization, which the heads here do not keep"

_JOINT = (Route("encoder.", "encoder"), Route("target_encoder.", "target_encoder"))
_STUDENT_AND_TEACHER = (
    Route("student.backbone.masked_embed", "predictor", "mask_token"),
    Route("student.backbone.", "encoder"),
    Route("teacher.backbone.masked_embed", None, reason="the teacher masks nothing"),
    Route("teacher.backbone.", "target_encoder"),
    Route("student.head.last_layer2.", None, reason="a head of patches of its own; here images and patches share one"),
    Route("teacher.head.last_layer2.", None, reason="a head of patches of its own; here images and patches share one"),
    Route("student.head.", "predictor", "head."),
    Route("teacher.head.", "predictor", "teacher_head.module."),
    Route("dino_loss.center", "predictor", "center"),
    Route("ibot_loss.center2", "predictor", "patch_center"),
    Route("ibot_loss.center", "predictor", "center"),
)
_PLAIN = (
    *(Route(f"{head}.", None, reason=_CLASSIFIER) for head in ("head", "fc", "classifier", "head_dist", "head_drop")),
    Route("fc_norm.", None, reason=_POOLED_NORM),
    Route("lm_head.", None, reason="a head over visual words, which no method here predicts"),
    Route("mask_token", None, reason="a mask token without its method"),
    Route("masked_embed", None, reason="a mask token without its method"),
    Route("", "encoder"),
)

# In the order of their trial: the marks of later ones occur in files of earlier ones too.
LAYOUTS = (
    # facebookresearch/fairseq, examples/data2vec; blocks before the decoder's choice of patches come first.
    Layout(
        "data2vec2",
        (("modality_encoders.IMAGE.",),),
        (
            Route("_ema.", None, reason="EMA weights of blocks; the reference evaluates the student"),
            Route("modality_encoders.IMAGE.extra_tokens", "encoder", "cls_token"),
            Route("modality_encoders.IMAGE.local_encoder.", "encoder", "patch_embed."),
            Route("modality_encoders.IMAGE.fixed_positional_encoder.positions", "encoder", "pos_embed"),
            Route("modality_encoders.IMAGE.positional_encoder.pos_embed", "encoder", "pos_embed"),
            Route("modality_encoders.IMAGE.context_encoder.norm.", "encoder", "norm_pre."),
            Route("modality_encoders.IMAGE.context_encoder.blocks.", "encoder", "prenet_blocks."),
            Route("modality_encoders.IMAGE.decoder.blocks.", "predictor", "decoder.layers."),
            Route("modality_encoders.IMAGE.decoder.proj.", "predictor", "decoder.proj_out."),
            Route("blocks.", "encoder", "blocks."),
        ),
    ),
    # facebookresearch/moco-v3
    Layout(
        "moco_v3",
        (("base_encoder.", "momentum_encoder."),),
        (
            *(Route(f"{net}_encoder.head.", None, reason=_PROJECTOR) for net in ("base", "momentum")),
            Route("base_encoder.", "encoder"),
            Route("momentum_encoder.", "target_encoder"),
            Route("predictor.", None, reason=_PROJECTOR),
        ),
    ),
    # bytedance/ibot and facebookresearch/dino
    Layout("ibot", (("student.backbone.masked_embed", "ibot_loss."),), _STUDENT_AND_TEACHER, _EMA_FIRST),
    Layout("dino", (("student.backbone.", "teacher.backbone."),), _STUDENT_AND_TEACHER, _EMA_FIRST),
    # facebookresearch/jepa; networks of images alone, those of videos have kernels of five dimensions
    Layout(
        "vjepa",
        (("encoder.backbone.", "target_encoder.backbone.", "ema_encoder.backbone.", "ema_encoder."),),
        (
            Route("encoder.backbone.", "encoder"),
            Route("target_encoder.backbone.", "target_encoder"),
            Route("ema_encoder.backbone.", "target_encoder"),
            Route("ema_encoder.", "target_encoder"),
            Route("predictor.", None, reason="V-JEPA's predictor is one of videos"),
        ),
        _EMA_FIRST,
    ),
    # facebookresearch/msn
    Layout(
        "msn",
        (("encoder.fc.fc1.", "target_encoder.fc.fc1.", "prototypes"), ("encoder.", "target_encoder.")),
        (
            *(
                Route(f"{net}.fc.bn{number}.{buffer}", None, reason=_RUNNING)
                for net in ("encoder", "target_encoder")
                for number in (1, 2)
                for buffer in ("running_mean", "running_var", "num_batches_tracked")
            ),
            Route("encoder.fc.", "predictor", "head."),
            Route("target_encoder.fc.", "predictor", "target_head.module."),
            Route("prototypes", "predictor", "prototypes"),
            *_JOINT,
        ),
        _EMA_FIRST,
    ),
    # Atten4Vis/CAE
    Layout(
        "cae",
        (("encoder.blocks.0.gamma_1",), ("encoder.pos_embed", "regresser.", "alignment_encoder.")),
        (
            Route("encoder.", "encoder"),
            *(Route(f"{net}.", "target_encoder") for net in ("alignment_encoder", "teacher")),
            Route("regresser.", "predictor", "regressor."),  # spelled so in the reference
            Route("decoder.", "predictor", "decoder."),
            Route("mask_token", "predictor", "mask_token"),
            Route("rd_pos_embed", None, reason="positions of regressor and decoder, which are computed here"),
        ),
    ),
    # microsoft/SimMIM
    Layout(
        "simmim",
        (("encoder.rel_pos_bias.", "decoder.0.weight"), ("encoder.",)),
        (
            Route("encoder.mask_token", "predictor", "mask_token"),
            Route("encoder.", "encoder"),
            Route("decoder.0.", "predictor", "head."),
        ),
    ),
    # ViTForMaskedImageModeling of transformers, which is SimMIM with learned positions
    Layout(
        "simmim",
        (("decoder.0.weight",), ("patch_embed.",)),
        (
            Route("mask_token", "predictor", "mask_token"),
            Route("decoder.0.", "predictor", "head."),
            Route("", "encoder"),
        ),
    ),
    # facebookresearch/ijepa
    Layout(
        "ijepa",
        (("encoder.patch_embed.", "target_encoder.patch_embed."),),
        (*_JOINT, Route("predictor.", "predictor", "predictor.")),
        _EMA_FIRST,
    ),
    # facebookresearch/data2vec_vision, folder beit
    Layout(
        "data2vec",
        (("lm_head.",), ("blocks.0.attn.q_bias",)),
        (
            *(
                Route(f"model_ema.{own}", None, reason="the teacher masks nothing")
                for own in ("lm_head.", "mask_token")
            ),
            Route("model_ema.", "target_encoder"),
            Route("lm_head.", "predictor", "head."),
            Route("mask_token", "predictor", "mask_token"),
            Route("", "encoder"),
        ),
    ),
    # facebookresearch/mae
    Layout(
        "mae",
        (("decoder_embed.",), ("decoder_blocks.",)),
        (
            Route("decoder_", "predictor", "decoder.decoder_"),
            Route("mask_token", "predictor", "decoder.mask_token"),
            *_PLAIN,
        ),
    ),
    # Encoders alone, in the names of timm; `recognise` tells methods apart by their positions.
    Layout("vit", (("patch_embed.",), ("blocks.",)), _PLAIN),
)


def flat_tensors(content: Mapping[str, Any], path: str = "") -> tuple[dict[str, Tensor], int]:
    """Return every tensor of a file by its dotted name without wrappers, and the number of those of training state.

    Raises:
        ForeignFileError: a tensor of a kind that weights never are, or that claims more values than the file holds.
    """
    tensors: dict[str, Tensor] = {}
    num_skipped = 0
    for key, value in content.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Tensor):
            _require_plain(name, value)
            tensors[_without_wrappers(name)] = value
        elif isinstance(value, Mapping) and name.count(".") < _MAX_DEPTH:
            inner, skipped = flat_tensors(value, name)
            if key in _TRAINING_STATE:
                num_skipped += len(inner) + skipped
            else:
                tensors, num_skipped = tensors | inner, num_skipped + skipped
    if not path:
        tensors = _without_container(tensors)
    return tensors, num_skipped


def _require_plain(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ForeignFileError(f"{name} is a sparse, quantised or empty tensor; only plain ones are weights")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ForeignFileError(f"{name} has shape {list(tensor.shape)}, but the file holds fewer values; it is refused")


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_container(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for container in _CONTAINERS:
        beginning = f"{container}."
        if any(name.startswith(beginning) for name in tensors):
            tensors = {name.removeprefix(beginning): tensor for name, tensor in tensors.items()}
    # Files of a backbone alone, as V-JEPA's and several ports have them.
    if tensors and all(name.startswith("backbone.") for name in tensors):
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    return tensors


def layout_of(names: Iterable[str], method: str | None = None) -> Layout | None:
    """Return the layout that a file's names fit.

    Args:
        method: decides where several fit; that of encoders alone fits every method.
    """
    names = tuple(names)
    fitting = [layout for layout in LAYOUTS if layout.fits(names)]
    of_method = [layout for layout in fitting if layout.method == method]
    plain = [layout for layout in fitting if method is not None and layout.method == "vit"]
    return next(iter([*of_method, *plain, *fitting]), None)
