"""Teacher features: what an averaged copy of the encoder makes of the whole image."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT, mean_per_patch, take
from ssl_zoo.plotting import PrincipalColours, on_grey, patch_colours, patch_set, rows_of, similarity_colours
from ssl_zoo.schedules import ScheduleShape, make_schedule
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS, Ema, Target, TargetConfig


class MaskTeacher(Enum):
    """Where the target block is cut out (I-JEPA paper, arXiv 2301.08243, table 11)."""

    output = "output"  # the teacher sees the whole image, its output is cut
    input = "input"  # the teacher sees the patches of the block alone


class Normalization(Enum):
    """What a target feature is measured against."""

    layer = "layer"  # each token over its features (I-JEPA)
    instance = "instance"  # each feature over the image's tokens, then each token over its features (data2vec 2.0)


@dataclass
class TeacherConfig(TargetConfig):
    """The target encoder of I-JEPA and the teacher of data2vec."""

    momentum: float = setting(0.996, "EMA momentum at the start of the run")
    final_momentum: float = setting(1.0, "EMA momentum at its end")
    momentum_shape: ScheduleShape = setting(ScheduleShape.linear, "course of the momentum: constant, linear or cosine")
    normalization: Normalization = setting(
        Normalization.layer, "layer as I-JEPA; instance first removes what all tokens of an image share"
    )
    mask: MaskTeacher = setting(MaskTeacher.output, "cut target blocks from the teacher's output or from its input")
    annealing: float = setting(1.0, "fraction of the run after which the momentum keeps its final value")
    full_precision: bool = setting(False, "run the teacher in float32 whatever trainer.precision is")

    def __post_init__(self) -> None:
        if not 0 < self.annealing <= 1:
            raise ValueError(f"targets.annealing={self.annealing}: needs a fraction of the run, above 0 and at most 1")
        for key in ("momentum", "final_momentum"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"targets.{key}={getattr(self, key)}: needs a value in 0..1")


@TARGETS.register("teacher", TeacherConfig)
class Teacher(Target):
    """Layer-normed features of an exponential moving average of the encoder."""

    def __init__(self, config: TeacherConfig, encoder: ViT) -> None:
        super().__init__()
        self.config, self.dim = config, encoder.embed_dim
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B M T dim"]:
        kind = images.device.type
        exact = self.config.full_precision and torch.amp.is_autocast_available(kind)  # which the meta device has not
        with torch.autocast(kind, enabled=False) if exact else nullcontext():
            if self.config.mask is MaskTeacher.output:
                tokens = take(self._features(images, None), masks.targets)
            else:
                tokens = self._features(images, masks.targets)
        # For the features of the last norm a second normalisation, without affine and at the default eps, as in the
        # reference (facebookresearch/ijepa, src/train.py).
        return F.layer_norm(tokens, (self.dim,))

    @torch.no_grad()
    def visualize(
        self,
        predictions: Float[Tensor, "B M T dim"],
        images: Float[Tensor, "B 3 H W"],
        masks: Masks,
        unnormalize: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B 3 H W"]],
    ) -> Mapping[str, Float[Tensor, "3 rows columns"]]:
        """``features``: image, context, the features of all patches, the predicted ones, and how far they agree.

        Features are coloured by their first three principal components over all patches of all images shown, the
        agreement is the cosine similarity of prediction and target (dark blue 0 or less, yellow 1). A patch in several
        target blocks shows the mean over its blocks.
        """
        image, grid, num_patches = unnormalize(images), self.encoder.grid, self.encoder.num_patches
        features = self(images, masks.everywhere(num_patches))[:, 0]
        similarity = F.cosine_similarity(predictions, self(images, masks), dim=-1)[..., None]
        colours = PrincipalColours.of(features)
        patches = masks.targets.flatten(1)
        seen, known = patch_set(masks.context.flatten(1), num_patches), patch_set(patches, num_patches)
        predicted = colours(mean_per_patch(predictions.flatten(1, 2), patches, num_patches))
        agreement = similarity_colours(mean_per_patch(similarity.flatten(1, 2), patches, num_patches)[..., 0])
        size = images.shape[-2:]
        columns = [
            image,
            on_grey(image, seen, grid),
            patch_colours(colours(features), grid, size),
            on_grey(patch_colours(predicted, grid, size), known, grid),
            on_grey(patch_colours(agreement, grid, size), known, grid),
        ]
        return {"features": rows_of(columns)}

    def _features(self, images: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B M T"] | None) -> Float[Tensor, "B *N D"]:
        """Features of all patches, or of kept ones, whose blocks don't see each other; in float32."""
        return self._normalized(self._patches(self.encoder(images, keep=keep)))

    def _patches(self, tokens: Float[Tensor, "B *L D"]) -> Float[Tensor, "B *N D"]:
        return tokens[..., self.encoder.num_prefix_tokens :, :].float()

    def _normalized(self, tokens: Float[Tensor, "*B N D"]) -> Float[Tensor, "*B N D"]:
        if self.config.normalization is Normalization.layer:
            return tokens
        # Not torch.var_mean, which takes 3.5 times as long on a CPU over a dimension that isn't the last.
        centred = tokens - tokens.mean(dim=-2, keepdim=True)
        return centred * (centred.square().mean(dim=-2, keepdim=True) + 1e-5).rsqrt()

    def train(self, mode: bool = True) -> "Teacher":
        """The teacher drops no path and no attention, also while the method trains."""
        super().train(mode)
        self.encoder.eval()
        return self

    def averages(self, encoder: ViT) -> Sequence[Ema]:
        course = make_schedule(self.config.momentum_shape, self.config.momentum, self.config.final_momentum)
        return (Ema(encoder, self.encoder, lambda fraction: course(min(1.0, fraction / self.config.annealing))),)

    def evaluated(self, encoder: ViT) -> ViT:
        return self.encoder
