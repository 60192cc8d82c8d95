import torch

from ssl_zoo.eval.features import Features
from ssl_zoo.eval.logistic import column_statistics
from ssl_zoo.eval.shards import FeatureShard, as_shard, exact_unit


def features(num_images: int = 50, dim: int = 6) -> Features:
    values = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(0))
    return Features(values, torch.arange(num_images) % 3, torch.arange(num_images) * 2)


def shard(rank: int, sizes: list[int], world_size: int) -> FeatureShard:
    of_all = features(sum(sizes))
    values = torch.cat([of_all.values[:0], *of_all.values.split(sizes)[rank::world_size]])
    return FeatureShard(values, of_all.labels, of_all.index, sizes, rank, world_size)


def test_one_process_holds_the_features_without_a_copy():
    of_all = features()
    assert as_shard(of_all).complete().values is of_all.values
    assert as_shard(of_all).rows.tolist() == list(range(50))


def test_every_row_has_one_owner_who_knows_its_number():
    sizes = [3, 20, 1, 20, 6]
    shards = [shard(rank, sizes, 7) for rank in range(7)]
    assert torch.cat([part.rows for part in shards]).sort().values.tolist() == list(range(50))
    for part in shards:
        assert torch.equal(part.values, features().values[part.rows])
        assert [len(values) for _, values in part.batches()] == sizes[part.rank :: 7]


def test_a_total_is_the_same_in_every_order_of_the_parts():
    parts = list(torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    bound = torch.stack(parts).abs().sum(dim=0)
    only = as_shard(features())
    total = only.total(torch.zeros(4).double(), parts, bound)
    assert torch.equal(only.total(torch.zeros(4).double(), parts[::-1], bound), total)
    halves = [only.total(torch.zeros(4).double(), half, bound) for half in (parts[::2], parts[1::2])]
    assert torch.equal(halves[0] + halves[1], total)
    assert torch.allclose(total, torch.stack(parts).sum(dim=0), rtol=0, atol=1e-10)


def test_units_are_powers_of_two_far_below_the_bound():
    bound = torch.tensor([0.0, 1e-300, 0.75, 1.0, 3.0, 1e12], dtype=torch.float64)
    unit = exact_unit(bound)
    assert torch.equal(unit.frexp().mantissa, torch.full_like(bound, 0.5))
    assert (bound[2:] / unit[2:] <= 2.0**51).all() and (bound[2:] / unit[2:] >= 2.0**49).all()


def test_a_large_dimension_costs_the_others_no_precision():
    of_all = features(4000)
    values = of_all.values * torch.tensor([1e-6, 1e6, 1, 1, 1, 1])
    mean, deviation = column_statistics(as_shard(Features(values, of_all.labels, of_all.index), batch_size=64))
    assert torch.allclose(mean, values.double().mean(dim=0), rtol=1e-10, atol=0)
    expected = values.double().std(dim=0, correction=0).clamp_min(1e-6)
    assert torch.allclose(deviation, expected, rtol=1e-10, atol=0)
