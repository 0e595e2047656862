"""Attention over prefix trees gives every row exactly what it gets alone, without padding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask

from rl.batch.tree import Forest, Segment, plant
from rl.learner.attention import TREE_ATTENTION, tree_attention

BOUNDS = (0, 5, 6, 14, 16)
APART = tuple(Segment(start, stop, -1) for start, stop in pairwise(BOUNDS))
"""Rows that share nothing."""
FOREST = plant([9, 7, 12, 3, 5], [0, 6, 4, 0, 3])
"""Five rows in two trees: one branches after 4 and after 6 tokens, and a row of the other is a prefix of the next."""
EQUAL = plant([6, 6, 6], [0, 0, 0])
"""Rows of equal length that share nothing."""


def heads(tokens: int, kv_heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, tokens, 8, generator=generator)
    key, value = torch.randn(2, 1, kv_heads, tokens, 8, generator=generator)
    return query, key, value


def call(query, key, value, segments, mask=None, dropout=0.0) -> torch.Tensor:
    module = torch.nn.Module()
    return tree_attention(module, query, key, value, mask, segments=segments, scaling=0.3, dropout=dropout)[0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_row_that_shares_nothing_is_bit_for_bit_what_it_is_alone(kv_heads: int) -> None:
    query, key, value = heads(BOUNDS[-1], kv_heads)
    packed = call(query, key, value, APART)
    assert packed.shape == (1, BOUNDS[-1], 4, 8)
    for start, end in pairwise(BOUNDS):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        alone = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=kv_heads != 4)
        assert torch.equal(packed[:, start:end], alone.transpose(1, 2))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_of_equal_length_are_one_call_and_bit_for_bit_what_they_are_alone(
    kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: torch.Tensor, **keywords: Any) -> torch.Tensor:
        calls.append(arguments)
        return scaled_dot_product_attention(*arguments, **keywords)

    monkeypatch.setattr("rl.learner.attention.scaled_dot_product_attention", counted)
    query, key, value = heads(EQUAL.tokens, kv_heads)
    together = call(query, key, value, EQUAL.segments)
    assert len(calls) == 1 and together.shape == (1, EQUAL.tokens, 4, 8)
    for place in EQUAL.places:
        row = alone(*(tensor[:, :, torch.from_numpy(place)] for tensor in (query, key, value)))
        assert torch.equal(together[0, torch.from_numpy(place)], row)


def test_it_equals_attention_under_a_block_causal_mask_with_its_gradients() -> None:
    query, key, value = (tensor.double() for tensor in heads(BOUNDS[-1], 4))
    segment = torch.tensor([0] * 5 + [1] + [2] * 8 + [3] * 2)
    position = torch.arange(BOUNDS[-1])
    allowed = (segment[:, None] == segment[None]) & (position[:, None] >= position[None])
    results = []
    for packed in (True, False):
        q, k, v = (tensor.clone().requires_grad_() for tensor in (query, key, value))
        out = (
            call(q, k, v, APART)
            if packed
            else scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=0.3).transpose(1, 2)
        )
        out.square().sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for ours, masked in zip(*results, strict=True):
        torch.testing.assert_close(ours, masked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("forest", [FOREST, EQUAL], ids=["trees", "equal"])
def test_each_row_of_a_tree_gets_the_values_and_gradients_of_a_row_alone(forest: Forest, kv_heads: int) -> None:
    query, key, value = (tensor.double() for tensor in heads(forest.tokens, kv_heads))
    results = []
    for shared in (True, False):
        q, k, v = (tensor.clone().requires_grad_() for tensor in (query, key, value))
        if shared:
            out = call(q, k, v, forest.segments)[0]
            rows = [out[torch.from_numpy(place)] for place in forest.places]
        else:
            rows = [alone(*(tensor[:, :, torch.from_numpy(place)] for tensor in (q, k, v))) for place in forest.places]
        sum((row * torch.arange(1, len(row) + 1)[:, None, None]).square().sum() for row in rows).backward()
        results.append((*(row.detach() for row in rows), q.grad, k.grad, v.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    grouped = key.shape[1] != 4
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=grouped)[0].transpose(
        0, 1
    )


def test_transformers_builds_no_mask_for_it() -> None:
    config = LlamaConfig(attn_implementation=TREE_ATTENTION)
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
        model.set_attn_implementation(TREE_ATTENTION)
        positions = torch.cat([torch.arange(len(logits)) for logits in alone])[None]
        packed = model(tokens, position_ids=positions, use_cache=False, segments=APART).logits[0]
    expected = torch.cat(alone)
    # In float64, since kernels of other processors add up float32 in another order. atol is a part of the largest
    # logit, because a small one may be the difference of large terms.
    torch.testing.assert_close(packed, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("segments", "mask", "dropout"),
    [(APART[:1], None, 0.0), (APART[1:], None, 0.0), (APART, torch.ones(16, 16), 0.0), (APART, None, 0.1)],
)
def test_what_it_cannot_do_is_refused(segments, mask, dropout) -> None:
    with pytest.raises(ValueError):
        call(*heads(BOUNDS[-1]), segments, mask, dropout)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("window", [1, 4, 7, 100])
@pytest.mark.parametrize("forest", [FOREST, EQUAL], ids=["trees", "equal"])
def test_each_row_of_a_tree_sees_its_window(
    forest: Forest, kv_heads: int, block: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values and gradients of each row alone under a mask, wherever the row's prefix is computed."""
    monkeypatch.setattr("rl.learner.attention.WINDOW_BLOCK", block)
    query, key, value = (tensor.double() for tensor in heads(forest.tokens, kv_heads))
    results = []
    for shared in (True, False):
        q, k, v = (tensor.clone().requires_grad_() for tensor in (query, key, value))
        if shared:
            arguments = {"segments": forest.segments, "scaling": 0.3, "sliding_window": window}
            out = tree_attention(torch.nn.Module(), q, k, v, None, **arguments)[0][0]
            rows = [out[torch.from_numpy(place)] for place in forest.places]
        else:
            rows = []
            for place in map(torch.from_numpy, forest.places):
                distance = torch.arange(len(place))[:, None] - torch.arange(len(place))
                mask = (distance >= 0) & (distance < window)
                parts = (tensor[:, :, place] for tensor in (q, k, v))
                row = scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.3, enable_gqa=kv_heads != 4)
                rows.append(row[0].transpose(0, 1))
        sum((row * torch.arange(1, len(row) + 1)[:, None, None]).square().sum() for row in rows).backward()
        results.append((*(row.detach() for row in rows), q.grad, k.grad, v.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def written_out(q, k, v, window: int, softcap: float | None, sinks: torch.Tensor | None) -> torch.Tensor:
    """One row alone, [length, heads, width], head by head."""
    heads = []
    for head in range(4):
        shared = head // (4 // k.shape[1])
        scores = q[0, head] @ k[0, shared].T * 0.3
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        distance = torch.arange(len(scores))[:, None] - torch.arange(len(scores))
        weights = scores.exp() * ((distance >= 0) & (distance < window))
        seen = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks[head].exp())
        heads.append(weights / seen @ v[0, shared])
    return torch.stack(heads, dim=1)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("most", [1, 40, 1 << 28])
@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize(("softcap", "with_sinks"), [(0.7, False), (None, True), (0.7, True)])
@pytest.mark.parametrize("forest", [FOREST, EQUAL], ids=["trees", "equal"])
def test_bounded_scores_and_sinks(
    forest: Forest,
    kv_heads: int,
    most: int,
    window: int,
    softcap: float | None,
    with_sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The values and gradients of each row alone, for scores computed in blocks of one query and of all."""
    monkeypatch.setattr("rl.learner.attention.MAX_SCORES", most)
    query, key, value = (tensor.double() for tensor in heads(forest.tokens, kv_heads))
    results = []
    for shared in (True, False):
        q, k, v = (tensor.clone().requires_grad_() for tensor in (query, key, value))
        sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True) if with_sinks else None
        if shared:
            arguments = {"segments": forest.segments, "scaling": 0.3, "sliding_window": window}
            out = tree_attention(torch.nn.Module(), q, k, v, None, **arguments, softcap=softcap, s_aux=sinks)[0][0]
            rows = [out[torch.from_numpy(place)] for place in forest.places]
        else:
            places = map(torch.from_numpy, forest.places)
            rows = [written_out(*(t[:, :, place] for t in (q, k, v)), window, softcap, sinks) for place in places]
        sum((row * torch.arange(1, len(row) + 1)[:, None, None]).square().sum() for row in rows).backward()
        results.append([*(row.detach() for row in rows), q.grad, k.grad, v.grad, *([sinks.grad] if with_sinks else [])])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
