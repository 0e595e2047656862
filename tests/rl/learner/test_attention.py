"""Packed attention gives every segment exactly what it gets alone, without a T x T mask."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask

from rl.learner.attention import PACKED_ATTENTION, packed_attention

BOUNDS = (0, 5, 6, 14, 16)


def heads(tokens: int, kv_heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, tokens, 8, generator=generator)
    key, value = torch.randn(2, 1, kv_heads, tokens, 8, generator=generator)
    return query, key, value


def call(query, key, value, cu_seqlens, mask=None, dropout=0.0) -> torch.Tensor:
    module = torch.nn.Module()
    return packed_attention(module, query, key, value, mask, cu_seqlens=cu_seqlens, scaling=0.3, dropout=dropout)[0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_segment_is_bit_for_bit_what_it_is_alone(kv_heads: int) -> None:
    query, key, value = heads(BOUNDS[-1], kv_heads)
    packed = call(query, key, value, BOUNDS)
    assert packed.shape == (1, BOUNDS[-1], 4, 8)
    for start, end in pairwise(BOUNDS):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        alone = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=kv_heads != 4)
        assert torch.equal(packed[:, start:end], alone.transpose(1, 2))


def test_it_equals_attention_under_a_block_causal_mask_with_its_gradients() -> None:
    query, key, value = (tensor.double() for tensor in heads(BOUNDS[-1], 4))
    segment = torch.tensor([0] * 5 + [1] + [2] * 8 + [3] * 2)
    position = torch.arange(BOUNDS[-1])
    allowed = (segment[:, None] == segment[None]) & (position[:, None] >= position[None])
    results = []
    for packed in (True, False):
        q, k, v = (tensor.clone().requires_grad_() for tensor in (query, key, value))
        out = (
            call(q, k, v, BOUNDS)
            if packed
            else scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=0.3).transpose(1, 2)
        )
        out.square().sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for ours, masked in zip(*results, strict=True):
        torch.testing.assert_close(ours, masked, rtol=1e-12, atol=1e-12)


def test_transformers_builds_no_mask_for_it() -> None:
    config = LlamaConfig(attn_implementation=PACKED_ATTENTION)
    embeddings = torch.zeros(1, 16, 4)
    restarting = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1]])
    assert create_causal_mask(config, embeddings, None, None, restarting) is None
    sdpa = LlamaConfig(attn_implementation="sdpa")
    assert create_causal_mask(sdpa, embeddings, None, None, restarting) is not None, "else this test proves nothing"


def test_a_packed_model_forward_equals_one_forward_a_sequence() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    tokens = torch.randint(0, 50, (1, BOUNDS[-1]))
    with torch.no_grad():
        alone = [model(tokens[:, a:b]).logits[0] for a, b in pairwise(BOUNDS)]
        model.set_attn_implementation(PACKED_ATTENTION)
        positions = torch.cat([torch.arange(len(logits)) for logits in alone])[None]
        packed = model(tokens, position_ids=positions, use_cache=False, cu_seqlens=BOUNDS).logits[0]
    expected = torch.cat(alone)
    # In float64, since kernels of other processors add up float32 in another order. atol is a part of the largest
    # logit, because a small one may be the difference of large terms.
    torch.testing.assert_close(packed, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("bounds", "mask", "dropout"),
    [((0, 5), None, 0.0), ((1, 16), None, 0.0), (BOUNDS, torch.ones(16, 16), 0.0), (BOUNDS, None, 0.1)],
)
def test_what_it_cannot_do_is_refused(bounds, mask, dropout) -> None:
    with pytest.raises(ValueError):
        call(*heads(BOUNDS[-1]), bounds, mask, dropout)


@pytest.mark.parametrize(("name", "value"), [("sliding_window", 4), ("softcap", 30.0), ("s_aux", torch.zeros(4))])
def test_what_a_models_attention_asks_for_beyond_it_is_refused(name: str, value: object) -> None:
    query, key, value_states = heads(BOUNDS[-1])
    arguments = {"cu_seqlens": BOUNDS, "scaling": 0.3}
    packed_attention(torch.nn.Module(), query, key, value_states, None, **arguments, **{name: None})
    with pytest.raises(ValueError, match=f"has no {name}"):
        packed_attention(torch.nn.Module(), query, key, value_states, None, **arguments, **{name: value})
