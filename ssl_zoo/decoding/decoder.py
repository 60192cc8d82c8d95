"""The decoder: a flow that generates the pixels of a target block from what a frozen method predicts of it.

I-JEPA's figure 6 (arXiv 2301.08243, sec. 8 and appendix E) decodes average-pooled predictions by RCDM (arXiv
2112.09164), a diffusion model of the whole image. What samples have in common is what the prediction holds.

# Differs from the reference: flow matching instead of diffusion, and the block's rectangle is generated instead of the
# whole image. A prediction is about its block: the rest of an image, three quarters of the pixels, would take most of
# the network and of the loss without being shown. The rectangle's place is a second condition, since a pooled
# prediction need not hold it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.data.loader import LoaderConfig
from ssl_zoo.decoding.blocks import BOX_FEATURES, VIEW, Blocks, FrozenPredictor, box_features, crops
from ssl_zoo.decoding.figure import plot_samples
from ssl_zoo.decoding.flow import flow_loss, flow_samples
from ssl_zoo.decoding.unet import UNet, UNetConfig
from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.engine.device import autocast
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.engine.settings import MonitorConfig, Precision, TrainerConfig
from ssl_zoo.masks import Masks
from ssl_zoo.method import Method, Output, Schedule, Step
from ssl_zoo.plotting import Figure
from ssl_zoo.schedules import ScheduleShape
from ssl_zoo.seeding import normal_numbers
from ssl_zoo.settings import Settings, setting

_NOISE, _TIME, _SAMPLE = range(3)  # purposes of random numbers, as counters
_SHOWN_SEEDS = 4  # in figures


@dataclass
class DecoderConfig(Settings):
    """A decoder and its training. The defaults are for images of 32 to 64 pixels and minutes on two CPU cores."""

    seed: int = setting(0, "seed of initial weights, data order, masks and noise")
    random_init: bool = setting(False, "control: decode the run's network before its first step")
    block_size: int = setting(16, "pixels per side of a decoded block, whatever its rectangle", at_least=4)
    sampling_steps: int = setting(20, "steps from noise to a sample (Heun), two evaluations each", at_least=1)
    network: UNetConfig = setting(UNetConfig(), "the generator")
    ema: EmaConfig = setting(
        EmaConfig(momentum=0.995, schedule=ScheduleShape.constant), "EMA of its weights, which samples are made with"
    )
    optim: AdamWConfig = setting(
        AdamWConfig(lr=1e-3, min_lr=1e-5, warmup_epochs=0.05, weight_decay=0.01, clip_grad_norm=1.0), "its optimizer"
    )
    trainer: TrainerConfig = setting(
        TrainerConfig(batch_size=32, num_steps=2000, checkpoint_every=500, keep_checkpoints=1), "its training"
    )
    loader: LoaderConfig = setting(LoaderConfig(), "how images are decoded and batched")
    monitor: MonitorConfig = setting(MonitorConfig(images_every=500), "what is logged during its training")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size % self.network.reduction:
            low = max(1, self.block_size // self.network.reduction) * self.network.reduction
            raise ValueError(
                f"block_size={self.block_size} is no multiple of {self.network.reduction}, which network.patch_size="
                f"{self.network.patch_size} and {len(self.network.dim_multipliers)} network.dim_multipliers need; "
                f"nearest: {low}"
            )


class BlockDecoder(Method):
    """Learns to generate the pixels of target blocks, given the predictions of a frozen method.

    The engine trains it like any method. It has no encoder, and the frozen method is no part of it: checkpoints hold
    the generator, its EMA weights and the scale of predictions.

    Args:
        channels: of the images.
        prediction_dim: width of the predictions.

    Attributes:
        precision: of samples.
    """

    config: DecoderConfig

    def __init__(
        self, config: DecoderConfig, predictor: FrozenPredictor, *, channels: int, prediction_dim: int
    ) -> None:
        super().__init__(config, None, None)  # neither an encoder nor a target to train
        self.predictor, self.channels, self.precision = predictor, channels, Precision.fp32
        self.network = UNet(config.network, channels, prediction_dim + BOX_FEATURES)
        self.ema_network = EmaCopy(self.network)
        self.register_buffer("prediction_mean", torch.zeros(prediction_dim))
        self.register_buffer("prediction_std", torch.ones(prediction_dim))

    def fit_scale(self, batches: Iterable[Batch]) -> None:
        """Set the mean and standard deviation by which predictions are normalised, from a few batches."""
        predictions = torch.cat([self.predictor(batch).predictions for batch in batches])
        self.prediction_mean.copy_(predictions.mean(dim=0))
        self.prediction_std.copy_(predictions.std(dim=0).clamp_min(1e-6))

    def schedules(self) -> Mapping[str, Schedule]:
        return {"step": lambda progress: progress.step}  # seeds the noise

    def emas(self) -> Sequence[Ema]:
        return (Ema(self.network, self.ema_network, self.config.ema.momentum_at),)

    def forward(self, batch: Batch, step: Step) -> Output:
        blocks = self.predictor(batch)
        pixels = crops(batch.views[VIEW], blocks, self.predictor.grid, self.config.block_size)
        noise = self._noise(_NOISE, step.values["step"], blocks)
        normal = normal_numbers(step.values["step"], torch.full_like(blocks.keys, _TIME), blocks.keys)
        return Output({"flow": flow_loss(self._velocity(self.network, blocks), pixels, noise, normal)})

    @torch.no_grad()
    def sample(self, blocks: Blocks, seeds: Sequence[int]) -> Float[Tensor, "S seeds C P P"]:
        """Generate the pixels of each block once per seed, by the EMA weights, normalised as the view.

        A sample is a function of the weights, the condition, the seed and the block's key. Conditions are not amplified
        (no classifier-free guidance): samples differ as much as the prediction leaves open.
        """
        velocity = self._velocity(self.ema_network, blocks)
        numbers = torch.tensor(list(seeds), device=blocks.keys.device)
        noises = [self._noise(_SAMPLE, number, blocks) for number in numbers]
        with autocast(self.precision, numbers.device):
            return torch.stack([flow_samples(velocity, noise, self.config.sampling_steps) for noise in noises], dim=1)

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Plot samples of the block of each image whose pixels vary most; plain ones show little."""
        blocks = self.predictor(batch)
        pixels = crops(batch.views[VIEW], blocks, self.predictor.grid, self.config.block_size)
        variance = pixels.flatten(2).var(dim=2).mean(dim=1).unflatten(0, (batch.num_images, -1))
        first = torch.arange(batch.num_images, device=variance.device) * variance.shape[1]
        shown = blocks[first + variance.argmax(dim=1)]
        return {"decoded": plot_samples(batch, shown, self.sample(shown, range(_SHOWN_SEEDS)), self.predictor)}

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        self.predictor.method.check_inputs(views, masks)

    def _velocity(self, network: Callable[..., Tensor], blocks: Blocks) -> Callable[..., Tensor]:
        scaled = (blocks.predictions - self.prediction_mean) / self.prediction_std
        return partial(network, condition=torch.cat([scaled, box_features(blocks.boxes, self.predictor.grid)], dim=1))

    def _noise(self, purpose: int, number: Float[Tensor, ""], blocks: Blocks) -> Float[Tensor, "S C P P"]:
        """Sample noise from a number, the step's or a seed, and the keys of the blocks."""
        shape = (self.channels, self.config.block_size, self.config.block_size)
        place = torch.arange(self.channels * self.config.block_size**2, device=blocks.keys.device)
        keys = blocks.keys[:, None]
        return normal_numbers(number, torch.full_like(keys, purpose), keys, place).unflatten(1, shape)
