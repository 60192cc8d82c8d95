"""Videos: frames with the object that each pixel shows."""

from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class Video:
    """T frames of one size with their objects.

    Attributes:
        objects: number of the object at each pixel; 0 is the background, ``maps.IGNORED`` unknown.
    """

    name: str
    frames: UInt8[Tensor, "T C H W"]
    objects: UInt8[Tensor, "T H W"]
