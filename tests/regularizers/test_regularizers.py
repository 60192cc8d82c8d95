"""Regularizers chosen by the configuration: places, weights, refusals, and equality over ranks."""

import pytest
import torch
from tiny_methods import step_of, tiny_batch, tiny_method
from tiny_runs import tiny_trainer
from tiny_world import on_ranks
from torch import Tensor

from ssl_zoo.method import METHODS, Progress, Step
from ssl_zoo.regularizers import REGULARIZERS, Place, Regularizer
from ssl_zoo.schedules import ScheduleShape
from ssl_zoo.world import World

STEP = torch.tensor(4.0)
NAMES = REGULARIZERS.names()


def regularizer(name: str, **settings: object) -> Regularizer:
    return REGULARIZERS.build(REGULARIZERS.config_of(name)(**settings))


def features(num_images: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"tokens": (num_images, 2, 5, 12), "predictions": (num_images, 2, 3, 4, 12)}
    return {name: torch.randn(*shape, generator=generator) + 0.5 for name, shape in shapes.items()}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("name", NAMES)
def test_several_ranks_have_the_loss_and_gradient_of_one(name: str, place: Place, size: int) -> None:
    more = {"invariance_weight": 5.0} if name == "vicreg" and place is not Place.tokens else {}
    part = regularizer(name, apply_to=place, **more)
    values = {"weight": torch.tensor(0.3), "step": STEP}
    everything = {key: value.clone().requires_grad_() for key, value in features().items()}
    losses = on_ranks(
        size,
        lambda world: sum(part({k: v.chunk(size)[world.rank] for k, v in everything.items()}, values, world).values()),
    )
    mean = torch.stack(losses).mean()
    alone = {key: value.clone().requires_grad_() for key, value in features().items()}
    [expected] = on_ranks(1, lambda world: sum(part(alone, values, world).values()))
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    key = "predictions" if place is Place.predictions else "tokens"
    gradient, wanted = (
        torch.autograd.grad(loss, given[key])[0] for loss, given in ((mean, everything), (expected, alone))
    )
    assert wanted.any() and (gradient - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("place", "shape"), [("context", (8, 2, 12)), ("predictions", (8, 6, 12)), ("tokens", (80, 1, 12))]
)
def test_samples_are_images_and_means_over_tokens_or_all_tokens(place: str, shape: tuple[int, ...]) -> None:
    given = features()
    samples = regularizer("vicreg", apply_to=Place(place))._samples(given)
    assert samples.shape == shape
    first = {"context": given["tokens"][0, 1].mean(0), "tokens": given["tokens"][0, 0, 1]}
    expected = first.get(place, given["predictions"][0, 0, 1].mean(0))
    torch.testing.assert_close(samples[1, 0] if place == "tokens" else samples[0, 1], expected)


def test_what_a_method_pools_itself_takes_the_place_of_the_mean_over_tokens() -> None:
    pooled = torch.randn(8, 2, 12)
    assert torch.equal(regularizer("vicreg")._samples({**features(), "context": pooled}), pooled)


def test_the_weight_follows_its_schedule() -> None:
    part = regularizer("sigreg", weight=0.4, final_weight=0.0, weight_schedule=ScheduleShape.linear)
    weight = part.schedules()["weight"]
    assert [weight(Progress(step, 10, 0)) for step in (0, 5, 10)] == pytest.approx([0.4, 0.2, 0.0])
    constant = regularizer("sigreg", weight=0.4).schedules()["weight"]
    assert [constant(Progress(step, 10, 0)) for step in (0, 10)] == [0.4, 0.4]


def test_terms_are_weighted_and_the_step_carries_the_values() -> None:
    method = tiny_method("ijepa", regularizer="sigreg")
    batch, terms = tiny_batch(method, "ijepa"), []
    for weight in (0.05, 0.1):
        method.regularizer.config.weight = weight
        terms.append(method(batch, step_of(method)).losses["sigreg"])
    torch.testing.assert_close(terms[1], 2 * terms[0])


@pytest.mark.parametrize("name", ["sigreg", "visreg"])
def test_directions_are_those_of_the_step(name: str) -> None:
    part, given = regularizer(name, num_directions=16), features()
    first, again, other = (
        sum(part(given, {"weight": torch.ones(()), "step": step}, World()).values()) for step in (STEP, STEP, STEP + 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_invariance_of_one_vector_per_image_is_refused() -> None:
    method = tiny_method("ijepa", regularizer=REGULARIZERS.config_of("vicreg")(invariance_weight=25.0))
    with pytest.raises(ValueError, match=r"^regularizer\.invariance_weight=25 compares several .*apply_to=predictions"):
        method(tiny_batch(method, "ijepa"), step_of(method))


def test_a_batch_of_one_image_is_refused() -> None:
    method = tiny_method("ijepa", regularizer="vicreg")
    with pytest.raises(ValueError, match=r"statistics over several images: raise trainer\.batch_size above 1"):
        method(tiny_batch(method, "ijepa", num_images=1), step_of(method))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_accumulation_is_refused(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2: the loss of \w+Reg couples all images"):
        tiny_trainer(tmp_path, method=tiny_method("ijepa", regularizer=name), gradient_accumulation_steps=2)


def test_a_method_without_features_refuses_every_regularizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS.get("mae"), "regularizes", ())
    with pytest.raises(ValueError, match="MAE hands no features to a regularizer: set regularizer=null"):
        tiny_method("mae", regularizer="vicreg")


def test_without_a_regularizer_the_step_has_no_values_of_one() -> None:
    method = tiny_method("mae")
    assert not any(name.startswith("regularizer.") for name in Step.of(method, Progress(0, 1, 0)).values)
