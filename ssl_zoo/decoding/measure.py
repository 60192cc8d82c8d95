"""How much of an object decoded blocks show: errors of its position, colour and shape in rendered scenes.

A small network, the *readout*, learns on real blocks to estimate position, colour and shape of the main object, which
the renderer knows. It then reads decoded samples. Chance is the error of the same samples against the main object of
another scene at the same block, so that nothing but what the prediction knows of its own scene makes a difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.data.shapes import SHAPES
from ssl_zoo.data.sources.base import Splits
from ssl_zoo.data.sources.scenes import RenderedScenes
from ssl_zoo.decoding.blocks import box_features
from ssl_zoo.decoding.decoder import BlockDecoder
from ssl_zoo.decoding.scenes import Objects, SceneBlocks, partners, scene_blocks
from ssl_zoo.masks import MaskGenerator
from ssl_zoo.seeding import generator_for, seed_for

ATTRIBUTES = ("position_px", "color", "shape")
_RIDGE = (3.0, 30.0, 300.0, 3000.0)
_READOUT_STEPS, _READOUT_BATCH, _AT_ONCE = 1600, 128, 256
_NUM_TRAIN, _NUM_TEST, _MAX_BLOCKS = 8192, 4096, 1200  # scenes for the readout and for samples; decoded blocks


@dataclass(frozen=True)
class Measurement:
    """Mean errors by attribute: distance in pixels of the view, mean difference of albedo, fraction of wrong shapes.

    Attributes:
        min_visible: the fraction of its main object that the context of every decoded block shows at least.
        num_blocks: decoded blocks.
        real: of the readout on the blocks themselves, its own error.
        samples: per seed, of single samples.
        chance: per seed, of the same samples against another scene's object.
        mean: of the mean over the seeds of what is read, which estimates what all samples share.
        mean_chance: of the same against another scene's object.
        margin_sigmas: the mean over blocks of ``mean_chance - mean``, over its standard error.
        mean_image: of what is read in the mean of all real blocks.
        explained: R^2 of ridge regression from the box alone, with the prediction, and with the target's features.
    """

    min_visible: float
    num_blocks: int
    real: Mapping[str, float]
    samples: Sequence[Mapping[str, float]]
    chance: Sequence[Mapping[str, float]]
    mean: Mapping[str, float]
    mean_chance: Mapping[str, float]
    margin_sigmas: Mapping[str, float]
    mean_image: Mapping[str, float]
    explained: Mapping[str, Mapping[str, float]]

    def table(self) -> str:
        """Return a Markdown table."""
        rows = [
            ("the blocks themselves (readout's own error)", _cells([self.real])),
            ("samples, own scene", _cells(self.samples)),
            ("samples, another scene (chance)", _cells(self.chance)),
            ("mean over the seeds, own scene", _cells([self.mean])),
            ("mean over the seeds, another scene (chance)", _cells([self.mean_chance])),
            ("their difference over its standard error", _cells([self.margin_sigmas], "{:.1f}")),
            ("mean image", _cells([self.mean_image])),
        ]
        lines = ["| read from | position, px | colour | wrong shape |", "|---|---|---|---|"]
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
        lines += ["", "| explained variance from | position | colour | shape |", "|---|---|---|---|"]
        lines += [f"| {name} | {' | '.join(f'{v:.3f}' for v in e.values())} |" for name, e in self.explained.items()]
        shown = f"{self.num_blocks} blocks, whose contexts show at least {self.min_visible:.0%} of the main object"
        return "\n".join([*lines, "", f"{shown}; {len(self.samples)} seeds"])

    def plain(self) -> dict[str, object]:
        return asdict(self)


def _cells(by_seed: Sequence[Mapping[str, float]], style: str = "{:.3f}") -> list[str]:
    """Return mean and sample standard deviation over the seeds per attribute."""
    columns = [torch.tensor([values[name] for values in by_seed]) for name in ATTRIBUTES]
    if len(by_seed) == 1:
        return [style.format(column.item()) for column in columns]
    return [f"{style.format(column.mean().item())} ± {style.format(column.std().item())}" for column in columns]


def measure(
    decoder: BlockDecoder,
    splits: Splits,
    spec: ViewSpec,
    generator: MaskGenerator,
    *,
    seeds: Sequence[int],
    num_train: int = _NUM_TRAIN,
    num_test: int = _NUM_TEST,
    min_visible: float = 0.0,
) -> Measurement:
    """Decode blocks of held-out scenes once per seed and read what they show.

    Args:
        num_train: scenes of the training split that the readout learns from.
        num_test: scenes of the test split whose blocks are decoded, up to 1,200 of them.
        min_visible: leave out blocks whose context shows a smaller fraction of the main object. A prediction can't know
            the colour of an object that lies in masked patches altogether.

    Raises:
        ValueError: the data are no rendered scenes, whose objects are known, or too few blocks are left.
    """
    if not isinstance(splits.train, RenderedScenes):
        raise ValueError("positions, colours and shapes are known of rendered scenes alone: data=scenes")
    known = scene_blocks(decoder, splits.train, spec, generator, torch.arange(min(num_train, len(splits.train))), 0)
    readout = train_readout(known, 0)
    test = scene_blocks(decoder, splits.test, spec, generator, torch.arange(min(num_test, len(splits.test))), 1)
    known, test = (blocks[(blocks.visible >= min_visible).nonzero().flatten()] for blocks in (known, test))
    own, other = partners(test.places)
    if len(own) < 2:
        raise ValueError(f"only {len(own)} blocks of {num_test} scenes can be compared; lower --min-visible")
    own, other = own[:_MAX_BLOCKS], other[:_MAX_BLOCKS]
    chosen, strangers = test[own], test.objects[other]
    parts = torch.arange(len(chosen)).split(_AT_ONCE)
    pixels = torch.cat([decoder.sample(chosen.blocks[rows], seeds) for rows in parts])
    read = [readout.read(pixels[:, number]) for number in range(len(seeds))]
    mean = torch.stack(read).mean(dim=0)
    mean_own, mean_other = (errors(mean, chosen.sides, objects) for objects in (chosen.objects, strangers))
    mean_image = readout.read(known.pixels.mean(dim=0, keepdim=True)).expand(len(chosen), -1)
    return Measurement(
        min_visible=min_visible,
        num_blocks=len(chosen),
        real=_means(errors(readout.read(chosen.pixels), chosen.sides, chosen.objects)),
        samples=[_means(errors(outputs, chosen.sides, chosen.objects)) for outputs in read],
        chance=[_means(errors(outputs, chosen.sides, strangers)) for outputs in read],
        mean=_means(mean_own),
        mean_chance=_means(mean_other),
        margin_sigmas=_sigmas(mean_own, mean_other),
        mean_image=_means(errors(mean_image, chosen.sides, chosen.objects)),
        explained=_explained_by(known, decoder.predictor.grid),
    )


def _means(by_block: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: values.mean().item() for name, values in by_block.items()}


def _sigmas(own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, float]:
    gains = {name: others[name] - own[name] for name in own}
    return {name: (gain.mean() / (gain.std() / len(gain) ** 0.5)).item() for name, gain in gains.items()}


class Readout(nn.Module):
    """Estimates the main object of blocks from their pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.GELU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.heads = nn.Sequential(nn.Linear(16 * widths[-1], 256), nn.GELU(), nn.Linear(256, 5 + len(SHAPES)))

    def forward(self, pixels: Float[Tensor, "S C P P"]) -> Float[Tensor, "S outputs"]:
        return self.heads(self.features(pixels))

    @torch.no_grad()
    def read(self, pixels: Float[Tensor, "S C P P"]) -> Float[Tensor, "S outputs"]:
        """Return position, colour and logarithms of the shapes' probabilities."""
        outputs = torch.cat([self.eval()(part) for part in pixels.split(_AT_ONCE)])
        return torch.cat([outputs[:, :5], outputs[:, 5:].log_softmax(dim=1)], dim=1)


