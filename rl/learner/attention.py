"""Causal attention over prefix trees: each segment attends to its ancestors and, causally, to itself.

Owns the attention function that every learner model runs, registered with transformers as `TREE_ATTENTION`. Nothing is
padded: each segment is one SDPA call, over its own keys after those of its ancestors. Its queries are the last of these
keys, so the mask is causal from the lower right corner, and kernels that know such masks build none. A segment without
ancestors is computed bit for bit as it would be alone.

transformers builds a mask only for attention implementations it has a mask function for; we register none, so the
model's `create_causal_mask` returns None for ours (a test pins that).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rl.batch.tree import Segment

TREE_ATTENTION = "sluice_trees"
CHANGES_RESULT = ("softcap", "s_aux")
"""Keywords that transformers passes to the attention of some models, and that would change what it computes."""
WINDOW_BLOCK = 512
"""Queries of a sliding window are computed so many at a time, each block with the keys that one of them sees."""


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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one micro-batch. transformers fixes the signature; most of its keywords do not matter.

    Args:
        query: [1, heads, T, D]; key and value: [1, kv_heads, T, D] (grouped-query: heads is a multiple of kv_heads).
        segments: as in `rl.batch.micro_batch.MicroBatch`.
        sliding_window: a token sees itself and the sliding_window - 1 tokens before it in its row; None: all of them.

    Returns:
        ([1, T, heads, D], None).

    Raises:
        ValueError: a mask, dropout, a softcap, sinks or more than one row was asked for, or the segments do not span T
            tokens.
    """
    if attention_mask is not None or dropout != 0.0:
        raise ValueError("tree attention takes no mask and no dropout; set attention_dropout: 0.0 in config.json")
    if asked := [name for name in CHANGES_RESULT if others.get(name) is not None]:
        raise ValueError(f"tree attention has no {', '.join(asked)}, which this model's attention asks for")
    lengths = [segment.stop - segment.start for segment in segments]
    if query.shape[0] != 1 or sum(lengths) != query.shape[2]:
        raise ValueError(f"segments of {sum(lengths)} tokens do not span one row (query {tuple(query.shape)})")
    # Use split, not slices: the backward of each slice would allocate a full-size tensor of zeros.
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    outputs = [
        _attend(own, [keys[i] for i in seen], [values[i] for i in seen], scaling, sliding_window)
        for own, seen in zip(queries, _seen(segments), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


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
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    key, value = (one[0] if len(one) == 1 else torch.cat(list(one), dim=2) for one in (keys, values))
    times = query.shape[1] // key.shape[1]
    if times > 1 and query.is_cuda and query.dtype == torch.float32:  # no fast kernel knows grouped heads in float32
        key, value, times = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1), 1
    if window is not None and key.shape[2] > window:
        return _attend_in_window(query, key, value, scaling, window)
    if len(keys) == 1:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=times > 1)
    mask = causal_lower_right(query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=times > 1)


def _attend_in_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int
) -> torch.Tensor:
    count, before = query.shape[2], key.shape[2] - query.shape[2]
    outputs = []
    for start in range(0, count, WINDOW_BLOCK):
        stop = min(start + WINDOW_BLOCK, count)
        first, last = max(0, before + start - window + 1), before + stop
        places = torch.arange(first, last, device=query.device)
        distance = places[start - stop :, None] - places
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=(distance >= 0) & (distance < window),
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2)


AttentionInterface.register(TREE_ATTENTION, tree_attention)
