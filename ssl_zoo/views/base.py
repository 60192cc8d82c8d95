"""The contract of view sets."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings


@dataclass
class ViewSetConfig(Settings):
    """Base of every view set's config."""

    section = "views"


class ViewSet(ABC):
    """The views of an image that a batch holds."""

    def __init__(self, config: ViewSetConfig) -> None:
        self.config = config

    @abstractmethod
    def specs(self, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        """Describe the views, in the order in which a batch holds them.

        Args:
            image_size: height and width of the backbone's images in pixels.
        """


def check_channels(views: ViewSetConfig, channels: int) -> None:
    """Refuse augmentations and statistics that images of ``channels`` channels can't have.

    Saturation, hue and grayscale do nothing to grey images, which are only one channel, and are left out there.

    Raises:
        ValueError: with the keys to set.
    """
    for key, view in view_configs(views):
        for name in ("mean", "std"):
            values = getattr(view, name)
            if values is not None and len(values) != channels:
                raise ValueError(
                    f"{key}.{name}={list(values)} has {len(values)} values, but backbone.in_channels={channels}: give "
                    f"one per channel, or {key}.{name}=null for the default"
                )
        remedies = colour_augmentations(key, view)
        if channels not in (1, 3) and remedies:
            raise ValueError(
                f"backbone.in_channels={channels}: saturation, hue and grayscale are defined for RGB images alone; set "
                + " ".join(remedy for each, one in view_configs(views) for remedy in colour_augmentations(each, one))
            )


def colour_augmentations(key: str, view: ViewConfig) -> list[str]:
    """Return the settings that would switch off what needs RGB images in a view; empty without any of that."""
    brightness, contrast, *of_colour = view.color_jitter
    jitter = [f"{key}.color_jitter=[{brightness},{contrast},0,0]"] if max(of_colour) > 0 else []
    return [*jitter, *([f"{key}.grayscale=0"] if view.grayscale else [])]


def view_configs(config: object, key: str = ViewSetConfig.section) -> Iterator[tuple[str, ViewConfig]]:
    """Yield every ``ViewConfig`` of a view set with its dotted key: itself, or those in its fields and lists."""
    if isinstance(config, ViewConfig):
        yield key, config
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from view_configs(getattr(config, field.name), f"{key}.{field.name}")
    elif isinstance(config, (list, tuple)):
        for number, inner in enumerate(config):
            yield from view_configs(inner, f"{key}.{number}")


VIEWS = Registry("view set", "views")
