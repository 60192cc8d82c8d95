"""Methods and evaluators on a device without float64, as MPS is."""

from collections.abc import Sequence

import pytest
import torch
from pretend_mps import pretended_mps
from tiny_maps import mosaic_probe
from tiny_methods import PROGRESS, tiny_batch, tiny_method
from tiny_probes import encoder, probe

from ssl_zoo.engine.optim import MuonConfig, Optimization, RateSchedules
from ssl_zoo.eval import EVALUATORS
from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.depth import DepthConfig
from ssl_zoo.eval.finetune import FinetuneConfig
from ssl_zoo.eval.health import HealthConfig
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.eval.logistic import LogisticConfig
from ssl_zoo.eval.low_shot import LowShotConfig
from ssl_zoo.eval.segmentation import SegmentationConfig
from ssl_zoo.method import METHODS, Step
from ssl_zoo.scores import Score

pytestmark = pytest.mark.slow
QUICK = {
    "linear": LinearConfig(epochs=1),
    "attentive": AttentiveConfig(epochs=1, crop_scale=[0.5, 1.0]),
    "finetune": FinetuneConfig(epochs=1, batch_size=40, random_erasing=0.5),
    "logistic": LogisticConfig(max_iterations=3),
    "low_shot": LowShotConfig(images_per_class=2, max_iterations=3),
    "health": HealthConfig(lidar_images=8, lidar_views=2),
    "depth": DepthConfig(epochs=1),
    "segmentation": SegmentationConfig(epochs=1),
}
NEED_MAPS_OR_VIDEOS = ("depth", "segmentation", "label_propagation")


def step_on(device: torch.device | str, name: str) -> torch.Tensor:
    """Train one step of a method with Muon; return the loss."""
    method = tiny_method(name)
    batch = tiny_batch(method, name).map(lambda tensor: tensor.to(device))
    method.to(device)
    step = Step.of(method, PROGRESS, device)
    config = MuonConfig(warmup_epochs=0)
    optimization = Optimization(config, method.param_groups(), RateSchedules(config, num_steps=100, steps_per_epoch=10))
    torch.manual_seed(0)
    output = method(batch, step)
    output.loss.backward()
    method.after_backward(step)
    optimization.set_rates(10)
    optimization.clip()
    optimization.optimizer.step()
    for ema in method.emas():
        ema.update(PROGRESS.fraction)
    method.after_step(step, output.statistics)
    method.eval().visualize(batch)
    return output.loss.detach().cpu()


@pytest.mark.parametrize("name", METHODS.names())
def test_a_step_and_visualizations_need_no_float64_on_the_device_and_give_the_same_numbers(name: str) -> None:
    expected = step_on("cpu", name)
    with pretended_mps() as device:
        loss = step_on(device, name)
    torch.testing.assert_close(loss, expected)


def scores_on(device: torch.device | str, name: str) -> Sequence[Score]:
    make = mosaic_probe if name in NEED_MAPS_OR_VIDEOS else probe
    evaluated = make(evaluators=[name], **{name: QUICK[name]} if name in QUICK else {})
    evaluated.evaluated_model.keywords["device"] = device
    return evaluated(encoder().to(device))


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_needs_no_float64_on_the_device_and_gives_the_same_scores(name: str) -> None:
    expected = scores_on("cpu", name)
    with pretended_mps() as device:
        found = scores_on(device, name)
    assert [score.name for score in found] == [score.name for score in expected]
    assert [score.value for score in found] == pytest.approx([score.value for score in expected], rel=0.01)


def test_float64_on_the_device_is_found() -> None:
    with pretended_mps() as device:
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, device=device).double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, device=device, dtype=torch.float64)
        assert torch.zeros(2, device=device).cpu().double().dtype is torch.float64
