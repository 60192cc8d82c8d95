"""A method whose loss couples all images of a step: statistics of features, gathered and averaged over ranks."""

import torch
import torch.nn.functional as F
from tiny_methods import tiny_method

from ssl_zoo.method import Batch, Output, Step
from ssl_zoo.methods.mae import MAE


class Coupled(MAE):
    """MAE with variance and covariance terms of gathered features, and a term of their mean over ranks."""

    couples_images = True

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        visible, predictions = self.predict(images, masks)
        targets = masks.paired(self.target(batch, masks, self.encoder))
        features = visible.float().mean(dim=(1, 2))
        everyone = step.world.gather(features)
        centered = everyone - everyone.mean(0)
        covariance = centered.T @ centered / (len(everyone) - 1)
        variances = covariance.diagonal()
        return Output(
            {
                "reconstruction": F.mse_loss(predictions, targets),
                "variance": F.relu(1 - (variances + 1e-4).sqrt()).mean(),
                "covariance": (covariance.square().sum() - variances.square().sum()) / len(variances),
                "center": (1 + step.world.mean(features.mean(0))).pow(3).mean(),
            }
        )


def coupled_method(seed: int = 0) -> Coupled:
    mae = tiny_method("mae", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Coupled(mae.config, mae.encoder, mae.target)