def train_readout(blocks: SceneBlocks, seed: int) -> Readout:
    """Train a readout on real blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "readout"))
        readout = Readout(blocks.pixels.shape[1]).train()
    generator = generator_for(seed, "readout batches")
    optimizer = torch.optim.AdamW(readout.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=_READOUT_STEPS)
    for _ in range(_READOUT_STEPS):
        rows = torch.randint(len(blocks), (_READOUT_BATCH,), generator=generator)
        outputs, objects = readout(blocks.pixels[rows]), blocks.objects[rows]
        loss = F.mse_loss(outputs[:, :2], objects.position) / 0.1 + F.mse_loss(outputs[:, 2:5], objects.color) / 0.06
        loss = loss + F.cross_entropy(outputs[:, 5:], objects.shape)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return readout.eval()


def errors(
    outputs: Float[Tensor, "S outputs"], sides: Float[Tensor, "S 2"], objects: Objects
) -> Mapping[str, Float[Tensor, "S"]]:
    """Return per block the distance of the position in pixels, the colour's error, and 1 where the shape is wrong."""
    offset = (outputs[:, :2] - objects.position) * sides
    return {
        "position_px": offset.norm(dim=1),
        "color": (outputs[:, 2:5].clamp(0, 1) - objects.color).abs().mean(dim=1),
        "shape": (outputs[:, 5:].argmax(dim=1) != objects.shape).float(),
    }


def _explained_by(blocks: SceneBlocks, grid: tuple[int, int]) -> dict[str, dict[str, float]]:
    shapes = F.one_hot(blocks.objects.shape, len(SHAPES)).float()
    values = {"position": blocks.objects.position, "color": blocks.objects.color, "shape": shapes}
    place = box_features(blocks.blocks.boxes, grid)
    features = {"box": place, "prediction": blocks.blocks.predictions, "target": blocks.targets}
    inputs = {name: part if name == "box" else torch.cat([part, place], dim=1) for name, part in features.items()}
    return {name: {key: explained(part, value) for key, value in values.items()} for name, part in inputs.items()}


def explained(features: Float[Tensor, "S D"], values: Float[Tensor, "S V"]) -> float:
    """Return R^2 of ridge regression on the last quarter of the blocks.

    It is fitted to the first half, and the second quarter chooses the ridge.
    """
    half, quarter = len(features) // 2, 3 * len(features) // 4
    scaled = (features - features[:half].mean(0)) / features[:half].std(0).clamp_min(1e-6)
    inputs = torch.cat([scaled, torch.ones(len(scaled), 1)], dim=1).double()
    values = values.double() - values[:half].double().mean(0)
    gram, moment = inputs[:half].T @ inputs[:half], inputs[:half].T @ values[:half]
    scores = []
    for ridge in _RIDGE:
        weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).double(), moment)
        wrong = (inputs @ weights - values).square().sum(dim=1)
        right = values.square().sum(dim=1)
        chosen, reported = slice(half, quarter), slice(quarter, None)
        scores.append((wrong[chosen].sum(), (1 - wrong[reported].sum() / right[reported].sum()).item()))
    return min(scores)[1]
