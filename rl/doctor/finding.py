"""One line of `doctor`. Standard library only: the verb answers on a machine where nothing is installed yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is fine, and what was seen or is to be done."""

    name: str
    fine: bool
    text: str

    def line(self) -> str:
        return f"{'ok  ' if self.fine else 'FAIL'}  {self.name:<12} {self.text}"
