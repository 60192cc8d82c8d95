import pytest
import torch
from tiny_probes import encoder, probe

from ssl_zoo.eval.attentive import AttentiveConfig, AttentiveHead, standardize
from ssl_zoo.eval.features import Pooling

QUICK = AttentiveConfig(epochs=15, batch_size=20, lr=0.01)


def test_the_head_does_not_depend_on_the_order_of_tokens():
    torch.manual_seed(0)
    head, tokens = AttentiveHead(48, 3, 5).eval(), torch.randn(4, 16, 48)
    assert torch.allclose(head(tokens), head(tokens[:, torch.randperm(16)]), atol=1e-5)


def test_the_pooled_token_is_one_querys_softmax_average_of_the_values():
    torch.manual_seed(0)
    head, tokens = AttentiveHead(48, 1, 5).eval(), 3 * torch.randn(4, 16, 48) + 1
    for parameter in head.parameters():  # biases and scales that matter, too
        torch.nn.init.normal_(parameter, std=0.3)
    normed = head.norm(tokens)
    weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
    inputs = head.query_norm(head.query), normed, normed
    q, k, v = (x @ w.T + b for x, w, b in zip(inputs, weight.split(48), bias.split(48), strict=True))
    pooled = (q @ k.mT / 48**0.5).softmax(-1) @ v
    expected = head.classes(head.batch_norm(head.attention.out_proj(pooled)[:, 0]))
    assert torch.allclose(head(standardize(tokens)), expected, atol=1e-5)


def test_several_heads_are_those_of_torchs_attention():
    torch.manual_seed(0)
    head, tokens = AttentiveHead(48, 3, 5).eval(), torch.randn(4, 16, 48)
    query, normed = head.query_norm(head.query).expand(4, -1, -1), head.norm(tokens)
    pooled, _ = head.attention(query, normed, normed, need_weights=False)
    expected = head.classes(head.batch_norm(pooled[:, 0]))
    assert torch.allclose(head(standardize(tokens)), expected, atol=1e-5)


def test_it_learns_what_stripes_show_and_repeats_without_the_global_random_state():
    state = torch.get_rng_state()
    first, second = (probe(train_samples=0, evaluators=["attentive"], attentive=QUICK)(encoder())[0] for _ in range(2))
    assert first == second and first.value > 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_only_tokens_are_pooled_and_only_as_many_as_fit_in_memory():
    with pytest.raises(ValueError, match=r"probe\.attentive\.pooling=average"):
        AttentiveConfig(pooling=Pooling.average)
    with pytest.raises(ValueError, match=r"tokens of 120 images take 0\.0 GB.*attentive\.max_gigabytes=1e-06"):
        probe(evaluators=["attentive"], attentive=AttentiveConfig(max_gigabytes=1e-6))(encoder())
