"""The bases of every configuration model: frozen, and an unknown key is an error.

Types are checked strictly, because recipes are validated in pydantic's strict mode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)


class StrictModel(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _bounded(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what no setting can mean, wherever it stands, before a library meets it in the middle of a run."""
        if problem := _unusable(value, str(info.field_name)):
            raise ValueError(problem)
        if value == "" and cls.__module__.partition(".")[0] in _OURS:  # others may have a use for it
            raise ValueError("an empty text; leave the key out, or write null")
        return value

    shorthand: ClassVar[str | None] = None
    """The field that is meant by a bare string in place of this section (`model: PATH`); None: a mapping is required.
    The code that reads a recipe expands the string before validation."""


_OURS = ("rl", "rollout", "rewards")
LARGEST_INTEGER = 10**12
LARGEST_NUMBER = 1e15
LONGEST_S = 1e9
"""Thirty years, in seconds."""


def _unusable(value: Any, name: str) -> str | None:
    """What is wrong with a plain value of the setting `name`; None if nothing is."""
    if isinstance(value, Mapping):
        return next((problem for item in value.values() if (problem := _unusable(item, name))), None)
    if isinstance(value, list | tuple):
        return next((problem for item in value if (problem := _unusable(item, name))), None)
    if isinstance(value, str):
        return _bad_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return f"an integer beyond the limit of {LARGEST_INTEGER:.0e}" if abs(value) > LARGEST_INTEGER else None
    if not math.isfinite(value):
        return f"{value} is no usable number"
    largest = LONGEST_S if name.endswith("_s") else LARGEST_NUMBER
    return f"{value:.3g} is too large: the limit is {largest:.0e}" if abs(value) > largest else None


def _bad_text(value: str) -> str | None:
    return "a text with a NUL character or half a surrogate pair" if "\0" in value or not _encodes(value) else None


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Named(StrictModel):
    """A section that chooses an extension by name and carries the settings of its choice.

    Each kind of extension has one direct subclass, which sets `kind`; recipe models declare fields of that class. The
    settings of one extension derive from it and add their keys. The code that validates a recipe passes, as pydantic's
    context, a function from (kind, name) to the settings class of the extension of that name.
    """

    kind: ClassVar[str]
    shorthand: ClassVar[str | None] = "name"
    adapter: ClassVar[str | None] = None
    """The `module:attribute` of a class that is made in the place of the named code, and calls it; None: the code is
    made itself."""

    name: str

    @classmethod
    def settings_of(cls, code: Any) -> type[Named]:
        """The settings class of a user's code."""
        settings: type[Named] = getattr(code, "Settings", cls)
        return settings

    @model_validator(mode="wrap")
    @classmethod
    def _as_chosen(cls, data: Any, handler: ModelWrapValidatorHandler[Named], info: ValidationInfo) -> Named:
        if "kind" in vars(cls) and info.context is not None and isinstance(data, dict):
            chosen: type[Named] = info.context(cls.kind, data.get("name"))
            if chosen is not cls:
                # Validate as JSON, because strict mode accepts a list for a tuple only there.
                return chosen.model_validate_json(json.dumps(data), strict=True, context=info.context)
        return handler(cls._with_tuples(data))

    @classmethod
    def _with_tuples(cls, data: Any) -> Any:
        """The data with tuples where fields are tuples: a validator that wraps another one gets Python's values, also
        of JSON, and strict mode then takes no list."""
        if not isinstance(data, dict):
            return data
        tuples = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple}
        return {
            key: tuple(value) if key in tuples and isinstance(value, list) else value for key, value in data.items()
        }
