"""The split of a task. It is decided by what the task asks, so that train and eval are disjoint by construction."""

from __future__ import annotations

import hashlib

from rollout.types import Split

EVAL_SHARE = 0.125


def split_of(content: str) -> Split:
    """Return the split that a question belongs to, as a pure function of what it asks."""
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64
    return "eval" if bucket < EVAL_SHARE else "train"
