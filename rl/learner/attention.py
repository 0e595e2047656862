"""Causal attention over a packed row: segments laid end to end attend only within themselves.

Owns the attention function that every learner model runs, registered with transformers as `PACKED_ATTENTION`. No
T x T mask is ever built and nothing is padded: each segment is one `is_causal` SDPA call on views, so the result
of a segment is bit for bit what it would be alone.

transformers builds a mask only for attention implementations it has a mask function for; we register none, so the
model's `create_causal_mask` returns None for ours (a test pins that).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED_ATTENTION = "sluice_packed"
CHANGES_RESULT = ("sliding_window", "softcap", "s_aux")
"""Keywords that transformers passes to the attention of some models, and that would change what it computes."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seqlens: tuple[int, ...],
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one packed row. transformers fixes the signature; most of its keywords do not matter.

    Args:
        query: [1, heads, T, D]; key and value: [1, kv_heads, T, D] (grouped-query: heads is a multiple of kv_heads).
        cu_seqlens: n + 1 boundaries from 0 to T; segment i is cu_seqlens[i]:cu_seqlens[i + 1].

    Returns:
        ([1, T, heads, D], None).

    Raises:
        ValueError: a mask, dropout, a sliding window, a softcap, sinks or more than one row was asked for, or the
            boundaries do not span T tokens.
    """
    tokens = query.shape[2]
    if attention_mask is not None or dropout != 0.0:
        raise ValueError("packed attention takes no mask and no dropout; set attention_dropout: 0.0 in config.json")
    if asked := [name for name in CHANGES_RESULT if others.get(name) is not None]:
        raise ValueError(f"packed attention has no {', '.join(asked)}, which this model's attention asks for")
    if query.shape[0] != 1 or cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens:
        raise ValueError(f"cu_seqlens {cu_seqlens} does not span one row of {tokens} tokens (query {query.shape})")
    grouped = query.shape[1] != key.shape[1]
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    # Use split, not slices: the backward of each slice would allocate a full-size tensor of zeros.
    segments = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped) for q, k, v in segments
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
