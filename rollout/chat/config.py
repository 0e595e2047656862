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
