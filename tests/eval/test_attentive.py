from dataclasses import replace

import pytest
import torch
from tiny_probes import encoder, probe

from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.attentive_heads import AttentiveHead, AttentiveHeads, StackedBatchNorm
from ssl_zoo.eval.features import Pooling
from ssl_zoo.eval.trained import FeatureSource, Selection

QUICK = AttentiveConfig(epochs=15, batch_size=20, lr=0.01)


def random_head(num_heads: int, num_stacked: int = 1) -> AttentiveHead:
    head = AttentiveHead(48, num_heads, 5, num_stacked).eval()
    for parameter in head.parameters():  # biases and scales that matter, too
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def of_torch(head: AttentiveHead, number: int, tokens: torch.Tensor) -> torch.Tensor:
    """Compute what ``head.pooled`` does for one of the stacked heads by torch's own modules."""
    own = {name: parameter.detach()[number] for name, parameter in head.named_parameters()}
    attention = torch.nn.MultiheadAttention(48, head.num_heads, batch_first=True)
    weights = [own[f"{name}_weight"].flatten(0, 1) for name in ("query", "key", "value")]
    biases = [own["query_bias"].flatten(), torch.randn(48), torch.randn(48)]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat(weights))
        attention.in_proj_bias.copy_(torch.cat(biases))
        attention.out_proj.weight.copy_(own["out_weight"])
        attention.out_proj.bias.normal_()
    layer_norm = torch.nn.functional.layer_norm
    query = layer_norm(own["query"], (48,), own["query_scale"], own["query_shift"]).expand(len(tokens), 1, 48)
    normed = layer_norm(tokens, (48,), own["norm_scale"], torch.randn(48))
    return attention(query, normed, normed, need_weights=False)[0][:, 0]


def test_the_head_does_not_depend_on_the_order_of_tokens():
    torch.manual_seed(0)
    head, tokens = random_head(3), torch.randn(4, 16, 48)
    assert torch.allclose(head(tokens), head(tokens[:, torch.randperm(16)]), atol=1e-4)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_each_stacked_head_is_a_layer_norm_and_torchs_attention_of_one_query(num_heads):
    torch.manual_seed(0)
    head, tokens = random_head(num_heads, num_stacked=2), 3 * torch.randn(4, 16, 48) + 1
    pooled = head.pooled(torch.nn.functional.layer_norm(tokens, (48,)))
    for number in range(2):
        expected = of_torch(head, number, tokens)  # whose further biases add the same to all images
        assert torch.allclose(pooled[number] - pooled[number].mean(0), expected - expected.mean(0), atol=1e-4)


def test_batch_norm_is_torchs_in_training_and_in_evaluation():
    torch.manual_seed(0)
    ours, theirs = StackedBatchNorm(2, 8), torch.nn.BatchNorm1d(8, affine=False, eps=1e-6)
    for _ in range(3):
        values = 2 * torch.randn(2, 6, 8) + 1
        assert torch.allclose(ours(values, 6)[1], theirs(values[1]), atol=1e-5)
    theirs.eval()
    assert torch.allclose(ours(values, None)[1], theirs(values[1]), atol=1e-5)


def test_stacked_heads_have_the_gradients_of_separate_ones():
    torch.manual_seed(0)
    tokens, labels = torch.randn(6, 16, 48), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.manual_seed(1)
    both = AttentiveHeads([48], 3, 5, num_rates=2)
    torch.manual_seed(1)
    alone = AttentiveHeads([48], 3, 5, num_rates=1)
    with torch.no_grad():
        for stacked, single in zip(both.parameters(), alone.parameters(), strict=True):
            stacked[0].add_(0.1)
            stacked[1].copy_(single[0])
    for heads in (both, alone):
        heads.backward([tokens], labels, 6)
    for stacked, single in zip(both.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(stacked.grad[1], single.grad[0], atol=1e-5)
        assert not torch.allclose(stacked.grad[0], single.grad[0], atol=1e-5) or single.grad.abs().max() < 1e-4


def test_a_head_that_is_chosen_on_the_test_images_is_named_so():
    grid = replace(QUICK, epochs=1, lrs=[1e-6, 0.01], layer_counts=[1, 2], selection=Selection.test)
    [best] = probe(train_samples=0, evaluators=["attentive"], attentive=grid)(encoder())
    assert best.name == "attentive_best_on_test" and best.details["num_heads"] == 4
    assert best.details["chosen"]["lr"] == 0.01


def test_it_learns_what_stripes_show_and_repeats_without_the_global_random_state():
    state = torch.get_rng_state()
    first, second = (probe(train_samples=0, evaluators=["attentive"], attentive=QUICK)(encoder())[0] for _ in range(2))
    assert first == second and first.value > 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_only_tokens_are_pooled_and_only_as_many_as_fit_in_memory():
    with pytest.raises(ValueError, match=r"probe\.attentive\.pooling=average"):
        AttentiveConfig(pooling=Pooling.average)
    with pytest.raises(ValueError, match=r"features=cached, but the features of 120 .* GB, more than .*max_gigabytes"):
        config = AttentiveConfig(max_gigabytes=1e-6, features=FeatureSource.cached)
        probe(evaluators=["attentive"], attentive=config)(encoder())
