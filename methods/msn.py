"""MSN: a masked crop and focal crops of an image are assigned to the same prototypes as its full crop.

Paper: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", arXiv 2204.07141. Reference:
facebookresearch/msn. The settings that reproduce its scores: Ruan et al., "Weighted Ensemble Self-Supervised Learning",
arXiv 2211.09981, appendix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ssl_zoo.collapse import DISTRIBUTION_LIMITS, Limit, distribution_metrics
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.losses.info_nce import cosine_logits
from ssl_zoo.losses.self_distillation import entropy, mean_entropy_gap, sinkhorn
from ssl_zoo.method import METHODS, Clip, Masks, Method, MethodConfig, Output, ParamGroup, Place, Schedule, Step
from ssl_zoo.nn import ViT
from ssl_zoo.nn.heads import ProjectionHead
from ssl_zoo.nn.initialization import TOKEN_STD
from ssl_zoo.plotting import Column, Figure, Swatch, crop_columns, on_grey, patch_set
from ssl_zoo.refusals import refuse_target, require_global_crops
from ssl_zoo.schedules import ScheduleShape, after_warmup
from ssl_zoo.settings import setting
from ssl_zoo.targets import Target

TARGET, ANCHOR = "global_0", "global_1"  # the views of the target encoder and of the encoder
_REMEDY = (
    "Raise method.me_max_weight or set method.sinkhorn_iterations=3, lower method.target_temp, else lower optim.lr or "
    "raise method.ema.momentum"
)


@dataclass
class MSNConfig(MethodConfig):
    """MSN: head, prototypes, temperatures, target encoder. Defaults: the ViT-S/16 of arXiv 2211.09981."""

    num_prototypes: int = setting(4096, "prototypes that images are assigned to", at_least=1)
    head_dim: int = setting(1024, "width of the head's hidden layers", at_least=1)
    head_layers: int = setting(3, "linear layers of the head", at_least=1)
    head_batch_norm: bool = setting(False, "batch normalization of the head's hidden layers, over all ranks")
    projection_dim: int = setting(256, "width of the projections, which are compared with prototypes", at_least=1)
    anchor_temp: float = setting(0.1, "temperature of the anchors' distributions", above=0)
    warmup_target_temp: float = setting(0.05, "temperature of the targets' distributions at the start", above=0)
    target_temp: float = setting(0.025, "the same after its warm-up; reference: anchor_temp x sharpening", above=0)
    target_temp_warmup_epochs: float = setting(30.0, "epochs of the target temperature's linear warm-up", at_least=0)
    sinkhorn_iterations: int = setting(0, "iterations that balance targets over prototypes; reference: 3", at_least=0)
    me_max_weight: float = setting(4.0, "weight of the entropy of the anchors' mean distribution", at_least=0)
    entropy_weight: float = setting(0.0, "weight of the mean entropy of the anchors' distributions", at_least=0)
    ema: EmaConfig = setting(EmaConfig(schedule=ScheduleShape.cosine), "EMA weights of the target encoder and its head")


@METHODS.register("msn", MSNConfig)
class MSN(Method):
    """Assign a masked crop and small ones to the prototypes of an EMA encoder's full crop (arXiv 2204.07141)."""

    default_views = "msn"
    default_masks = "random"
    couples_images = True  # the mean distribution, Sinkhorn and batch normalization
    metric_groups = dict.fromkeys(("me_max_gap", "anchor_entropy"), "health")
    regularizes = (Place.context,)

    config: MSNConfig

    def __init__(self, config: MSNConfig, encoder: ViT, target: Target | None) -> None:
        refuse_target("MSN", target)
        super().__init__(config, encoder, None)
        widths = [encoder.embed_dim, *[config.head_dim] * (config.head_layers - 1), config.projection_dim]
        self.head = ProjectionHead(widths, activation=nn.GELU, batch_norm=config.head_batch_norm, std=TOKEN_STD)
        self.target_encoder, self.target_head = EmaCopy(encoder), EmaCopy(self.head)
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.projection_dim))
        nn.init.uniform_(self.prototypes, -(config.projection_dim**-0.5), config.projection_dim**-0.5)

    def schedules(self) -> Mapping[str, Schedule]:
        config = self.config
        first, last, epochs = config.warmup_target_temp, config.target_temp, config.target_temp_warmup_epochs
        return {"target_temp": lambda progress: after_warmup(first, last, progress.epoch, epochs)}

    def forward(self, batch: Batch, step: Step) -> Output:
        config, focal_crops = self.config, batch.group("local")
        visible = batch.masks[ANCHOR].context[:, 0]  # the other patches are dropped
        features = [self.encoder.pooled(self.encoder(batch.views[ANCHOR], keep=visible))]
        if focal_crops:
            features.append(self.encoder.pooled(self.encoder(torch.cat(focal_crops))))
        anchors = torch.cat([self.head(of_size, step.world) for of_size in features])  # batch norm per size of crops
        with torch.no_grad():
            target_features = self.encoder.pooled(self.target_encoder(batch.views[TARGET]))
            scores = cosine_logits(self.target_head(target_features, step.world), self.prototypes, 1.0)
            scores = (scores / step.values["target_temp"]).log_softmax(dim=-1)
            targets = sinkhorn(scores, step.world, config.sinkhorn_iterations)
        log_probabilities = cosine_logits(anchors, self.prototypes, config.anchor_temp).log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        me_max_gap, anchor_entropy = mean_entropy_gap(probabilities, step.world), entropy(probabilities).mean()
        losses = {
            "prototypes": -(targets * log_probabilities.unflatten(0, (-1, len(targets)))).sum(dim=-1).mean(),
            "me_max": config.me_max_weight * me_max_gap,
            "entropy": config.entropy_weight * anchor_entropy,
            **self.regularize(step, context=torch.cat(features).unflatten(0, (-1, len(targets))).transpose(0, 1)),
        }
        metrics = {"me_max_gap": me_max_gap.detach(), "anchor_entropy": anchor_entropy.detach()}
        return Output(losses, {**metrics, **distribution_metrics(targets[None])})

    def emas(self) -> Sequence[Ema]:
        networks = ((self.encoder, self.target_encoder), (self.head, self.target_head))
        return [Ema(online, target, self.config.ema.momentum_at) for online, target in networks]

    def param_groups(self) -> Sequence[ParamGroup]:
        """Neither decay the prototypes nor clip their gradient, as in the reference."""
        decay, no_decay = super().param_groups()
        decay = replace(decay, params=[p for p in decay.params if p is not self.prototypes])
        return decay, no_decay, ParamGroup("prototypes", [self.prototypes], decay=False, clip=Clip.none)

    def eval_encoder(self) -> ViT:
        return self.target_encoder.module

    def collapse_limits(self) -> Sequence[Limit]:
        return [replace(limit, remedy=_REMEDY) for limit in DISTRIBUTION_LIMITS]

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_global_crops(self, views, self.encoder)
        if ANCHOR not in masks:
            raise ValueError(f"MSN masks one global crop: choose masks, e.g. masks={self.default_masks}")
        num_contexts, num_visible = masks[ANCHOR].context.shape[1:]
        if num_contexts > 1:
            raise ValueError(
                f"MSN drops one set of patches per crop, but these masks have {num_contexts} contexts; set "
                f"masks.num_masks=1 or choose other masks, e.g. masks={self.default_masks}"
            )
        if num_visible == 0:
            raise ValueError(
                "MSN encodes as many visible patches of every image, and these masks list none; choose others, e.g. "
                f"masks={self.default_masks}"
            )

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Show ``crops``: the target's, the anchor's with dropped patches in grey, the focal crops."""
        pixels = {name: batch.pixels(name) for name in batch.views}
        visible = patch_set(batch.masks[ANCHOR].context[:, 0], self.encoder.num_patches)
        focal = {name.replace("local", "focal"): crop for name, crop in pixels.items() if name not in (TARGET, ANCHOR)}
        columns = [
            Column("target: full crop", pixels[TARGET]),
            Column("anchor: masked crop", on_grey(pixels[ANCHOR], visible, self.encoder.grid)),
            *crop_columns(focal),
        ]
        title = "Crops: the masked crop and the focal crops must get the prototype assignment of the full crop"
        return {"crops": Figure(title, columns, [Swatch("patches that the encoder does not see")])}
