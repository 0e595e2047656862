"""The base of every configuration model: frozen, typed strictly, and an unknown key is an error."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    shorthand: ClassVar[str | None] = None
    """The field that a bare string in this section's place stands for (`model: PATH`); None: a mapping is required."""
