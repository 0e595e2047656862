"""The recipe's `model.family` section."""

from __future__ import annotations

from typing import ClassVar

from rewards.strict import Named


class FamilySettings(Named):
    """The base of every model family's settings; `family: NAME` is short for `family: {name: NAME}`."""

    kind: ClassVar[str] = "family"
