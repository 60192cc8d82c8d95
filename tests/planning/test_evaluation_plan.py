"""The plan of an evaluation against closed forms."""

import io

import pytest
from rich.console import Console

from ssl_zoo.eval import probe_config_class
from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.eval.cost import Workload
from ssl_zoo.eval.health import HealthConfig
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.eval.trained import FeatureSource
from ssl_zoo.nn import ViT, ViTConfig
from ssl_zoo.planning.evaluation import EvaluationPlan, forward_flops
from ssl_zoo.planning.scale import Machine

LARGE = ViTConfig(patch_size=14, embed_dim=1280, depth=4, num_heads=16)
TINY = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3)


def table(*evaluators: str, **machine) -> str:
    output = io.StringIO()
    probe = probe_config_class()(evaluators=list(evaluators))
    plan = EvaluationPlan(LARGE, probe, Machine(**machine), num_networks=2)
    plan.print(Console(file=output, width=250), "The data", 50_000, 10_000, 10)
    return output.getvalue()


def workload(world_size: int = 1) -> Workload:
    return Workload(ViT(TINY), num_train=80_000, num_test=20_000, num_classes=10, batch_size=256, world_size=world_size)


def test_forward_flops_are_those_of_the_matmuls():
    tokens, dim = 16, 48
    blocks = 2 * (2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim)
    assert forward_flops(ViT(TINY).to("meta")) == blocks + 2 * tokens * dim * 48  # and the patch embedding


def test_hours_are_flops_over_the_rate_of_all_devices():
    one, eight = ([line for line in table("knn").splitlines() if f"│ knn       │ {n} " in line][-1] for n in (1, 8))
    hours = [float(line.split("│")[4]) for line in (one, eight)]
    flops = 4 * (2 * 256 * 12 * 1280**2 + 4 * 256**2 * 1280) + 2 * 256 * 1280 * 588
    assert hours[0] == pytest.approx(2 * 1_331_167 * flops / (0.4 * 312e12 * 3600), abs=1e-3)  # two networks
    assert hours[0] == pytest.approx(8 * hours[1], abs=5e-3)


@pytest.mark.parametrize("name", ["knn", "logistic"])
def test_a_rank_of_eight_holds_its_part_of_the_features(name):
    evaluator = EVALUATORS.get(name)(EVALUATORS.config_of(name)())
    one, eight = (evaluator.cost(workload(size)) for size in (1, 8))
    features = 4 * 48 * 100_000
    assert features < one.rank_bytes < 25 * features
    assert 7 / 8 * features <= one.rank_bytes - eight.rank_bytes < 2 * features  # twice while they are extracted
    assert one.flops == 8 * eight.flops and one.encoded_images == eight.encoded_images == 100_000


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_every_evaluator_has_a_cost(name):
    cost = EVALUATORS.get(name)(EVALUATORS.config_of(name)()).cost(workload())
    assert cost.rank_bytes > 0 and cost.how
    num_frames = 30 * 67  # of DAVIS-2017
    assert cost.encoded_images >= (num_frames if name == "label_propagation" else workload().num_test)


def test_a_streamed_probe_encodes_the_images_of_every_epoch_and_holds_no_features():
    work = workload()
    cached, streamed = (
        LinearConfig(epochs=3, lrs=[0.1], features=source) for source in FeatureSource if source.value != "auto"
    )
    cached, streamed = (EVALUATORS.get("linear")(config).cost(work) for config in (cached, streamed))
    assert cached.encoded_images == work.num_images and cached.rank_bytes > 4 * 48 * work.num_images
    assert streamed.encoded_images == 3 * work.num_train + work.num_test and streamed.rank_bytes < 1e6


def test_views_of_lidar_are_encoded_as_well():
    health = EVALUATORS.get("health")
    costs = [health(HealthConfig(lidar_images=count)).cost(workload()).encoded_images for count in (0, 100)]
    assert costs[1] - costs[0] == 100 * 8


def test_the_table_names_its_assumptions():
    text = table("knn", "linear", world_size=4, device_flops=989e12)
    assert "50,000 train and 10,000 test images, 10 classes" in text and "40% of 989 TFLOP/s" in text
    assert "Estimates" in text and "ranks share the images" in text
    assert "linear" in text and "own work is not counted" in text
