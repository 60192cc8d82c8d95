"""Import of foreign weights: a file is recognised, every tensor accounted for, and brought to our names."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_zoo.data.batch import IMAGENET_MEAN, IMAGENET_STD
from ssl_zoo.interop.foreign_file import ForeignFile, ForeignFileError, read_foreign_file
from ssl_zoo.interop.huggingface_names import official_names, sizes_of
from ssl_zoo.interop.layouts import LAYOUTS, flat_tensors, layout_of
from ssl_zoo.interop.manifest import Preprocessing
from ssl_zoo.interop.matching import absent_modules, compared, expected_networks, few, fits, mismatch
from ssl_zoo.interop.networks import (
    ENCODERS,
    PREDICTOR,
    our_encoder,
    our_predictor,
    predictor_settings,
    route,
    target_settings,
)
from ssl_zoo.interop.recognise import Known, recognise
from ssl_zoo.interop.released import method_of_file
from ssl_zoo.method import METHODS
from ssl_zoo.nn import Positions, ViTConfig

# Methods that are not here, whose encoders alone are imported: one with a like encoder, for the recipe.
_ALIKE = {
    "moco_v3": "simclr",
    "dinov2": "dino",
    "beit": "mae",
    "vit": "mae",
    "vjepa": "ijepa",
}
_CLASS_TOKEN_FEATURES = {"dino", "ibot", "msn", "moco_v3", "dinov2", "vit"}
_DECODER_HEADS = 16  # of every published decoder of MAE; I-JEPA's predictors have the encoder's number


@dataclass(frozen=True)
class Options:
    """What a user may say of a file.

    Attributes:
        method: the method that trained it, where names and shapes leave that open.
        network: the only encoder to take; None takes all networks.
        allow_partial: take what fits, instead of refusing a file with missing or unknown tensors.
    """

    method: str | None = None
    network: str | None = None
    num_heads: int | None = None
    predictor_heads: int | None = None
    image_size: tuple[int, int] | None = None
    norm_eps: float | None = None
    allow_partial: bool = False


@dataclass(frozen=True)
class ImportedWeights:
    """Weights of another project under our names.

    Attributes:
        method: that trained them; not always one that is registered here.
        registered: the registered method whose networks they are, or one with an alike encoder.
        method_settings: keys of ``registered`` that give the networks their sizes.
        target_settings: keys of its targets that do.
        networks: ``encoder``, ``target_encoder``, ``predictor`` as far as they are there.
        evaluated: the network to use by default.
        num_tensors: in the file, without optimizer and the like.
        left_out: names by reason.
        missing: names of tensors that our networks have and the file lacks; empty unless a partial match is allowed.
        remarks: sentences for the user.
    """

    file: ForeignFile
    method: str
    registered: str
    backbone: ViTConfig
    method_settings: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Tensor]]
    evaluated: str
    transform: Preprocessing
    num_tensors: int
    num_matched: int
    left_out: Mapping[str, Sequence[str]]
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    target_settings: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def pooling(self) -> str:
        return "class_token" if self.method in _CLASS_TOKEN_FEATURES and self.backbone.class_token else "average"

    def report(self) -> list[str]:
        """Return what was matched and what was not, in lines for the user."""
        config = self.backbone
        height, width = config.image_shape
        lines = [
            f"{self.file.path}: {self.method}, {', '.join(self.networks)}",
            f"backbone: width {config.embed_dim}, {config.depth} blocks, {config.num_heads} heads, patches of "
            f"{config.patch_size} px, images of {height}x{width} px, {config.positions.value} positions",
            f"{self.num_matched} of {self.num_tensors} tensors matched"
            + ("" if self.num_matched == self.num_tensors else ", these not:"),
        ]
        lines += [f"  {few(names)}: {reason}" for reason, names in self.left_out.items()]
        lines += [f"  {network} keeps its initial {few(names)}" for network, names in self.missing.items()]
        return lines + [f"note: {remark}" for remark in self.remarks]


def import_weights(path: Path, options: Options = Options()) -> ImportedWeights:
    """Read weights of another project and bring them to our names.

    Every tensor is either taken, or left out for a stated reason, or the file is refused.

    Args:
        path: of torch, safetensors, or a folder of Hugging Face or timm.

    Raises:
        ForeignFileError: an unreadable or unsafe file, unknown names, missing or unknown tensors, other shapes.
    """
    file = read_foreign_file(path)
    tensors, _ = flat_tensors(file.content)
    asked = options.method
    known = Known(asked or method_of_file(path) or "vit", options.num_heads, options.norm_eps, options.image_size)
    left_out: dict[str, str] = {}
    decoder_heads = options.predictor_heads
    if file.is_of_timm:
        given = file.config.get("model_args", {})
        known = replace(known, num_heads=known.num_heads or given.get("num_heads"))
    elif file.config is not None:
        sizes = sizes_of(file.config, str(path))
        tensors, left_out = official_names(tensors)
        known = Known(
            options.method or sizes.method, sizes.num_heads, sizes.norm_eps, sizes.image_size, sizes.layer_scale
        )
        decoder_heads, asked = decoder_heads or sizes.decoder_heads, known.method
    layout = layout_of(tensors, asked)
    if layout is None:
        raise ForeignFileError(_unknown_layout(path, tensors))
    method = _method_name(path, layout.method, options.method, known.method)
    pools_first = any(name.startswith("fc_norm.") for name in tensors) or bool(
        file.config and file.config.get("use_mean_pooling")
    )
    known = replace(known, method=method, may_lack_norm=pools_first)
    routed = route(tensors, layout)
    left_out |= routed.left_out
    networks = _chosen(path, routed.networks, options.network)
    for name in set(routed.networks) - set(networks):
        left_out |= dict.fromkeys(routed.networks[name], f"{name}, which --network {options.network} leaves out")
    return _Import(path, file, layout.evaluated, known, options, decoder_heads).finish(
        networks, left_out, routed.unknown
    )


@dataclass(frozen=True)
class _Import:
    """The facts of one import that its last steps share."""

    path: Path
    file: ForeignFile
    evaluated: Sequence[str]
    known: Known
    options: Options
    predictor_heads: int | None

    def finish(
        self, networks: Mapping[str, Mapping[str, Tensor]], left_out: Mapping[str, str], unknown: Sequence[str]
    ) -> ImportedWeights:
        """Recognise the encoders, compare all networks with those of the method here, and collect the result."""
        found, remarks, config = {}, [], None
        for name in ENCODERS:
            if name in networks:
                recognised, found[name], remarks = recognise(our_encoder(networks[name]), self.known)
                if config not in (None, recognised):
                    raise ForeignFileError(f"{self.path}: encoder and target_encoder differ; take one with --network")
                config = recognised
        method = self._method(config)
        registered = method if method in METHODS else _ALIKE.get(method, "mae")
        beside = our_predictor(method, networks.get(PREDICTOR, {}))
        settings, targets = {}, target_settings(method, beside)
        if beside:
            heads = self.predictor_heads or (_DECODER_HEADS if method == "mae" else None)
            settings = predictor_settings(method, beside, heads)
            found[PREDICTOR] = beside
            if "decoder.pos_embed" in beside and beside["decoder.pos_embed"][:, : int(config.class_token)].any():
                remarks = [*remarks, "the decoder here adds no position to the class token, the file's does"]
        if targets:
            remarks = [*remarks, "the decoder predicts tokens of the file's own tokenizer: set targets to the same one"]
        wanted = expected_networks(registered, settings, config, found, targets)
        problems, missing = compared(found, wanted)
        if absent := absent_modules(found, missing):
            remarks = [*remarks, f"the file has no {', '.join(absent)}"]
        problems += [f"{name} is unknown" for name in unknown]
        if (problems or missing) and not self.options.allow_partial:
            raise ForeignFileError(mismatch(self.path, method, problems, missing))
        taken = {
            network: {name: t for name, t in of.items() if name in wanted[network] and fits(t, wanted[network][name])}
            for network, of in found.items()
        }
        if missing:
            fresh = expected_networks(registered, settings, config, found, targets, device="cpu")
            for network, names in missing.items():
                taken[network] |= {name: fresh[network][name] for name in names}
        grouped = _by_reason(left_out)
        if problems:
            grouped["not part of these networks, or of another shape"] = problems
        num_matched = sum(map(len, networks.values())) - len(problems) + len(unknown)
        return ImportedWeights(
            file=self.file,
            method=method,
            registered=registered,
            backbone=config,
            method_settings=settings,
            networks=taken,
            evaluated=next(name for name in self.evaluated if name in taken),
            transform=_transform(self.file, method, config),
            num_tensors=sum(map(len, networks.values())) + len(left_out) + len(unknown),
            num_matched=num_matched,
            left_out=grouped,
            missing=missing,
            target_settings=targets,
            remarks=list(dict.fromkeys(remarks)),
        )

    def _method(self, config: ViTConfig) -> str:
        """Tell the method of an encoder alone by its positions and class token, where nothing else does."""
        is_named = self.options.method is not None or (self.file.config is not None and not self.file.is_of_timm)
        if self.known.method != "vit" or is_named:
            return self.known.method
        if config.positions is not Positions.sincos:
            return "vit"
        return "mae" if config.class_token else "ijepa"


def _method_name(path: Path, of_layout: str, asked: str | None, known: str) -> str:
    if of_layout != "vit" and asked is not None and asked != of_layout:
        raise ForeignFileError(f"--as {asked}: the names in {path} are those of {of_layout}; leave --as out")
    return known if of_layout == "vit" else of_layout


def _chosen(path: Path, networks: Mapping[str, dict[str, Tensor]], wanted: str | None) -> dict[str, dict[str, Tensor]]:
    there = {name: tensors for name, tensors in networks.items() if tensors}
    of_encoders = [name for name in ENCODERS if name in there]
    if not of_encoders:
        raise ForeignFileError(f"{path} holds no encoder; its networks: {', '.join(there) or 'none'}")
    if wanted is None:
        return there
    if wanted not in of_encoders:
        raise ForeignFileError(f"--network {wanted}: {path} has {' and '.join(of_encoders)}")
    return {wanted: there[wanted]}


def _by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_out.items():
        grouped[reason].append(name)
    return dict(grouped)


def _unknown_layout(path: Path, tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return f"{path} holds no tensors under names"
    known = ", ".join(dict.fromkeys(layout.method for layout in LAYOUTS))
    return (
        f"{path}: its names are of no layout that is known ({known}; names of timm and Hugging Face). It has "
        f"{few(sorted(tensors))}"
    )


def _transform(file: ForeignFile, method: str, config: ViTConfig) -> Preprocessing:
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    # I-JEPA's folders claim 0.5 for both, but its pre-training used ImageNet's (facebookresearch/ijepa, transforms.py).
    if method != "ijepa":
        mean, std = (file.preprocessor.get(f"image_{kind}", value) for kind, value in (("mean", mean), ("std", std)))
    if len(mean) != config.in_channels:
        mean, std = [0.5] * config.in_channels, [0.5] * config.in_channels
    return Preprocessing(list(config.image_shape), list(mean), list(std), channels=config.in_channels)
