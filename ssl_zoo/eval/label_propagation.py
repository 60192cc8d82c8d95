"""Video object segmentation without training: the objects of the first frame are propagated by similar patches.

Protocol: DINO on DAVIS-2017 (arXiv 2104.14294, section 4.2.2), as in Jabri et al., arXiv 2006.14613. Each patch takes
the weighted mean of the masks of its nearest neighbours, among the patches nearby in the first frame and in the frames
before. The score is that of DAVIS-2017: the mean of J and F over objects, of all frames but the first and the last.
Differs from the reference: frames are resized to the encoder's image size instead of a shorter side of 480 pixels.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ssl_zoo.data.corrupt import CorruptImage
from ssl_zoo.data.maps import IGNORED
from ssl_zoo.data.resample import resize_crop
from ssl_zoo.data.video import Video
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import Pooling, evaluating, pooled
from ssl_zoo.eval.ranks import rank_and_size, sum_over_ranks
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.eval.video_measures import contour_accuracy, region_similarity
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

log = logging.getLogger(__name__)

_SIMILARITIES_AT_ONCE = 2**25  # 128 MiB
_DAVIS_VIDEOS, _DAVIS_FRAMES = 30, 67  # of the validation split of 2017; for costs
_IDS_PER_VIDEO = 100_000  # of frames as samples, which corruptions are a function of


@dataclass
class LabelPropagationConfig(EvaluatorConfig):
    """Propagation of first-frame masks. Defaults: DINO on DAVIS-2017."""

    pooling: Pooling = setting(Pooling.tokens, "always tokens: patches are compared")
    k: int = setting(5, "nearest neighbours of a patch", at_least=1)
    previous_frames: int = setting(7, "frames before that are compared, beside the first one", at_least=0)
    neighbourhood: int = setting(12, "largest distance of compared patches in rows and in columns", at_least=0)
    temperature: float = setting(0.1, "a neighbour of cosine similarity s has weight exp(s / temperature)", above=0)
    num_videos: int = setting(30, "most videos of the test split, the first ones; 0 = all", at_least=0)
    batch_size: int = setting(8, "frames per forward pass of the encoder", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling is not Pooling.tokens:
            raise ValueError(f"{self.key('pooling')}={self.pooling.value} must be tokens, one for each patch")


@EVALUATORS.register("label_propagation", LabelPropagationConfig)
class LabelPropagation(Evaluator):
    """Objects of a video from their masks in its first frame by nearest patches (DAVIS): J and F, no training."""

    needs_labels = False
    config: LabelPropagationConfig

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        return None if test.source.num_videos else "the data has no videos; choose data=scenes or data=davis"

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        rank, world_size = rank_and_size()
        num_videos = min(model.test.source.num_videos, self.config.num_videos or model.test.source.num_videos)
        sums = torch.zeros(num_videos, 3, dtype=torch.float64, device=float64_device(model.device))
        for number in range(rank, num_videos, world_size):
            sums[number] = sums.new_tensor(self._sums(model, number))
            if model.progress is not None:
                model.progress("videos", min(number + world_size, num_videos), num_videos)
        [sums] = sum_over_ranks(sums)  # each row is that of one rank: no rounding
        region, contour, num_objects = sums.sum(dim=0).tolist()
        if num_objects == 0:
            raise CannotEvaluate("label_propagation: no video could be decoded and has an object in its first frame")
        values = {"j": region / num_objects, "f": contour / num_objects}
        values = {"jf": (values["j"] + values["f"]) / 2, **values}
        protocol = self.protocol(model, videos=num_videos)
        details = {"objects": int(num_objects), "videos": int((sums[:, 2] > 0).sum())}
        return [Score(f"label_propagation_{n}", value, protocol, details=details) for n, value in values.items()]

    def cost(self, workload: Workload) -> Cost:
        config, encoder = self.config, workload.encoder
        num_videos, num_sources = config.num_videos or _DAVIS_VIDEOS, config.previous_frames + 1
        tokens, width = encoder.num_patches, encoder.embed_dim * config.num_layers
        held = 4.0 * width * tokens * (num_sources + config.batch_size)
        held += 3 * 4 * max(_SIMILARITIES_AT_ONCE, tokens * num_sources)
        frames = num_videos * _DAVIS_FRAMES
        how = f"{num_videos} videos of {_DAVIS_FRAMES} frames, as in DAVIS-2017; frames and scoring are not counted"
        flops = 2.0 * frames * num_sources * tokens**2 * width / workload.world_size
        return Cost(held, frames, flops, how)

    def _sums(self, model: EvaluatedModel, number: int) -> tuple[float, float, int]:
        """Return the sums of J and F over the objects of a video, and the number of objects."""
        try:
            video = model.test.source.video(number)
        except CorruptImage as error:
            log.warning("label_propagation without a video: %s", error)
            return 0.0, 0.0, 0
        objects = [value for value in video.objects[0].unique().tolist() if value not in (0, IGNORED)]
        if not objects or len(video.frames) < 3:
            return 0.0, 0.0, 0
        predicted = self.propagate(model, video, number)
        scores = [_of_object(predicted == value, video.objects, value) for value in objects]
        return sum(j for j, _ in scores), sum(f for _, f in scores), len(scores)

    @torch.no_grad()
    def propagate(self, model: EvaluatedModel, video: Video, number: int) -> UInt8[Tensor, "T H W"]:
        """Return the objects at the pixels of all frames, given those of the first."""
        config, (size, grid) = self.config, (model.encoder.config.image_shape, model.encoder.config.grid)
        values, classes = video.objects[0].unique(return_inverse=True)
        one_hot = F.one_hot(classes, len(values)).permute(2, 0, 1)[None].float().to(model.device)
        is_near = nearby(grid, config.neighbourhood, model.device)
        features = self._features(model, video, number)
        first = next(features), F.interpolate(one_hot, grid, mode="nearest-exact")[0].flatten(1).T
        recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.previous_frames)
        found = [video.objects[0]]
        for target in features:
            sources = (torch.stack(parts) for parts in zip(first, *recent, strict=True))
            masks = propagated(target, *sources, is_near, config.k, config.temperature)
            recent.append((target, masks))
            found.append(values[_classes(masks, grid, size, video.objects.shape[1:])])
        return torch.stack(found)

    def _features(self, model: EvaluatedModel, video: Video, number: int) -> Iterator[Float[Tensor, "N D"]]:
        """Yield the patches' features of each frame, of unit length."""
        config, data, box = self.config, model.test.data(), (0, 0, *video.frames.shape[-2:])
        for rows in torch.arange(len(video.frames)).split(config.batch_size):
            frames = resize_crop(video.frames[rows], box, data.size, "bicubic")
            images = data.normalize(data.transformed(frames, _IDS_PER_VIDEO * number + rows)).to(model.device)
            with evaluating(model.encoder), model.precision():
                tokens = pooled(model.encoder, images, config.pooling, config.num_layers, config.final_norm)
            yield from F.normalize(tokens.float(), dim=-1)


