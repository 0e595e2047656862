"""A recipe's `tasks.sources.N.environment` sections."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rewards.strict import Named


class EnvironmentSettings(Named):
    """The base of every environment's settings; `environment: NAME` is short for `environment: {name: NAME}`."""

    kind: ClassVar[str] = "environment"


class PythonSettings(EnvironmentSettings):
    max_observation: int = Field(default=400, ge=1)
    """Maximum number of characters of a program's output that the model is shown."""
    workspace: bool = False
    """Whether the files that programs write are there for the later programs of the same trajectory."""
