"""Baselines: the contract, and the training step that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig, build_generators, build_views
from ssl_zoo.engine.device import autocast
from ssl_zoo.engine.settings import Precision
from ssl_zoo.planning.plan import plan_batch


class Baseline(nn.Module, ABC):
    """A recipe's objective at the recipe's sizes, computed by other modules than ours.

    A baseline is written as the library's documentation and examples are: no option is set only for speed, and none
    that they set is left out. Parameters that require a gradient are trained.

    Attributes:
        encoder: the encoder that is trained.
        differences: what is not as in the recipe, a phrase each.
    """

    encoder: nn.Module

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.differences: list[str] = []
        if config.trainer.gradient_accumulation_steps > 1:
            self.differences.append("no micro-batches")
        if config.trainer.activation_checkpointing:
            self.differences.append("no activation checkpointing")

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch on the device, whose views are normalised images."""

    def after_backward(self) -> None:
        """Change gradients before they are clipped; does nothing by default."""

    def after_step(self) -> None:
        """Update the EMA weights; does nothing by default, for an objective without any."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Build torch's AdamW as it is by default, which is neither fused nor, on a CPU, batched over parameters."""
        optim = self.config.optim
        return torch.optim.AdamW(
            self.trained(), lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, weight_decay=optim.weight_decay
        )

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class BaselineTraining:
    """Trains a baseline on the batches that it is given.

    Args:
        precision: resolved; the dtype of autocast.
    """

    def __init__(self, baseline: Baseline, device: torch.device, precision: Precision) -> None:
        self.baseline, self.device, self.precision = baseline.to(device), device, precision
        self.optimizer = baseline.optimizer()
        if device.type == "cuda" and precision is Precision.fp32:
            baseline.differences.append("float32 without TF32, as torch's default")

    def step(self, batch: Batch) -> Tensor:
        """Run one step; return the loss."""
        with autocast(self.precision, self.device):
            loss = self.baseline(batch)
        loss.backward()
        self.baseline.after_backward()
        limit = self.baseline.config.optim.clip_grad_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(self.baseline.trained(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.baseline.after_step()
        return loss.detach()

    def flops_per_image(self) -> Mapping[str, float]:
        """Count the FLOPs per image of a step, on the masks for which ``count_flops`` counts those of a method."""
        config = self.baseline.config
        views = build_views(config.views, config.backbone)
        batch = plan_batch(views, build_generators(views, config.masks, config.backbone), device=self.device)
        # Attention as plain matmuls: the counter has no formula for the CPU's fused kernel.
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                loss = self.baseline(batch)
            with FlopCounterMode(display=False) as backward:
                loss.backward()
        self.optimizer.zero_grad()
        counts = {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}
        counts["step"] = sum(counts.values())
        return {name: count / batch.num_images for name, count in counts.items()}


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Take the tokens (B, K, D) at ``index`` (B, K) out of (B, N, D)."""
    return torch.gather(tokens, 1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def with_prefix(index: Tensor, num_prefix: int) -> Tensor:
    """Turn indices of patches into those of tokens, with the prefix tokens before them."""
    prefix = torch.arange(num_prefix, device=index.device).expand(len(index), -1)
    return torch.cat([prefix, index + num_prefix], dim=1)
