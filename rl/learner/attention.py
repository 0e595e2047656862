"""Causal attention over prefix trees: each segment attends to its ancestors and, causally, to itself.

Owns the attention function that every learner model runs, registered with transformers as `TREE_ATTENTION`. Nothing is
padded: each segment is one SDPA call, over its own keys after those of its ancestors, and rows of equal length that
share nothing are one call together. A segment's queries are the last of its keys, so the mask is causal from the lower
right corner, and kernels that know such masks build none. A segment without ancestors is computed bit for bit as it
would be alone. Models that bound their attention scores (Gemma 2) or let a head attend to nothing (the sinks of
GPT-OSS) ask for more than SDPA computes; for them the formula is written out, for a block of queries at a time.

transformers builds a mask only for attention implementations it has a mask function for; we register none, so the
model's `create_causal_mask` returns None for ours (a test pins that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from rl.batch.tree import Segment

TREE_ATTENTION = "sluice_trees"
WINDOW_BLOCK = 512
"""Queries of a sliding window are computed so many at a time, each block with the keys that one of them sees."""
MAX_SCORES = 1 << 28
"""Where the formula is written out, the most attention scores that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Formula:
    """What a layer's attention computes.

    Attributes:
        scaling: the factor of query times key.
        window: a token sees itself and the window - 1 tokens before it in its row; None: all of them.
        softcap: scores are bounded to softcap * tanh(score / softcap); None: they are not.
        sinks: [heads], a score of each head for seeing nothing, which takes part in the softmax; None: there is none.
    """

    scaling: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: tuple[Segment, ...],
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one micro-batch. transformers fixes the signature; most of its keywords do not matter.

    Args:
        query: [1, heads, T, D]; key and value: [1, kv_heads, T, D] (grouped-query: heads is a multiple of kv_heads).
        segments: as in `rl.batch.micro_batch.MicroBatch`.
        sliding_window, softcap, s_aux: as in `Formula`, where s_aux is called sinks.

    Returns:
        ([1, T, heads, D], None).

    Raises:
        ValueError: a mask, dropout or more than one row was asked for, or the segments do not span T tokens.
    """
    if attention_mask is not None or dropout != 0.0:
        raise ValueError("tree attention takes no mask and no dropout; set attention_dropout: 0.0 in config.json")
    lengths = [segment.stop - segment.start for segment in segments]
    if query.shape[0] != 1 or sum(lengths) != query.shape[2]:
        raise ValueError(f"segments of {sum(lengths)} tokens do not span one row (query {tuple(query.shape)})")
    formula = Formula(scaling, sliding_window, softcap, s_aux)
    if len({*lengths}) == 1 and all(segment.parent < 0 for segment in segments):
        own, keys_of_rows, values_of_rows = (_by_row(tensor, len(lengths)) for tensor in (query, key, value))
        return _attend(own, [keys_of_rows], [values_of_rows], formula).transpose(1, 2).flatten(0, 1)[None], None
    # Use split, not slices: the backward of each slice would allocate a full-size tensor of zeros.
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    outputs = [
        _attend(own, [keys[i] for i in seen], [values[i] for i in seen], formula)
        for own, seen in zip(queries, _seen(segments), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _by_row(heads: torch.Tensor, rows: int) -> torch.Tensor:
    """Take [1, heads, T, D] apart into rows of equal length: [rows, heads, T / rows, D]."""
    return heads[0].unflatten(1, (rows, -1)).transpose(0, 1)


def _seen(segments: Sequence[Segment]) -> list[list[int]]:
    """For each segment the numbers of its ancestors, the first one first, and its own."""
    seen: list[list[int]] = []
    for number, segment in enumerate(segments):
        seen.append([*(seen[segment.parent] if segment.parent >= 0 else []), number])
    return seen


def _attend(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    formula: Formula,
) -> torch.Tensor:
    key, value = (one[0] if len(one) == 1 else torch.cat(list(one), dim=2) for one in (keys, values))
    if formula.softcap is not None or formula.sinks is not None:
        return _attend_written_out(query, key, value, formula)
    times, scaling = query.shape[1] // key.shape[1], formula.scaling
    if times > 1 and query.is_cuda and query.dtype == torch.float32:  # no fast kernel knows grouped heads in float32
        key, value, times = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1), 1
    if formula.window is not None and key.shape[2] > formula.window:
        return _attend_in_window(query, key, value, scaling, formula.window)
    if len(keys) == 1:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=times > 1)
    mask = causal_lower_right(query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=times > 1)


def _attend_in_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int
) -> torch.Tensor:
    outputs = [
        scaled_dot_product_attention(
            query[:, :, own],
            key[:, :, seen],
            value[:, :, seen],
            attn_mask=_mask(own.stop - own.start, seen.stop - seen.start, window, query.device),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for own, seen in _blocks(query.shape[2], key.shape[2], window, WINDOW_BLOCK)
    ]
    return torch.cat(outputs, dim=2)


def _blocks(queries: int, keys: int, window: int | None, size: int) -> list[tuple[slice, slice]]:
    """The queries, `size` at a time, each block with the keys that one of them sees. The queries are the last keys."""
    before, blocks = keys - queries, []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first = 0 if window is None else max(0, before + start - window + 1)
        blocks.append((slice(start, stop), slice(first, before + stop)))
    return blocks


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[queries, keys], where a query sees a key. The queries are the last of the keys."""
    places = torch.arange(keys, device=device)
    distance = places[keys - queries :, None] - places
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attend_written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, formula: Formula) -> torch.Tensor:
    """The whole formula, without a fused kernel. The backward computes the scores of a block again."""
    size = max(1, MAX_SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    outputs = [
        checkpoint(_block, query[:, :, own], key[:, :, seen], value[:, :, seen], formula, use_reentrant=False)
        for own, seen in _blocks(query.shape[2], key.shape[2], formula.window, size)
    ]
    return torch.cat(outputs, dim=2)


def _block(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, formula: Formula) -> torch.Tensor:
    """Softmax in float32 (or float64), as the models' own code has it."""
    rows, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, queries, width)
    scores = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)) * formula.scaling
    if formula.softcap is not None:
        scores = formula.softcap * torch.tanh(scores / formula.softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~_mask(queries, keys, formula.window, query.device), float("-inf"))
    if formula.sinks is not None:
        nothing = formula.sinks.to(scores.dtype).reshape(1, kv_heads, heads // kv_heads, 1, 1)
        scores = torch.cat([scores, nothing.expand(rows, -1, -1, queries, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :keys].to(value.dtype)
    return torch.matmul(weights, value[:, :, None]).reshape(rows, heads, queries, value.shape[3])


AttentionInterface.register(TREE_ATTENTION, tree_attention)
