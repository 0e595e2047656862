"""A recipe's `model.renderer` section."""

from __future__ import annotations

from typing import ClassVar

from rewards.strict import Named


class RendererSettings(Named):
    """The base of every chat format's settings; `renderer: NAME` is short for `renderer: {name: NAME}`."""

    kind: ClassVar[str] = "renderer"


class Glm45Settings(RendererSettings):
    calls_in_reasoning: bool = False
    """Whether a tool call that stands in the reasoning is carried out, as some servers do. Off: it is reasoning."""


class ChatmlSettings(RendererSettings):
    system: str | None = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    """The system prompt of a conversation that has none of its own; null: none. The default is SmolLM2-Instruct's."""
