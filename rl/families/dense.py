"""Decoders without routed experts, of the Llama and Qwen kind."""

from __future__ import annotations

from rl.families.family import Family


class Dense(Family):
    """The family `dense`: any model type that no other family claims."""
