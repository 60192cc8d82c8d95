"""What an evaluation costs, in closed form: bytes of a rank, forward passes of the encoder, FLOPs of the evaluator."""

from dataclasses import dataclass

from ssl_zoo.nn import ViT

# L-BFGS calls the objective once per iteration and seldom twice. An assumption; see ``Cost.how``.
OBJECTIVE_CALLS = 300


@dataclass(frozen=True)
class Workload:
    """An encoder, which may be on the meta device, and the number of images that it is evaluated on.

    Attributes:
        batch_size: images per forward pass.
    """

    encoder: ViT
    num_train: int
    num_test: int
    num_classes: int
    batch_size: int
    world_size: int = 1

    @property
    def num_images(self) -> int:
        return self.num_train + self.num_test

    def part_bytes(self, dim: int) -> float:
        """Return the bytes of one rank's features; while they are extracted, it holds those of one split twice."""
        return 4 * dim * self.num_images / self.world_size

    def extraction_bytes(self, dim: int) -> float:
        """Return the most bytes that a rank holds while features are extracted."""
        return self.part_bytes(dim) + 4 * dim * max(self.num_train, self.num_test) / self.world_size


@dataclass(frozen=True)
class Cost:
    """The cost of one evaluator alone; evaluators of equal features share the extraction.

    Attributes:
        rank_bytes: features, and what the evaluator holds besides, of one rank at the peak.
        encoded_images: forward passes of the frozen encoder, of all ranks.
        flops: of the evaluator itself in full precision, of the rank with most of them.
        how: what is assumed or left out.
    """

    rank_bytes: float
    encoded_images: float
    flops: float
    how: str
