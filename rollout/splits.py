"""The split of a task. It is decided by what the task asks, so that train and eval are disjoint by construction."""

from __future__ import annotations

import hashlib

from rollout.types import Split

EVAL_SHARE = 0.125


def split_of(content: str) -> Split:
    """Return the split that a question belongs to, as a pure function of what it asks."""
    return "eval" if place_of(content) < EVAL_SHARE else "train"


def place_of(content: str) -> float:
    """Return a number from 0 to 1 for a question; those below EVAL_SHARE are held out."""
    return int.from_bytes(hashlib.sha256(content.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
