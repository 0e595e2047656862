"""A Hugging Face model directory from a GGUF file, the format of llama.cpp, whose weights are usually quantised.

transformers reads the file through the `gguf` package; this module corrects what it gets wrong and writes plain float32
weights. It knows models of the Llama kind with SmolLM's tokenizer only, and refuses every other one. The verb `model`
calls it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ARCHITECTURE, PRE_TOKENIZER = "llama", "smollm"
"""What `general.architecture` and `tokenizer.ggml.pre` of a file must be."""


def convert(gguf: Path, directory: Path) -> None:
    """Write the model in `gguf` into `directory`: config, float32 weights, its tokenizer with the chat template, and
    a generation_config.json without any sampling default.

    Raises:
        ValueError: the file holds a model of another kind.
    """
    from transformers.utils import logging

    _check_kind(gguf)
    logging.disable_progress_bar()
    tokenizer = _tokenizer(gguf)
    _write_model(gguf, tokenizer, directory)
    tokenizer.save_pretrained(str(directory))


def _check_kind(gguf: Path) -> None:
    from transformers.integrations.gguf import read_gguf_metadata

    known, _ = read_gguf_metadata(str(gguf))
    kind = (known.get("general.architecture"), known.get("tokenizer.ggml.pre"))
    if kind != (ARCHITECTURE, PRE_TOKENIZER):
        raise ValueError(
            f"{gguf.name} holds a model of architecture {kind[0]!r} with pre-tokenizer {kind[1]!r}; only "
            f"{ARCHITECTURE!r} with {PRE_TOKENIZER!r} can be converted"
        )


def _tokenizer(gguf: Path) -> Any:
    """The file's tokenizer, which splits numbers into digits before anything else, as SmolLM2's own does.

    transformers 5.19 leaves that step out for GGUF files: `\\n\\n7` then becomes two line feeds instead of the token of
    both.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), bytes_of_words]
    )
    return tokenizer


def _write_model(gguf: Path, tokenizer: Any, directory: Path) -> None:
    """Copy the dequantised weights into a model that knows nothing of quantisation, and save that."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends["pad_token_id"] = tokenizer.pad_token_id
    config = LlamaConfig(**(_plain(read.config) | ends))
    model = LlamaForCausalLM(config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(str(directory))


def _plain(config: Any) -> dict[str, Any]:
    """The settings of a model without those of its quantisation."""
    left_out = ("quantization_config", "transformers_version", "model_type", "architectures")
    return {key: value for key, value in config.to_dict().items() if key not in left_out and not key.startswith("_")}
