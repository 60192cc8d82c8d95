"""Refusals that several methods share: one sentence for each view, mask or target that a method can't use."""

from collections.abc import Mapping

from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.masks import Masks, Pairing
from ssl_zoo.method import Method
from ssl_zoo.nn import ViT
from ssl_zoo.targets import FeatureTarget, MaskTeacher, Target

IMAGE = "image"  # the view of methods that see one crop


def require_target(method: str, target: Target | None, *, categories: bool = False) -> None:
    """Refuse to build a method without a target, or with categories as targets.

    Args:
        categories: the method can predict categories, i.e. has a loss for logits.
    """
    if target is None:
        choice = "targets=tokens" if categories else "targets=teacher"
        raise ValueError(f"{method} predicts a target: choose {choice} or targets=pixels")
    if target.is_categorical and not categories:
        raise ValueError(
            f"{method} compares features or pixels, and {type(target).__name__} has categories: choose targets=teacher "
            "or targets=pixels, or method=cae, which predicts categories"
        )


def refuse_target(method: str, target: Target | None) -> None:
    """Refuse a target for a method that brings its own teacher."""
    if target is not None:
        raise ValueError(f"{method} computes its targets itself: leave the group targets out (targets=null)")


def refuse_masked_teacher(method: str, target: Target) -> None:
    """Refuse a teacher that sees target blocks alone, for methods whose targets are features of the full image."""
    if isinstance(target, FeatureTarget) and target.config.mask is MaskTeacher.input:
        raise ValueError(
            f"targets.mask=input: {method} compares with features of the full image, so its teacher can't see the "
            "target blocks alone; use targets.mask=output"
        )


def require_masked_image(method: Method, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
    """Refuse a run without one crop per image, without masks, or with masks that leave an image without targets."""
    name = type(method).__name__
    if IMAGE not in views:
        raise ValueError(f"{name} sees one crop of each image, not {', '.join(views)}: choose views=single_crop")
    if IMAGE not in masks:
        raise ValueError(f"{name} predicts masked patches: choose masks, e.g. masks={method.default_masks}")
    if masks[IMAGE].targets.shape[-1] == 0:
        raise ValueError(
            f"{name} predicts masked patches of every image, and these masks leave some images without any; choose "
            f"others, e.g. masks={method.default_masks}"
        )
    if method.target is not None:
        method.target.check_views(views, method.encoder)


def require_one_mask(method: Method, masks: Masks) -> None:
    """Refuse several masks per image."""
    if masks.pairing is Pairing.zip and masks.context.shape[1] > 1:
        raise ValueError(
            f"{type(method).__name__} replaces the masked patches of one mask per image, but these masks are "
            f"{masks.context.shape[1]}; set masks.num_masks=1 or choose other masks"
        )


def require_global_crops(method: Method, views: Mapping[str, ViewSpec], encoder: ViT, kind: str = "multi_crop") -> None:
    """Refuse a run without two global crops, and crops of sizes that the encoder can't take.

    Args:
        kind: the view set to suggest.
    """
    name = type(method).__name__
    if not {"global_0", "global_1"} <= set(views):
        raise ValueError(
            f"{name} compares crops of an image and needs two global ones, not {', '.join(views)}: choose "
            f"views={method.default_views} or views={kind}"
        )
    for spec in views.values():
        try:
            grid = encoder.config.grid_of(spec.size)
        except ValueError as error:
            raise ValueError(f"views.local_size={spec.size[0]}: {error}") from error
        if encoder.rel_pos_bias is not None and grid != encoder.grid:
            raise ValueError(
                "backbone.relative_position_bias holds for one size of images: set it to false, or "
                "views.num_local_crops=0"
            )