def nearby(grid: tuple[int, int], neighbourhood: int, device: torch.device) -> Bool[Tensor, "N N"]:
    """Return whether two patches are at most ``neighbourhood`` rows and columns apart."""
    row, column = (
        at.flatten() for at in torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    )
    return torch.maximum(*((at[:, None] - at).abs() for at in (row, column))) <= neighbourhood


def propagated(
    target: Float[Tensor, "N D"],
    sources: Float[Tensor, "S N D"],
    masks: Float[Tensor, "S N C"],
    is_near: Bool[Tensor, "N N"],
    k: int,
    temperature: float,
) -> Float[Tensor, "N C"]:
    """Return the mean of the masks of each patch's k nearest neighbours in all sources, weighted by similarity."""
    at_once = max(1, _SIMILARITIES_AT_ONCE // is_near.shape[0] // len(sources))
    bank, parts = masks.flatten(0, 1), []
    for rows, near in zip(target.split(at_once), is_near.split(at_once), strict=True):
        similarity = torch.einsum("nd,smd->nsm", rows, sources).masked_fill_(~near[:, None], -torch.inf).flatten(1)
        nearest, where = similarity.topk(min(k, similarity.shape[1]), dim=1)
        parts.append(torch.einsum("nk,nkc->nc", (nearest / temperature).softmax(dim=1), bank[where]))
    return torch.cat(parts)


def _classes(
    masks: Float[Tensor, "N C"], grid: tuple[int, int], size: tuple[int, int], frame_size: Sequence[int]
) -> Tensor:
    """Upsample masks, stretch each to 0..1 as the reference does, and return the class of each pixel of the frame."""
    soft = F.interpolate(masks.T.unflatten(1, grid)[None], size, mode="bilinear", align_corners=False)[0]
    low, high = soft.amin(dim=(1, 2), keepdim=True), soft.amax(dim=(1, 2), keepdim=True)
    soft = (soft - low) / (high - low).clamp(min=1e-12)
    classes = soft.argmax(dim=0)[None, None].float()
    return F.interpolate(classes, tuple(frame_size), mode="nearest-exact")[0, 0].long().cpu()


def _of_object(predicted: Bool[Tensor, "T H W"], objects: UInt8[Tensor, "T H W"], value: int) -> tuple[float, float]:
    """Return J and F of one object, means over all frames but the first and the last."""
    is_known = objects != IGNORED
    pairs = [
        ((p & known).numpy(), (o == value).numpy())
        for p, o, known in zip(predicted[1:-1], objects[1:-1], is_known[1:-1], strict=True)
    ]
    region, contour = (sum(measure(*pair) for pair in pairs) for measure in (region_similarity, contour_accuracy))
    return region / len(pairs), contour / len(pairs)
