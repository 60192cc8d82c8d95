"""DINO as baselines share it, and its head and loss by hand, after the paper's reference code."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.engine.build import RunConfig
from ssl_zoo.methods.dino import DINOConfig
from ssl_zoo.nn.vit import Positions
from ssl_zoo.testing.benchmark.baselines.base import Baseline


class DINOBaseline(Baseline):
    """What the DINO of every library takes from the recipe."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method = config.method
        self.momentum = method.ema.momentum
        self.freezes_last_layer = method.freeze_last_layer_epochs > 0  # a benchmark stays in the first epoch
        self.teacher_temp = method.warmup_teacher_temp if method.teacher_temp_warmup_epochs else method.teacher_temp
        if config.backbone.positions is Positions.sincos:
            self.differences.append("positions of local crops resampled")
        if config.optim.clip_grad_norm is not None:
            self.differences.append("all gradients clipped together")


class Head(nn.Module):
    """DINO's head: an MLP, L2 normalisation and weight-normalised prototypes."""

    def __init__(self, config: DINOConfig, dim: int) -> None:
        super().__init__()
        hidden = config.head_dim
        layers = [nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, config.bottleneck_dim))
        prototypes = nn.Linear(config.bottleneck_dim, config.num_prototypes, bias=False)
        self.last_layer = nn.utils.parametrizations.weight_norm(prototypes)
        lengths = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(lengths)
        lengths.requires_grad = not config.norm_last_layer

    def forward(self, features: Float[Tensor, "S D"]) -> Float[Tensor, "S K"]:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


class Loss(nn.Module):
    """DINO's loss: the cross entropy between a teacher's view and every other view of the student, and the center."""

    center: Float[Tensor, "K"]

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.student_temp, self.center_momentum = config.student_temp, config.center_momentum
        self.register_buffer("center", torch.zeros(config.num_prototypes))

    def forward(
        self, student: Float[Tensor, "V B K"], teacher: Float[Tensor, "G B K"], teacher_temp: float
    ) -> Float[Tensor, ""]:
        probabilities = F.softmax((teacher - self.center) / teacher_temp, dim=-1)
        log_probabilities = F.log_softmax(student / self.student_temp, dim=-1)
        losses = [
            -(expected * predicted).sum(dim=-1).mean()
            for i, expected in enumerate(probabilities)
            for j, predicted in enumerate(log_probabilities)
            if i != j
        ]
        self.center.lerp_(teacher.mean(dim=(0, 1)), 1 - self.center_momentum)
        return torch.stack(losses).mean()
