"""Features of an encoder as targets: which patches it sees, and how its features are normalised."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT, mean_per_patch, take
from ssl_zoo.plotting import (
    BLANK,
    Column,
    Figure,
    PrincipalColours,
    Ramp,
    Swatch,
    on_grey,
    patch_colours,
    patch_set,
    similarity_colours,
)
from ssl_zoo.precision import full_precision
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import Target, TargetConfig

_COLOURS_NOTE = (
    "A feature is a vector. Its colour is its position along the first three principal components (as red, green and "
    "blue) of the target features of all images shown: like colours are like features."
)
_TANH_SLOPE = 0.5  # DynTanh's initial value (arXiv 2503.10622, sec. 4)


class MaskTeacher(Enum):
    """Where the target block is cut out (I-JEPA paper, arXiv 2301.08243, table 11)."""

    output = "output"  # the teacher sees the whole image, its output is cut
    input = "input"  # the teacher sees the patches of the block alone


class Normalization(Enum):
    """What a target feature is measured against."""

    layer = "layer"  # each token over its features (I-JEPA)
    instance = "instance"  # each feature over the image's tokens, then each token over its features (data2vec 2.0)
    dyntanh = "dyntanh"  # tanh of the features before the encoder's norm (arXiv 2508.02829)
    none = "none"  # the encoder's output as it is, after its own norm


@dataclass
class FeatureConfig(TargetConfig):
    """Settings of all targets that an encoder computes."""

    normalization: Normalization = setting(
        Normalization.layer,
        "layer (I-JEPA); instance: first over the tokens of the image (data2vec 2.0); dyntanh: tanh instead of norms, "
        "which keeps the lengths of tokens apart (arXiv 2508.02829); none: the encoder's output",
    )
    mask: MaskTeacher = setting(MaskTeacher.output, "cut target blocks from the teacher's output or from its input")
    full_precision: bool = setting(False, "run the teacher in float32, regardless of trainer.precision")


class FeatureTarget(Target):
    """Normalised features of some encoder at the target patches."""

    config: FeatureConfig

    def __init__(self, config: FeatureConfig, encoder: ViT) -> None:
        super().__init__()
        self.config, self.dim = config, encoder.embed_dim

    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Float[Tensor, "B M T dim"]:
        images = batch.views["image"]
        with full_precision(images.device) if self.config.full_precision else nullcontext():
            if self.config.mask is MaskTeacher.output:
                tokens = take(self._features(images, None, encoder), masks.targets)
            else:
                tokens = self._features(images, masks.targets, encoder)
        if self.config.normalization in (Normalization.dyntanh, Normalization.none):
            return tokens
        # For the features of the last norm a second normalisation, without affine and at the default eps, as in the
        # reference (facebookresearch/ijepa, src/train.py).
        return F.layer_norm(tokens, (self.dim,))

    @abstractmethod
    def _outputs(
        self,
        images: Float[Tensor, "B _ H W"],
        keep: Int[Tensor, "B M T"] | None,
        layers: list[int] | None,
        encoder: ViT,
    ) -> Float[Tensor, "B *L D"] | list[Float[Tensor, "B *L D"]]:
        """Return tokens of all patches or of kept ones, whose blocks don't see each other.

        Args:
            layers: blocks whose outputs are returned, as in ``ViT.encode``; None returns those of the final norm.
            encoder: the one that is trained.
        """

    def _features(
        self, images: Float[Tensor, "B _ H W"], keep: Int[Tensor, "B M T"] | None, encoder: ViT
    ) -> Float[Tensor, "B *N D"]:
        """Return float32 features of all patches, or of kept ones."""
        if self.config.normalization is Normalization.dyntanh:
            # After the final norm all tokens would have nearly one length.
            [tokens] = self._outputs(images, keep, [-1], encoder)
        else:
            tokens = self._outputs(images, keep, None, encoder)
        return self._normalized(encoder.patches(tokens).float())

    def _normalized(self, tokens: Float[Tensor, "*B N D"]) -> Float[Tensor, "*B N D"]:
        if self.config.normalization is Normalization.dyntanh:
            # Differs from the reference: a constant slope and no affine, since no gradient reaches a teacher.
            return (_TANH_SLOPE * tokens).tanh()
        if self.config.normalization is not Normalization.instance:
            return tokens
        # Not torch.var_mean, which takes 3.5 times as long on a CPU over a dimension that isn't the last.
        centred = tokens - tokens.mean(dim=-2, keepdim=True)
        return centred * (centred.square().mean(dim=-2, keepdim=True) + 1e-5).rsqrt()

    @torch.no_grad()
    def visualize(
        self, predictions: Float[Tensor, "B M T dim"], batch: Batch, masks: Masks, encoder: ViT
    ) -> Mapping[str, Figure]:
        """Show ``features``: image, context, features of all patches, the predicted ones, and their similarity.

        Features are coloured by their first three principal components over all patches of all images shown. The
        similarity is the cosine of prediction and target (dark blue 0 or less, yellow 1). A patch in several target
        blocks shows the mean over its blocks.
        """
        image, grid, num_patches = batch.pixels("image"), encoder.grid, encoder.num_patches
        features = self(batch, masks.everywhere(num_patches), encoder)[:, 0]
        similarity = F.cosine_similarity(predictions, self(batch, masks, encoder), dim=-1)[..., None]
        colours = PrincipalColours.of(features)
        patches = masks.targets.flatten(1)
        visible, known = patch_set(masks.context.flatten(1), num_patches), patch_set(patches, num_patches)
        predicted = colours(mean_per_patch(predictions.flatten(1, 2), patches, num_patches))
        agreement = similarity_colours(mean_per_patch(similarity.flatten(1, 2), patches, num_patches)[..., 0])
        size = image.shape[-2:]
        columns = [
            Column("image", image),
            Column("context: what the encoder sees", on_grey(image, visible, grid)),
            Column("target features of all patches", patch_colours(colours(features), grid, size)),
            Column("predicted features", on_grey(patch_colours(predicted, grid, size), known, grid, BLANK)),
            Column("similarity to the target", on_grey(patch_colours(agreement, grid, size), known, grid, BLANK)),
        ]
        title = "Features: what is predicted for the target patches, and what an encoder of the full image gives there"
        legend = [
            Swatch("patches that the encoder does not see"),
            Swatch("patches that are not predicted", (BLANK, BLANK, BLANK)),
            Ramp("cosine similarity of prediction and target", "0 or less", "1"),
        ]
        return {"features": Figure(title, columns, legend, _COLOURS_NOTE)}
