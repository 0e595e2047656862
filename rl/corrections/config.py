"""The recipe's `correction:` section."""

from __future__ import annotations

from typing import ClassVar

from rewards.strict import Named


class CorrectionSettings(Named):
    """The base of every correction's settings; `correction: NAME` is short for `correction: {name: NAME}`."""

    kind: ClassVar[str] = "correction"
