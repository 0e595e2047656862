"""Tokenizers are those of AutoTokenizer, which is asked only where its answer is not known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rl.paths import REPOSITORY
from rollout.chat.tokenizer import MODEL_TYPES, PLAIN, load_tokenizer
from tests.support import MODEL

TEXT = "<|user|>\nAdd 1234 and -5.6, naïve 日本\n\t🙂<tool_call>"


def model(folder: Path, *, config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    """The tiny model's files with other values in both configurations."""
    shutil.copytree(MODEL, folder)
    for name, values in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(found | values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
@pytest.mark.parametrize("class_name", sorted(PLAIN))
def test_what_is_loaded_without_asking_is_what_it_would_have_chosen(
    tmp_path: Path, model_type: str, class_name: str
) -> None:
    settings = {"tokenizer_class": class_name, "model_max_length": 4096, "clean_up_tokenization_spaces": True}
    folder = model(tmp_path / "model", config={"model_type": model_type}, tokenizer=settings)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(str(folder))
    assert type(ours) is type(theirs) and repr(ours) == repr(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.chat_template == theirs.chat_template and ours.init_kwargs == theirs.init_kwargs
    assert ours.encode(TEXT) == theirs.encode(TEXT)


def test_another_class_is_what_is_chosen_for_it(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", config={"model_type": "qwen3"}, tokenizer={"tokenizer_class": "Qwen2Tokenizer"})
    assert type(load_tokenizer(folder)).__name__ == "Qwen2Tokenizer"


def test_what_is_not_there_is_told_as_it_tells_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_worker_formats_chats_of_glm_without_torch() -> None:
    code = (
        "import sys, rollout.actors.worker\n"
        "from rollout.chat.config import RendererSettings\n"
        "from rollout.chat.registry import load_chat\n"
        f"load_chat(RendererSettings(name='glm-4.5'), {str(MODEL)!r})\n"
        "print(sorted({'torch', 'vllm', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
