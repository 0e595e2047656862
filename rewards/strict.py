"""The bases of every configuration model: frozen, and an unknown key is an error.

Types are checked strictly, because recipes are validated in pydantic's strict mode.
"""

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
    """The field that is meant by a bare string in place of this section (`model: PATH`); None: a mapping is required.
    The code that reads a recipe expands the string before validation."""


class Named(StrictModel):
    """A section that chooses an extension by name and carries the settings of its choice.

    Each kind of extension has one direct subclass, which sets `kind`; recipe models declare fields of that class. The
    settings of one extension derive from it and add their keys. The code that validates a recipe passes, as pydantic's
    context, a function from (kind, name) to the settings class of the extension of that name.
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
                # Validate as JSON, because strict mode accepts a list for a tuple only there.
                return chosen.model_validate_json(json.dumps(data), strict=True, context=info.context)
        return handler(data)
