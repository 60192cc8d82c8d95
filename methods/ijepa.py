"""I-JEPA: predict the representations of several target blocks from one context block.

Paper: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
arXiv 2301.08243. Reference: facebookresearch/ijepa.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.collapse import feature_metrics
from ssl_zoo.losses.regression import Distance
from ssl_zoo.method import METHODS, Batch, Masks, Method, MethodConfig, Output, Place, Step, Target, ViewSpec, ViT
from ssl_zoo.nn import NarrowViT
from ssl_zoo.refusals import require_masked_image, require_target
from ssl_zoo.settings import setting
from ssl_zoo.targets.visualize import show_predictions


@dataclass
class IJEPAConfig(MethodConfig):
    """I-JEPA: a narrow predictor and the loss in latent space."""

    predictor_dim: int = setting(384, "width of the predictor", at_least=4, multiple_of=4)
    predictor_depth: int = setting(12, "blocks of the predictor", at_least=1)
    predictor_heads: int | None = setting(None, "attention heads of the predictor; null: the encoder's", at_least=1)
    distance: Distance = setting(Distance.smooth_l1, "smooth_l1 as the reference code, l2 as the paper")
    smooth_l1_beta: float = setting(1.0, "difference at which smooth_l1 turns from quadratic to linear", above=0)


@METHODS.register("ijepa", IJEPAConfig)
class IJEPA(Method):
    """Predict the features of target blocks from one context block, in latent space (arXiv 2301.08243)."""

    default_views = "ijepa"
    default_masks = "multiblock"
    default_targets = "teacher"
    regularizes = tuple(Place)

    config: IJEPAConfig
    target: Target

    def __init__(self, config: IJEPAConfig, encoder: ViT, target: Target | None) -> None:
        require_target("I-JEPA", target)
        super().__init__(config, encoder, target)
        num_heads = config.predictor_heads or encoder.config.num_heads
        if config.predictor_dim % num_heads:
            raise ValueError(
                f"method.predictor_dim={config.predictor_dim} is no multiple of {num_heads} attention heads; set "
                "method.predictor_heads, which is by default the encoder's"
            )
        self.predictor = NarrowViT(
            dim_in=encoder.embed_dim,
            dim=config.predictor_dim,
            dim_out=target.dim,
            depth=config.predictor_depth,
            num_heads=num_heads,
            grid=encoder.grid,
        )

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        targets = self.target(batch, masks, self.encoder)  # stop-gradient
        context, predictions = self.predict(images, masks)
        distance = self.config.distance(predictions, masks.paired(targets), self.config.smooth_l1_beta)
        regularization = self.regularize(step, tokens=context, predictions=predictions)
        metrics = feature_metrics(predictions, targets, masks, self.encoder.num_patches)
        return Output({"prediction": distance, **regularization}, metrics)

    def predict(
        self, images: Float[Tensor, "B 3 H W"], masks: Masks
    ) -> tuple[Float[Tensor, "B C K D"], Float[Tensor, "B C pairs T target"]]:
        """Encode each context, and predict every target block from it, each in a predictor pass of its own."""
        context = self.encoder.patches(self.encoder(images, keep=masks.context))
        return context, self.predictor(context, masks.context, masks.paired(masks.targets)).float()

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_masked_image(self, views, masks)

    def visualize(self, batch: Batch) -> Mapping[str, Float[Tensor, "3 rows columns"]]:
        _, predictions = self.predict(batch.views["image"], batch.masks["image"])
        return show_predictions(self.target, predictions, batch, self.encoder)
