"""A model's tokenizer, without torch where it can be had without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL_TYPES = {"glm4_moe", "gpt_oss", "llama"}
PLAIN = {"PreTrainedTokenizerFast", "TokenizersBackend"}
"""For these types of models and these classes, named by the files of a model, AutoTokenizer takes the plain class."""


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a model directory or Hugging Face name, as AutoTokenizer loads it.

    AutoTokenizer itself imports torch and much of transformers, which costs each worker 2 s and 260 MB. So where it is
    known what it would choose, that is loaded without asking it.
    """
    if _is_plain(str(model)):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(model))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model))


def _is_plain(model: str) -> bool:
    from transformers.utils import cached_file

    try:
        paths = [cached_file(model, name) for name in ("config.json", "tokenizer_config.json", "tokenizer.json")]
        config, tokenizer = (json.loads(Path(str(path)).read_text(encoding="utf-8")) for path in paths[:2])
    except (OSError, ValueError):  # AutoTokenizer says what is wrong
        return False
    return (
        config.get("model_type") in MODEL_TYPES
        and tokenizer.get("tokenizer_class") in PLAIN
        and "auto_map" not in tokenizer
    )
