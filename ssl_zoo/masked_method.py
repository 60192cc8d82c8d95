"""Bases of the methods that see a part of one view and predict a target for the patches that they don't see."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch, ViewConfig, ViewSpec
from ssl_zoo.masks import Masks, Pairing, plot_masks
from ssl_zoo.method import Method, MethodConfig, Output, ParamGroup, Progress
from ssl_zoo.nn import ViT, cosine_between_images, mean_std, take
from ssl_zoo.nn.initialization import initialize, initialize_token
from ssl_zoo.settings import setting
from ssl_zoo.targets import MaskTeacher, Target, Teacher

MEASURED_IMAGES = 16  # of a micro-batch, for the metrics of every step: a hundred pairs at a patch tell enough


@dataclass
class MaskedMethodConfig(MethodConfig):
    """What the methods that predict masked patches have in common."""

    view: ViewConfig = setting(ViewConfig(), "rendering of the one view")


class MaskedMethod(Method):
    """Base of the methods that see a part of one view and predict a target for patches that they don't see.

    Such a method is a network that predicts and a distance between prediction and target.
    """

    config: MaskedMethodConfig
    target: Target

    def __init__(self, config: MaskedMethodConfig, encoder: ViT, target: Target | None) -> None:
        if target is None:
            raise ValueError(f"{type(self).__name__} predicts a target: choose targets=teacher or targets=pixels")
        super().__init__(config, encoder, target)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, masks = batch.views[0], batch.masks[0]
        targets = self.target(images, masks)
        predictions = self.predict(images, masks)
        loss = self.loss(predictions.float(), masks.paired(targets))
        return Output(loss, self.metrics(predictions, targets, masks))

    @abstractmethod
    def predict(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B C pairs T target"]:
        """Predictions of every context for the target blocks it is paired with, in the order of ``masks.paired``."""

    @abstractmethod
    def loss(
        self, predictions: Float[Tensor, "B C pairs T target"], targets: Float[Tensor, "B C pairs T target"]
    ) -> Float[Tensor, ""]:
        """Distance between both, in float32."""

    @torch.no_grad()
    def metrics(
        self,
        predictions: Float[Tensor, "B C pairs T target"],
        targets: Float[Tensor, "B M T target"],
        masks: Masks,
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Diversity of predictions and targets, of the first context of some images, and numbers of patches."""
        some = slice(0, MEASURED_IMAGES)
        patches, targets = (masks.paired(values)[some, 0].flatten(1, 2) for values in (masks.targets, targets))
        predictions = predictions.detach()[some, 0].flatten(1, 2).float()
        num_patches = self.encoder.num_patches
        return {
            "target_std": mean_std(targets),
            "target_cosine": cosine_between_images(targets, patches, num_patches),
            "prediction_std": mean_std(predictions),
            "prediction_cosine": cosine_between_images(predictions, patches, num_patches),
            "context_tokens": torch.full((), float(masks.context.shape[-1]), device=targets.device),
            "target_tokens": torch.full((), float(masks.targets.shape[-1]), device=targets.device),
        }

    def check_masks(self, masks: Masks | None) -> None:
        if masks is None:
            raise ValueError(
                f"{type(self).__name__} predicts what masks hide: choose some, e.g. masks={self.default_masks}"
            )
        if masks.targets.shape[-1] == 0:
            raise ValueError(
                f"{type(self).__name__} predicts masked patches of every image, and with these masks some images hide "
                f"nothing; choose others, e.g. masks={self.default_masks}"
            )

    def evaluated(self) -> ViT:
        return self.target.evaluated(self.encoder)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> Mapping[str, Float[Tensor, "3 H W"]]:
        """The masks, and what the first context predicts, as the target draws it."""
        images, masks = batch.views[0], batch.masks[0]
        predictions = self.predict(images, masks)[:, 0].float()
        first = Masks(masks.context[:, :1], masks.paired(masks.targets)[:, 0])
        unnormalize = self.config.view.unnormalize
        return {
            "masks": plot_masks(unnormalize(images), masks, self.encoder.grid),
            **self.target.visualize(predictions, images, first, unnormalize),
        }

    @classmethod
    def views(cls, config: MaskedMethodConfig, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        return (ViewSpec("image", image_size, config.view),)


class ReplacingMethod(MaskedMethod):
    """Base of the masked methods whose encoder sees all patches, the masked ones replaced by a mask token.

    One linear map of the encoder's output predicts the target. Numbers of masked patches may differ between images: the
    loss is the mean over all of the batch. Where a generator draws no ``masked``, the union of its target blocks is
    masked.
    """

    def __init__(self, config: MaskedMethodConfig, encoder: ViT, target: Target | None) -> None:
        super().__init__(config, encoder, target)
        refuse_masked_teacher(type(self).__name__, self.target)
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        self.head = nn.Linear(encoder.embed_dim, self.target.dim)
        initialize(self.head, encoder.config.initialization)
        initialize_token(self.mask_token, encoder.config.initialization)

    def predict_all(self, images: Float[Tensor, "B 3 H W"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, "B N target"]:
        """Predictions for every patch of images whose ``masked`` patches the encoder does not see."""
        tokens = self.encoder(images, masked=masked, mask_token=self.mask_token)
        return self.head(tokens[:, self.encoder.num_prefix_tokens :])

    @abstractmethod
    def errors(
        self, predictions: Float[Tensor, "B N target"], targets: Float[Tensor, "B N target"]
    ) -> Float[Tensor, "B N target"]:
        """Distance of every element, in float32."""

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, masks = batch.views[0], batch.masks[0]
        num_patches = self.encoder.num_patches
        masked = masks.all_masked(num_patches)
        everywhere = masks.everywhere(num_patches)
        targets = self.target(images, everywhere)
        predictions = self.predict_all(images, masked).float()
        errors = self.errors(predictions, targets[:, 0]).mean(dim=-1)
        loss = (errors * masked).sum() / masked.sum()
        metrics = self.metrics(predictions[:, None, None], targets, everywhere)
        # As this method uses the masks: what is not masked is seen, also where that is more than ``context``.
        seen = {"context_tokens": (~masked).sum() / len(images), "target_tokens": masked.sum() / len(images)}
        return Output(loss, {**metrics, **seen})

    def predict(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B 1 M T target"]:
        masked = masks.all_masked(self.encoder.num_patches)
        return take(self.predict_all(images, masked), masks.targets)[:, None]

    def loss(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        return self.errors(predictions, targets).mean()

    def weight(self, batch: Batch) -> Float[Tensor, ""]:
        return batch.masks[0].all_masked(self.encoder.num_patches).sum().float()

    def param_groups(self) -> Sequence[ParamGroup]:
        """As BEiT's code and its descendants, which spare the class token of weight decay beside all vectors."""
        decay, no_decay = super().param_groups()
        class_token = self.encoder.cls_token
        spared = [p for p in decay.params if p is class_token]
        return (
            replace(decay, params=[p for p in decay.params if p is not class_token]),
            replace(no_decay, params=[*no_decay.params, *spared]),
        )

    def check_masks(self, masks: Masks | None) -> None:
        super().check_masks(masks)
        if masks.pairing is Pairing.zip and masks.context.shape[1] > 1:
            raise ValueError(
                f"{type(self).__name__} replaces the masked patches of one mask per image, but these masks are "
                f"{masks.context.shape[1]}; set masks.num_masks=1 or choose other masks"
            )


def refuse_masked_teacher(method: str, target: Target) -> None:
    """Raise ValueError where the teacher would see target blocks alone although the method needs whole images."""
    if isinstance(target, Teacher) and target.config.mask is MaskTeacher.input:
        raise ValueError(
            f"targets.mask=input: {method} compares with features of the whole image, so its teacher can't see the "
            "target blocks alone; use targets.mask=output"
        )
