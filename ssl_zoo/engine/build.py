"""From configured parts to the views, masks and batches of a run; each part is found by the class of its config."""

from collections.abc import Sequence

from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.masks import MASKS, MaskGenerator, MasksConfig
from ssl_zoo.method import METHODS, MethodConfig
from ssl_zoo.nn import BackboneConfig


def build_views(method: MethodConfig, backbone: BackboneConfig) -> Sequence[ViewSpec]:
    """The views that a method asks for at the backbone's image size."""
    return METHODS.get(METHODS.name_of(method)).views(method, backbone.image_shape)


def build_generators(
    views: Sequence[ViewSpec], masks: MasksConfig | None, backbone: BackboneConfig
) -> list[MaskGenerator | None]:
    """One mask generator per view, on the grid that the backbone gives the view; None for views without masks.

    Raises:
        ValueError: the geometry of the masks can't be met on a grid.
    """
    if masks is None:
        return [None for view in views for _ in range(view.count)]
    by_size = {view.size: MASKS.build(masks, backbone.grid_of(view.size)) for view in views if view.masked}
    return [by_size[view.size] if view.masked else None for view in views for _ in range(view.count)]
