"""The text of tokens, as the tokenizer of a run's model writes them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "tokenizer.json"


def token_texts(folders: Sequence[str | Path], token_ids: Iterable[int]) -> dict[int, str]:
    """The text of each token by the tokenizer in the first folder that has one; empty where none has."""
    from tokenizers import Tokenizer

    for folder in folders:
        file = Path(folder) / FILE
        if not file.is_file():
            continue
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # a bare Exception: damaged, or the checkpoint was deleted meanwhile
            log.warning("%s cannot be read: %s", file, error)
            continue
        return {token: _text(tokenizer, token) for token in token_ids}
    return {}


def _text(tokenizer: object, token: int) -> str:
    from tokenizers import Tokenizer

    assert isinstance(tokenizer, Tokenizer)
    piece = tokenizer.id_to_token(token)
    if piece is None:
        return f"⟨{token}⟩"
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character
        return str(piece)
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text
