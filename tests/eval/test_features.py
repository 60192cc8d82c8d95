import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import layer_norm

from ssl_zoo.eval.features import Pooling, extract, feature_dim
from ssl_zoo.nn import ViT, ViTConfig
from ssl_zoo.nn.blocks import NormPosition


def encoder(**settings) -> ViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 5, "num_heads": 3, "class_token": True}
        net = ViT(ViTConfig(**{**sizes, **settings}))
        with torch.no_grad():  # a norm that changes the tokens
            for parameter, limits in zip(net.norm.parameters(), ((0.5, 2), (-1, 1)), strict=False):
                parameter.uniform_(*limits)
        return net


class Listed(list):
    """Batches (images, sample ids) in memory."""

    labels, corrupt = torch.arange(100) % 5, ()

    @property
    def num_images(self) -> int:
        return sum(len(index) for _, index in self)

    def of_rank(self, rank: int, world_size: int):
        return iter(self[rank::world_size])


def batches(num_images: int = 22, batch_size: int = 4) -> Listed:
    images = torch.randn(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    index = torch.arange(num_images) * 3
    return Listed(zip(images.split(batch_size), index.split(batch_size), strict=True))


def test_rows_are_in_the_order_of_the_data_with_their_labels_and_ids():
    net = encoder()
    features = extract(net, batches(), pooling=Pooling.average)
    images, index = batches()[3]
    alone = extract(net, Listed([(images[2:3], index[2:3])]), pooling=Pooling.average)
    assert torch.equal(features.index, torch.arange(22) * 3)
    assert torch.equal(features.labels, features.index % 5)
    assert torch.allclose(features.values[14], alone.values[0], atol=1e-5)
    assert (alone.labels.item(), alone.index.item()) == (2, 42)


@pytest.mark.parametrize("prefix", [{}, {"class_token": False}, {"num_registers": 3}])
def test_average_is_over_patch_tokens_only(prefix):
    net = encoder(**prefix).eval()
    images = batches()[0][0]
    with torch.no_grad():
        tokens = net(images)
    num_prefix = tokens.shape[1] - 16
    expected = torch.stack([sum(image[num_prefix:]) / 16 for image in tokens])
    values = extract(net, batches(4), pooling=Pooling.average).values
    assert values.shape == (4, 48)
    assert torch.allclose(values, expected, atol=1e-5)


def test_class_token_is_the_first_token_after_the_final_norm():
    net = encoder(num_registers=2).eval()
    with torch.no_grad():
        expected = net(batches()[0][0])[:, 0]
    assert torch.equal(extract(net, batches(4), pooling=Pooling.class_token).values, expected)


def test_tokens_are_the_normed_patch_tokens():
    net = encoder(num_registers=2).eval()
    with torch.no_grad():
        expected = net(batches()[0][0])[:, 3:]
    assert torch.equal(extract(net, batches(4), pooling=Pooling.tokens).values, expected)


@pytest.mark.parametrize("final_norm", [True, False])
def test_last4_concatenates_the_last_four_blocks_shallow_to_deep(final_norm):
    net = encoder().eval()
    with torch.no_grad():
        layers = net(batches()[0][0], layers=[1, 2, 3, 4])
        if final_norm:
            layers = [layer_norm(layer, (48,), net.norm.weight, net.norm.bias, net.norm.eps) for layer in layers]
    expected = torch.cat([layer[:, 1:].mean(dim=1) for layer in layers], dim=1)
    values = extract(net, batches(4), pooling=Pooling.average, num_layers=4, final_norm=final_norm).values
    assert torch.allclose(values, expected, atol=1e-5)


def test_class_tokens_of_the_last_blocks_precede_the_average_of_the_last():
    net = encoder(num_registers=1).eval()
    with torch.no_grad():
        layers = [net.norm(layer) for layer in net(batches()[0][0], layers=[3, 4])]
    expected = torch.cat([layers[0][:, 0], layers[1][:, 0], layers[1][:, 2:].mean(dim=1)], dim=1)
    values = extract(net, batches(4), pooling=Pooling.class_token_and_average, num_layers=2).values
    assert values.shape[1] == feature_dim(net, Pooling.class_token_and_average, 2)
    assert torch.allclose(values, expected, atol=1e-5)


def test_more_layers_than_blocks_are_refused_with_their_number():
    with pytest.raises(ValueError, match="num_layers=6, but the encoder has 5 blocks"):
        extract(encoder(), batches(), pooling=Pooling.average, num_layers=6)


def test_blocks_that_normalise_their_outputs_need_no_final_norm():
    net = encoder(norm_position=NormPosition.post).eval()
    with torch.no_grad():
        expected = torch.cat([layer[:, 1:].mean(dim=1) for layer in net(batches()[0][0], layers=[3, 4])], dim=1)
    assert torch.allclose(extract(net, batches(4), pooling=Pooling.average, num_layers=2).values, expected, atol=1e-5)


def test_without_final_norm_the_last_block_is_taken_as_it_is():
    net = encoder().eval()
    with torch.no_grad():
        expected = net(batches()[0][0], layers=[-1])[0][:, 0]
    assert torch.equal(extract(net, batches(4), pooling=Pooling.class_token, final_norm=False).values, expected)


def test_every_module_gets_its_training_mode_back_also_after_an_error():
    net = encoder().train()
    net.blocks[1].eval()
    modes = [module.training for module in net.modules()]
    extract(net, batches(), pooling=Pooling.average)
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(ValueError):
        extract(net, Listed([(torch.zeros(1, 3, 15, 16), torch.zeros(1))]), pooling=Pooling.average)
    assert [module.training for module in net.modules()] == modes


def test_features_are_those_of_evaluation_mode_and_use_no_random_number():
    net = encoder(drop_path=0.9)
    before = torch.get_rng_state()
    training = extract(net.train(), batches(), pooling=Pooling.average).values
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(training, extract(net.eval(), batches(), pooling=Pooling.average).values)


def test_the_encoder_trains_as_before_after_an_extraction_at_another_image_size():
    net = encoder()
    larger = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    extract(net, Listed([(larger, torch.arange(2))]), pooling=Pooling.average)  # caches a position table
    net(larger).square().mean().backward()
    assert net.patch_embed.proj.weight.grad.abs().sum() > 0


def test_features_are_float32_under_autocast():
    net = encoder()
    full = extract(net, batches(), pooling=Pooling.average).values
    half = extract(net, batches(), pooling=Pooling.average, autocast=torch.autocast("cpu", torch.bfloat16)).values
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.2


@pytest.mark.parametrize(
    ("net", "data", "pooling", "message"),
    [
        (encoder(class_token=False), batches(), Pooling.class_token, "no class token; use pooling=average"),
        (encoder(class_token=False, num_registers=1), batches(), Pooling.class_token_and_average, "no class token"),
        (encoder(), Listed(), Pooling.average, "no images"),
    ],
)
def test_impossible_requests_are_refused(net, data, pooling, message):
    with pytest.raises(ValueError, match=message):
        extract(net, data, pooling=pooling)


CASES = {"6 batches": (22, False), "fewer batches than ranks": (3, False), "5 batches, sharded": (17, True)}
FEATURES = {"pooling": Pooling.average}, {"pooling": Pooling.class_token_and_average, "num_layers": 4}


def _extract_on_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    for case, (num_images, shard) in CASES.items():
        net = encoder()
        if shard:
            mesh = dist.device_mesh.init_device_mesh("cpu", (world_size,))
            for block in net.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(net, mesh=mesh)
        features = [extract(net, batches(num_images), **settings) for settings in FEATURES]
        if shard:  # a sharded encoder must still train afterwards
            net(batches()[0][0]).square().mean().backward()
        torch.save([(f.values, f.labels, f.index) for f in features], f"{folder}/{case} {rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    mp.spawn(_extract_on_rank, (2, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_return_the_features_of_one(two_processes, case):
    num_images, shard = CASES[case]
    for rank, (position, settings) in itertools.product(range(2), enumerate(FEATURES)):
        values, labels, index = torch.load(two_processes / f"{case} {rank}.pt")[position]
        alone = extract(encoder(), batches(num_images), **settings)
        assert torch.equal(labels, alone.labels) and torch.equal(index, alone.index)
        assert torch.allclose(values, alone.values, atol=1e-6) if shard else torch.equal(values, alone.values)
