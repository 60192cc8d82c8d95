"""DINO: a student learns to say of small and large crops what its average says of the large ones.

Paper: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294. Reference:
facebookresearch/dino.
"""

from dataclasses import dataclass

import torch

from ssl_zoo.method import METHODS, Batch, Output, Progress
from ssl_zoo.self_distillation import (
    NUM_GLOBAL,
    SelfDistillation,
    SelfDistillationConfig,
    cross_entropy_across_views,
    project,
)


@dataclass
class DINOConfig(SelfDistillationConfig):
    """DINO: a head over prototypes, temperatures, and the crops. Defaults: the reference's ViT-S/16, 300 epochs."""


@METHODS.register("dino", DINOConfig)
class DINO(SelfDistillation):
    """Match an averaged teacher's sharpened, centered distributions across crops of an image (arXiv 2104.14294)."""

    config: DINOConfig

    def forward(self, batch: Batch, progress: Progress) -> Output:
        student = project(self.encoder, self.head, batch.views).float()
        with torch.no_grad():
            teacher = project(self.teacher_encoder, self.teacher_head, batch.views[:NUM_GLOBAL]).float()
        probabilities = self.distributions(teacher, self.center, self.teacher_temperature(progress.fraction))
        loss = cross_entropy_across_views(student / self.config.student_temperature, probabilities)
        return Output(loss, self.metrics(probabilities), {"center": teacher.mean(dim=(0, 1))})
