"""The contract of view sets."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ssl_zoo.data.batch import ViewSpec
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


VIEWS = Registry("view set", "views")
