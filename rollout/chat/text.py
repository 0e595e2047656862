"""Text that must reach a model as plain text, even where it spells special tokens."""

from __future__ import annotations

from collections.abc import Sequence


def defused(text: str, special_tokens: Sequence[str]) -> str:
    """Return `text` with every special token broken up by a space, so that nothing in it can forge a role marker.

    `special_tokens` must be sorted with longer ones first. A lone surrogate, which no tokenizer takes, becomes "?".
    """
    for token in special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text.encode(errors="replace").decode()
