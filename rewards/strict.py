"""The bases of every configuration model: frozen, typed strictly, and an unknown key is an error."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationInfo, model_validator


class StrictModel(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    shorthand: ClassVar[str | None] = None
    """The field that a bare string in this section's place stands for (`model: PATH`); None: a mapping is required.
    Whoever reads a recipe expands it before validation."""


class Named(StrictModel):
    """A section that chooses an extension by name and carries the settings of its choice.

    Each kind of extension has one direct subclass, which sets `kind` and is what a recipe's model declares. The
    settings of one extension derive from that class and add their keys. Whoever validates a recipe passes, as
    pydantic's context, a function from (kind, name) to the settings class of the extension of that name.
    """

    kind: ClassVar[str]
    shorthand: ClassVar[str | None] = "name"

    name: str

    @model_validator(mode="wrap")
    @classmethod
    def _as_chosen(cls, data: Any, handler: ModelWrapValidatorHandler[Named], info: ValidationInfo) -> Named:
        if "kind" in vars(cls) and info.context is not None and isinstance(data, dict):
            chosen: type[Named] = info.context(cls.kind, data.get("name"))
            if chosen is not cls:
                # As JSON, because that reads a list as a tuple and is strict about everything else.
                return chosen.model_validate_json(json.dumps(data), strict=True, context=info.context)
        return handler(data)
