"""`algorithm: NAME` as the sections it stands for.

A preset names an advantage estimator, a loss and a correction, with settings where they differ from the defaults. A
section that the recipe writes wins: it keeps the preset's settings under its own when it names the same extension or
none, and stands for itself when it names another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.extension import nearest

Section = Mapping[str, Any]

PRESETS: Mapping[str, Mapping[str, Section]] = {
    "grpo": {"advantage": {"name": "grpo"}, "loss": {"name": "clipped"}, "correction": {"name": "none"}},
    "reinforce": {"advantage": {"name": "reinforce"}, "loss": {"name": "clipped"}, "correction": {"name": "none"}},
}


def fill_from_preset(data: dict[str, Any], algorithm: str) -> None:
    """Write the sections of a preset into a recipe's data.

    Raises:
        ValueError: there is no such preset.
    """
    if algorithm not in PRESETS:
        known = ", ".join(repr(name) for name in PRESETS)
        raise ValueError(f"algorithm={algorithm!r} is no preset; there are {known}{nearest(algorithm, list(PRESETS))}")
    for key, preset in PRESETS[algorithm].items():
        written = data.get(key) or {}
        if isinstance(written, dict) and written.get("name", preset["name"]) == preset["name"]:
            data[key] = dict(preset) | written
