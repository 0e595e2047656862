"""The chat formats, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from pathlib import Path

from rewards.extension import Entry, Registry, make
from rollout.chat.config import RendererSettings
from rollout.chat.tokenizer import load_tokenizer
from rollout.contracts import Chat

RENDERERS: Registry = {
    "glm-4.5": Entry("rollout.chat.glm45:Glm45", "rollout.chat.config:Glm45Settings"),
    "qwen3": Entry("rollout.chat.qwen3:Qwen3"),
    "chatml": Entry("rollout.chat.chatml:Chatml", "rollout.chat.config:ChatmlSettings"),
    "template": Entry("rollout.chat.template:Template"),
}


def load_chat(settings: RendererSettings, model: str | Path) -> Chat:
    """Load the chat format over the tokenizer of a model directory or Hugging Face name.

    Raises:
        ValueError: there is no such format, or the tokenizer does not fit it.
    """
    chat: Chat = make(RENDERERS, settings.name, load_tokenizer(model), settings)
    return chat
