"""The plan of an evaluation: memory and hours of each evaluator, for given data and for ImageNet-1k."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.eval.cost import Workload
from ssl_zoo.eval.probe import ProbeConfig
from ssl_zoo.nn import BACKBONES, BackboneConfig, ViT, set_fused_attention
from ssl_zoo.planning.plan import titled_table
from ssl_zoo.planning.scale import Machine

_GIBI = 2**30
IMAGENET = {"num_train": 1_281_167, "num_test": 50_000, "num_classes": 1000}
IMAGENET_RANKS = (1, 8)
# float32 and float64 matmuls against bf16: 19.5 of 312 TFLOP/s on an A100 (NVIDIA's data sheet).
FULL_PRECISION = 1 / 16
DECODED_PER_SECOND = 100  # by one process: photographs of ImageNet's size; an assumption to be replaced


@dataclass(frozen=True)
class EvaluationPlan:
    """Memory and hours of one evaluation by each evaluator of a probe, estimated without encoding an image.

    Args:
        num_networks: 2 where the random-init network is evaluated as well.
        machine: without ``--device-flops``, an A100.
    """

    backbone: BackboneConfig
    probe: ProbeConfig
    machine: Machine
    num_networks: int = 1

    def print(self, console: Console, data: str, num_train: int, num_test: int, num_classes: int) -> None:
        """Print a table for the data and one for ImageNet-1k on 1 and 8 devices.

        Args:
            data: what the numbers of images and classes belong to.
        """
        given = Workload(
            self._encoder(), num_train, num_test, num_classes, self.probe.batch_size, self.machine.world_size
        )
        title = f"{data}: {num_train:,} train and {num_test:,} test images, {num_classes:,} classes"
        console.print(self._table(title, [given]))
        imagenet = [replace(given, **IMAGENET, world_size=count) for count in IMAGENET_RANKS]
        console.print(self._table("ImageNet-1k: 1,281,167 train and 50,000 test images, 1,000 classes", imagenet))
        for line in self._assumptions():
            console.print(line)

    def _encoder(self) -> ViT:
        with torch.device("meta"):
            return BACKBONES.build(self.backbone)

    def _table(self, title: str, workloads: Sequence[Workload]) -> Table:
        result = titled_table(title, "evaluator", "ranks", "GiB of a rank", "forward h", "solver h", "of the solver")
        passes = forward_flops(workloads[0].encoder)
        for name in self.probe.evaluators:
            evaluator = EVALUATORS.get(name)(self.probe.evaluator_config(name))
            for workload in workloads:
                cost, rate = evaluator.cost(workload), self.machine.device_flops * self.machine.utilisation * 3600
                forward = self.num_networks * cost.encoded_images * passes / (workload.world_size * rate)
                solver = self.num_networks * cost.flops / (FULL_PRECISION * rate)
                numbers = f"{cost.rank_bytes / _GIBI:,.2f}", f"{forward:,.3g}", f"{solver:,.3g}"
                result.add_row(name, str(workload.world_size), *numbers, cost.how)
        return result

    def _assumptions(self) -> Sequence[str]:
        machine = self.machine
        networks = "the network and its random init" if self.num_networks == 2 else "one network"
        hours = (IMAGENET["num_train"] + IMAGENET["num_test"]) / DECODED_PER_SECOND / 3600
        peak = f"{machine.utilisation:.0%} of {machine.device_flops / 1e12:g} TFLOP/s"
        return [
            f"Estimates of {networks}, not measurements. Evaluators of equal features share the forward passes.",
            f"A device reaches {peak}, and 1/{1 / FULL_PRECISION:.0f} of it in float32 and float64 "
            "(--device-flops, --utilisation).",
            f"Decoding is not in the hours: ranks share the images, {hours:.1f} h of one rank for ImageNet-1k at an "
            f"assumed {DECODED_PER_SECOND} images per second, once per network.",
        ]


def forward_flops(encoder: ViT) -> float:
    """Count the FLOPs of an image's forward pass, without gradient, of an encoder on the meta device."""
    set_fused_attention(encoder, False)  # a fused kernel would hide its operations
    images = torch.empty(2, encoder.config.in_channels, *encoder.config.image_shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(images)
    return counter.get_total_flops() / 2
